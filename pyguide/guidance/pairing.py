"""Which target layer is compared with which guide layer."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

from torch import nn

from pyguide.capture.paths import find_layer, first_paths, is_glob, matching_layers
from pyguide.capture.recorder import Extract, Source
from pyguide.guidance import rules

__all__ = ["Pair", "Pairing", "make_pairing"]

_RULES = 'pairs must be "even", "paper", "paper-sum", "first:k", "last:k" or a list of pairs'

Layers = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Pair:
    """A target layer and the guide layer that it is compared with.

    A plain tuple (target, guide) is the same without options.

    Parameters
    ----------
    target, guide : str
        Dotted module paths as :func:`pyguide.list_layers` prints them. ``"relu:1"`` is the
        second call of a module that is called several times. Or globs: ``*`` and ``?`` stand
        for characters of one part of a path, ``**`` for any number of parts, also none:
        ``**.conv1`` matches ``conv1``. A glob means its matches in execution order; both sides
        must have equally many, or one side one.
    per_token : bool
        Compare each position of two (n, T, ...) layers on its own; the pair's distance is
        the mean over the T positions, so that its weight does not depend on T.
    extract : callable or (callable, callable), optional
        Takes what is compared out of what the layer returned, (n, ...) with the batch first:
        one function for both layers, or one for the target and one for the guide (None: the
        default). Without it a tuple stands for its first item, a dict or dataclass for its
        ``last_hidden_state``, its ``logits`` or its only tensor; PackedSequences and
        nested tensors are padded to (n, T, ...), and padding counts in no distance.

    Examples
    --------
    >>> import pyguide
    >>> pair = pyguide.Pair("rnn", "layers.*", extract=(lambda output: output[1][0][-1], None))
    >>> pair.per_token
    False
    """

    target: str
    guide: str
    _: KW_ONLY
    per_token: bool = False
    extract: Extract | tuple[Extract | None, Extract | None] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.target, str) and isinstance(self.guide, str)):
            raise ValueError(
                "a pair is two strings (target path, guide path), "
                f"got {(self.target, self.guide)!r}"
            )
        if not all(f is None or (callable(f) and f.__hash__ is not None) for f in self.extracts):
            raise TypeError(
                "extract must be a function of the layer's output, or a pair of them for target "
                f"and guide, and hashable, as functions are; got {self.extract!r}"
            )

    @property
    def paths(self) -> tuple[str, str]:
        """(target, guide)."""
        return self.target, self.guide

    @property
    def extracts(self) -> tuple[Extract | None, Extract | None]:
        """The functions for target and guide."""
        if isinstance(self.extract, tuple) and len(self.extract) == 2:
            return self.extract
        return self.extract, self.extract


class Pairing(ABC):
    """What the `pairs` of :class:`pyguide.Guidance` mean for its two networks."""

    #: The rule's name; None for a list of pairs.
    name: str | None = None
    #: The pairs, where they follow from the paths alone; None where the networks must run first.
    pairs: list[Pair] | None = None
    #: Whether a layer that is called several times may be in the resolved pairs.
    repeats = True

    @abstractmethod
    def candidates(self) -> tuple[list[Source], list[Source]]:
        """What to record of target and guide until the pairs are resolved."""

    @abstractmethod
    def resolve(self, target: rules.Calls, guide: rules.Calls) -> list[Pair]:
        """The pairs, from the calls of the candidates in execution order."""

    @abstractmethod
    def restore(
        self, saved: list[tuple[str, str]], current: list[tuple[str, str]] | None
    ) -> list[Pair] | None:
        """The pairs of a saved state that differ from the current ones; None: resolve again."""


def make_pairing(pairs: str | Iterable[object], target: Layers, guide: Layers) -> Pairing:
    """Parse the `pairs` argument of :class:`pyguide.Guidance`."""
    if isinstance(pairs, str):
        return _Rule(pairs, target, guide)
    if not isinstance(pairs, Iterable):
        raise ValueError(f"{_RULES}, got {pairs!r}")
    if isinstance(pairs, (set, frozenset)):
        raise ValueError(
            "a set of pairs has another order in every process, and so would the distances: give "
            "a list"
        )
    return _List([_pair(pair) for pair in pairs], target, guide)


def _pair(pair: object) -> Pair:
    if isinstance(pair, Pair):
        return pair
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(
            f"a pair is two strings (target path, guide path) or a pyguide.Pair, got {pair!r}"
        )
    return Pair(*pair)


class _Rule(Pairing):
    """ "even", "paper" and their variants."""

    def __init__(self, name: str, target: Layers, guide: Layers) -> None:
        found = re.fullmatch(r"even|paper|paper-sum|(first|last):([1-9]\d*)", name)
        if found is None:
            raise ValueError(f"{_RULES}, got {name!r}")
        self.name = name
        self._end, self._count = found[1], int(found[2] or 0)
        self._layers = {"target": target, "guide": guide}
        self._is_paper = self.repeats = name.startswith("paper")

    def candidates(self) -> tuple[list[Source], list[Source]]:
        is_candidate = rules.is_paper_candidate if self._is_paper else rules.is_even_candidate
        target, guide = (
            [Source(path) for path, layer in first_paths(layers).items() if is_candidate(layer)]
            for layers in self._layers.values()
        )
        return target, guide

    def resolve(self, target: rules.Calls, guide: rules.Calls) -> list[Pair]:
        choose = rules.paper_layers if self._is_paper else rules.even_layers
        ts, gs = choose(target, self._layers["target"]), choose(guide, self._layers["guide"])
        for owner, paths in (("target", ts), ("guide", gs)):
            if not paths:
                raise RuntimeError(
                    f'"{self.name}" found no layer to pair in the {owner}, besides the last one: '
                    f"give the pairs as a list, and call the {owner} once a window"
                )
        if self._is_paper:
            every = self.name == "paper-sum"
            return [Pair(*p) for p in rules.paper_pairs(ts, gs, every_guide_layer=every)]
        pairs = [Pair(*p) for p in rules.even_pairs(ts, gs)]
        if self._count > len(pairs):
            raise ValueError(
                f'"{self.name}" asks for {self._count} of the pairs of "even", which are '
                f"{len(pairs)} here: choose a k up to that"
            )
        return pairs[-self._count :] if self._end == "last" else pairs[: self._count or None]

    def restore(
        self, saved: list[tuple[str, str]], current: list[tuple[str, str]] | None
    ) -> list[Pair]:
        return [
            _found(Pair(*paths), self._layers["target"], self._layers["guide"]) for paths in saved
        ]


class _List(Pairing):
    """Pairs as the user listed them, some of them globs."""

    def __init__(self, listed: Sequence[Pair], target: Layers, guide: Layers) -> None:
        if not listed:
            raise ValueError('pairs is empty: give pairs of layers, or "even"')
        self._layers = {"target": target, "guide": guide}
        self._listed = [_found(pair, target, guide) for pair in listed]
        self._expected: list[tuple[str, str]] | None = None
        # For each listed pair and side: the matches of a glob; None for a path.
        self._matches = [
            tuple(
                matching_layers(layers, path, owner) if is_glob(path, layers) else None
                for path, (owner, layers) in zip(pair.paths, self._layers.items(), strict=True)
            )
            for pair in self._listed
        ]
        if all(matches == (None, None) for matches in self._matches):
            self.pairs = self._listed

    def candidates(self) -> tuple[list[Source], list[Source]]:
        target, guide = (
            list(
                dict.fromkeys(
                    Source.of(layers, path, pair.extracts[side])
                    for pair, matches in zip(self._listed, self._matches, strict=True)
                    for path in (matches[side] or [pair.paths[side]])
                )
            )
            for side, layers in enumerate(self._layers.values())
        )
        return target, guide

    def resolve(self, target: rules.Calls, guide: rules.Calls) -> list[Pair]:
        pairs = []
        for pair, (target_matches, guide_matches) in zip(self._listed, self._matches, strict=True):
            ts = _called(pair.target, target_matches, target, "target")
            gs = _called(pair.guide, guide_matches, guide, "guide")
            if len(ts) != len(gs) and 1 not in (len(ts), len(gs)):
                raise ValueError(
                    f"{pair.target!r} means {len(ts)} layers of the target and {pair.guide!r} "
                    f"{len(gs)} of the guide: they pair one by one, so narrow one of them to "
                    "equally many or to one layer, or list the pairs"
                )
            count = max(len(ts), len(gs))
            ts, gs = (paths * count if len(paths) == 1 else paths for paths in (ts, gs))
            pairs += [replace(pair, target=t, guide=g) for t, g in zip(ts, gs, strict=True)]
        if self._expected is not None and [pair.paths for pair in pairs] != self._expected:
            raise _other_pairs(self._expected, [pair.paths for pair in pairs])
        return pairs

    def restore(
        self, saved: list[tuple[str, str]], current: list[tuple[str, str]] | None
    ) -> list[Pair] | None:
        if current is not None:
            raise _other_pairs(saved, current)
        # Paths alone do not have the options of the pairs: they must come from the globs again.
        self._expected = saved
        return None


def _other_pairs(saved: object, given: object) -> ValueError:
    return ValueError(f"the state has the pairs {saved}, this Guidance was given {given}")


def _found(pair: Pair, target: Layers, guide: Layers) -> Pair:
    """The pair with the paths as the networks have them; globs stay."""
    t, g = (
        path if is_glob(path, layers) else find_layer(layers, path, owner)
        for path, layers, owner in (
            (pair.target, target, "target"),
            (pair.guide, guide, "guide"),
        )
    )
    return replace(pair, target=t, guide=g)


def _called(path: str, matches: list[str] | None, calls: rules.Calls, owner: str) -> list[str]:
    """The layers that a path or glob means, in execution order; every call of a repeated one."""
    if matches is None:
        return [path]
    wanted = set(matches)
    found = [(layer, call) for layer, call in calls if layer in wanted]
    missing = wanted - {layer for layer, _ in found}
    if missing:
        raise RuntimeError(
            f"{', '.join(map(repr, sorted(missing)))} of the {owner} match {path!r}, but gave no "
            "tensor in the forward pass: use a narrower pattern, list the pairs, or give an "
            "`extract`"
        )
    repeated = {layer for layer, call in found if call}
    return [f"{layer}:{call}" if layer in repeated else layer for layer, call in found]
