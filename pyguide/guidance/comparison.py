"""The distances of resolved pairs, from the captured activations of their layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pyguide.capture.padding import filled, valid_positions
from pyguide.capture.recorder import Captured, Source
from pyguide.distances import Distance
from pyguide.distributed import GlobalBatch
from pyguide.guidance import masking
from pyguide.guidance.pairing import Layers, Pair
from pyguide.ops.gram import gram

__all__ = ["Captures", "Comparison", "Distances", "used_layers"]

Captures = Sequence[Captured]
# Values and, unless the distance has none, degenerate flags: one a pair.
Distances = tuple[Tensor, Tensor | None]


class Comparison:
    """Which activations the pairs need, and how these are compared.

    Parameters
    ----------
    pairs : sequence of Pair
        Resolved pairs, without globs.
    distance : Distance
        What to call for them.
    target_layers, guide_layers : mapping of str to nn.Module
        The modules of both networks by path.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        distance: Distance,
        target_layers: Layers,
        guide_layers: Layers,
    ) -> None:
        self.pairs = list(pairs)
        self.paths = [pair.paths for pair in self.pairs]
        self.distance = distance
        targets = [Source.of(target_layers, p.target, p.extracts[0]) for p in self.pairs]
        guides = [Source.of(guide_layers, p.guide, p.extracts[1]) for p in self.pairs]
        #: The distinct layers of target and guide.
        self.target_sources = list(dict.fromkeys(targets))
        self.guide_sources = list(dict.fromkeys(guides))
        #: Each pair's positions in them.
        self.indices = [
            (self.target_sources.index(t), self.guide_sources.index(g))
            for t, g in zip(targets, guides, strict=True)
        ]
        self._whole = [p for p, pair in enumerate(self.pairs) if not pair.per_token]
        self._per_token = [p for p, pair in enumerate(self.pairs) if pair.per_token]

    def __call__(self, xs: Captures, ys: Captures, mask: Tensor | None = None) -> Distances:
        """The distances, (P,), and which pairs are degenerate, (P,) bool.

        A per-token pair is degenerate if all its positions are.

        Parameters
        ----------
        xs, ys : sequence of Captured
            The activations of `target_sources` and `guide_sources`.
        mask : Tensor, optional
            (n, T) bool, True where the position of the sample is valid.
        """
        self.check(xs, ys, mask)
        return self.compare(xs, ys, mask)

    def compare(self, xs: Captures, ys: Captures, mask: Tensor | None = None) -> Distances:
        """The same of what passes :meth:`check`, or of some pairs of such a comparison."""
        self._check_count(xs)
        if ys and ys[0].gram is not None:
            return self._gram_distances(xs, ys)
        distance = self.distance
        if isinstance(distance, GlobalBatch) and _padded(xs, ys, mask):
            xs, ys, mask = self._gathered(distance, xs, ys, mask)
            distance = distance.distance
        parts: list[tuple[list[int], Distances]] = []
        if self._whole:
            parts.append((self._whole, self._whole_distances(distance, xs, ys, mask)))
        for pairs, valid in self._token_groups(xs, ys, mask):
            parts.append((pairs, self._token_distances(distance, pairs, xs, ys, valid)))
        if len(parts) == 1:
            return parts[0][1]
        return _in_order(parts)

    def _gathered(
        self, distance: GlobalBatch, xs: Captures, ys: Captures, mask: Tensor | None
    ) -> tuple[Captures, Captures, Tensor | None]:
        """The samples of all processes: which count at a position depends on all of them."""
        per_token = {("x", self.indices[p][0]) for p in self._per_token}
        per_token |= {("y", self.indices[p][1]) for p in self._per_token}
        captures = [(("x", i), x) for i, x in enumerate(xs)]
        captures += [(("y", j), y) for j, y in enumerate(ys)]
        layers = [
            (
                layer.tensor,
                valid_positions(layer.tensor, layer.mask, mask, per_token=key in per_token),
            )
            for key, layer in captures
        ]
        gathered = distance.gather(layers if mask is None else [*layers, (mask, mask)])
        own = [
            Captured(tensor, valid if layer.mask is not None else None)
            for (tensor, valid), (_, layer) in zip(gathered, captures, strict=False)
        ]
        return own[: len(xs)], own[len(xs) :], None if mask is None else gathered[-1][1]

    def check(self, xs: Captures, ys: Captures, mask: Tensor | None = None) -> None:
        """Raise, with the names of the layers, unless their shapes can be compared."""
        first = ""
        samples = xs[0].tensor.shape[:1]
        for pair, (i, j) in zip(self.pairs, self.indices, strict=True):
            x, y = tuple(xs[i].tensor.shape), tuple(ys[j].tensor.shape)
            gave = f"target layer {pair.target!r} gave {x} and guide layer {pair.guide!r} {y}"
            first = first or gave
            if x[:1] != y[:1]:
                raise ValueError(f"{gave}: the first axis is the batch and must be the same")
            if x[:1] != samples:
                raise ValueError(
                    f"{gave}, but {first}: the first axis is the batch and must be the same in "
                    "every pair"
                )
            if pair.per_token and (len(x) < 2 or x[:2] != y[:2]):
                raise ValueError(
                    f"{gave}: a per-token pair compares (n, T, ...) with (n, T, ...), so "
                    "the second axis must be the same; bring one layer to the other's positions "
                    "with `extract`, or compare whole sequences with per_token=False"
                )
        if mask is not None:
            layers = [captured.tensor for captured in (*xs, *ys)]
            masking.check_mask(mask, layers, per_token=bool(self._per_token))

    def _check_count(self, xs: Captures) -> None:
        shape, least = xs[0].tensor.shape, self.distance.min_samples
        # Of several processes' batches together the distance itself sees how many there are.
        if shape and shape[0] < least and not isinstance(self.distance, GlobalBatch):
            raise ValueError(
                f"target layer {self.pairs[0].target!r} gave {tuple(shape)}, and "
                f"{self.distance.name!r} needs at least {least} samples; where the last batch of "
                "an epoch is small, leave it out: DataLoader(..., drop_last=True)"
            )

    def _whole_distances(
        self, distance: Distance, xs: Captures, ys: Captures, mask: Tensor | None
    ) -> Distances:
        return _distances(
            distance,
            [self.indices[p] for p in self._whole],
            lambda i: _filled(distance, xs[i], mask),
            lambda j: _filled(distance, ys[j], mask),
        )

    def _gram_distances(self, xs: Captures, ys: Captures) -> Distances:
        """Of pairs whose guide layers have their Gram matrices only."""
        precision = getattr(self.distance, "precision", None)
        targets = gram([_filled(self.distance, x, None) for x in xs], precision=precision).unbind()
        guides = [y.gram for y in ys if y.gram is not None]
        pairs = [(i, len(xs) + j) for i, j in self.indices]
        return self.distance.from_grams([*targets, *guides], pairs)

    def _token_groups(
        self, xs: Captures, ys: Captures, mask: Tensor | None
    ) -> list[tuple[list[int], Tensor | None]]:
        """Per-token pairs of one T and one mask, which one call can compare."""
        groups: list[tuple[int, list[int], Tensor | None]] = []
        for p in self._per_token:
            i, j = self.indices[p]
            tokens = xs[i].tensor.size(1)
            valid = masking.valid_in_both(xs[i], ys[j], mask)
            for group_tokens, pairs, group_valid in groups:
                if group_tokens == tokens and masking.same(valid, group_valid):
                    pairs.append(p)
                    break
            else:
                groups.append((tokens, [p], valid))
        return [(pairs, valid) for _, pairs, valid in groups]

    def _token_distances(
        self,
        distance: Distance,
        pairs: Sequence[int],
        xs: Captures,
        ys: Captures,
        valid: Tensor | None,
    ) -> Distances:
        """Means over the positions; with a mask, each position over its valid samples."""
        indices = [self.indices[p] for p in pairs]
        if valid is None:
            values, flags = _distances(
                distance,
                indices,
                lambda i: xs[i].tensor,
                lambda j: ys[j].tensor,
                per_token=True,
            )
            return values.mean(dim=1), None if flags is None else flags.all(dim=1)
        groups = [
            _distances(
                distance,
                indices,
                partial(_gathered, xs, positions, samples),
                partial(_gathered, ys, positions, samples),
                per_token=True,
            )
            for positions, samples in masking.position_groups(valid, distance.min_samples)
        ]
        if not groups:
            raise ValueError(
                f"no position of the pair {self.pairs[pairs[0]].paths} has the "
                f"{distance.min_samples} valid samples that {distance.name!r} needs: "
                "look at the mask (True is valid), or use a larger batch"
            )
        values = torch.cat([values for values, _ in groups], dim=1).mean(dim=1)
        known = [flags for _, flags in groups if flags is not None]
        return values, torch.cat(known, dim=1).all(dim=1) if known else None


def _padded(xs: Captures, ys: Captures, mask: Tensor | None) -> bool:
    return mask is not None or any(layer.mask is not None for layer in (*xs, *ys))


class _Used(NamedTuple):
    left: list[int]
    right: list[int]
    pairs: list[tuple[int, int]]  # positions in left and right


def used_layers(pairs: Sequence[tuple[int, int]]) -> _Used:
    """The distinct layers of some pairs, which one call of a distance gets."""
    left, right = (list(dict.fromkeys(side)) for side in zip(*pairs, strict=True))
    return _Used(left, right, [(left.index(i), right.index(j)) for i, j in pairs])


def _filled(distance: Distance, captured: Captured, mask: Tensor | None) -> Tensor:
    x = captured.tensor
    valid = valid_positions(x, captured.mask, mask)
    return x if valid is None else filled(x, valid, distance.samples_of_origin(x.size(0)))


def _gathered(captures: Captures, positions: Tensor, samples: Tensor | None, index: int) -> Tensor:
    return masking.gathered(captures[index].tensor, positions, samples)


def _distances(
    distance: Distance,
    pairs: Sequence[tuple[int, int]],
    x: Callable[[int], Tensor],
    y: Callable[[int], Tensor],
    **options: bool,
) -> Distances:
    """One call of the distance with the layers `x(i)`, `y(j)` of these pairs only."""
    used = used_layers(pairs)
    return distance.values_and_flags(
        [x(i) for i in used.left], [y(j) for j in used.right], pairs=used.pairs, **options
    )


def _in_order(parts: Sequence[tuple[Sequence[int], Distances]]) -> Distances:
    """Distances of some pairs each, put in the order of all pairs."""
    # Rows are gathered by stacking them: an index would be copied to the device, and wait for it.
    order = [p for pairs, _ in parts for p in pairs]
    inverse = sorted(range(len(order)), key=order.__getitem__)

    def in_order(tensors: list[Tensor]) -> Tensor:
        each = torch.cat(tensors).unbind()
        return torch.stack([each[at] for at in inverse])

    all_values = [values for _, (values, _) in parts]
    dtype = torch.float64 if {v.dtype for v in all_values} == {torch.float64} else torch.float32
    flags = [flags for _, (_, flags) in parts if flags is not None]
    return (
        in_order([values.to(dtype) for values in all_values]),
        in_order(flags) if len(flags) == len(parts) else None,
    )
