"""What a distance is to :class:`pyguide.Guidance`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pyguide.distances.costs import PairCost, PlannedLayers
from pyguide.ops.paired_layers import PairedLayers, paired_layers

__all__ = ["Distance", "FlaggedDistance", "PairedDistance", "variant"]


class Distance(ABC):
    """A differentiable distance between layers, for many pairs of layers at once.

    A new distance is a subclass with a :attr:`name` and :meth:`__call__`. One whose
    value is undefined for some layers also overrides :meth:`values_and_flags`, and one whose
    cost is known :meth:`costs`.
    """

    #: Short name, used in log keys. Options that are not the default belong in it, so that the
    #: logs of variants are told apart: "rsa(euclidean)".
    name: str
    #: Fewest samples that it is defined for.
    min_samples: int = 2
    #: Whether it is a function of the layers' centred Gram matrices: see :meth:`from_grams`.
    of_grams: bool = False

    @abstractmethod
    def __call__(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Distance of every pair of layers.

        Parameters
        ----------
        xs, ys : sequence of Tensor
            Activations, each (n, ...), of one n and one device.
        pairs : sequence of (int, int), optional
            Indices into `xs` and `ys`; ``zip(xs, ys)`` by default.

        Returns
        -------
        Tensor
            (P,), differentiable in every `xs` and `ys` that requires grad.
        """

    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The distances, (P,), and which pairs have a degenerate layer, (P,) bool.

        With `per_token` the layers are (n, T, ...), every token is compared on its own, and
        both results are (P, T). The flags are None for a distance that is defined for every
        layer.
        """
        if not per_token:
            return self(xs, ys, pairs=pairs), None
        tokens = zip(*(x.unbind(1) for x in xs), strict=True)
        others = zip(*(y.unbind(1) for y in ys), strict=True)
        distances = [self(x, y, pairs=pairs) for x, y in zip(tokens, others, strict=True)]
        return torch.stack(distances, dim=1), None

    def samples_of_origin(self, n: int) -> int:
        """How many of n samples, from the first, have the mean that features are measured from.

        At the origin a feature counts nothing, so this is what stands for padding: all samples for
        a distance that centres its layers, the default; 0 if it does not, which is zero itself.
        """
        return n

    def from_grams(
        self, grams: Sequence[Tensor], pairs: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor | None]:
        """The same from centred Gram matrices, where :attr:`of_grams` is true.

        With it a batch may be spread over processes, whose Gram matrices are added, and a layer's
        Gram matrix may be kept instead of the layer.

        Parameters
        ----------
        grams : sequence of Tensor, each (n, n)
            ``H X Xᵀ H`` of the layers, see :func:`pyguide.gram`: symmetric, float64 or float32.
        pairs : sequence of (int, int)
            Indices into `grams`.

        Returns
        -------
        Tensor, Tensor or None
            (P,) distances, differentiable once in every matrix, and (P,) flags.
        """
        raise NotImplementedError(f"{self.name!r} is no function of Gram matrices alone")

    def costs(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> Sequence[PairCost] | None:
        """What each pair costs a training step, for :meth:`pyguide.Guidance.plan`.

        None, the default, says that it is not known: the plan has no costs then. Only shapes,
        dtypes and ``requires_grad`` of the layers count, which may be on the meta device. A pass
        over an n x n matrix counts for RBF CKA and RSA, which make many of them, as one
        multiply-add an operation and entry; for the others it is left out.

        Parameters
        ----------
        xs, ys, pairs, per_token
            As for :meth:`values_and_flags`.

        Returns
        -------
        sequence of PairCost or None
            One a pair, in the order of `pairs`.
        """
        return None


class FlaggedDistance(Distance):
    """A distance that is undefined for some layers: :meth:`values_and_flags` is what it defines."""

    def __call__(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        return self.values_and_flags(xs, ys, pairs=pairs)[0]

    @abstractmethod
    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor | None]: ...

    def costs(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> list[PairCost]:
        return self._costs(PlannedLayers.of(xs, ys, pairs, per_token))

    @abstractmethod
    def _costs(self, planned: PlannedLayers) -> list[PairCost]:
        """The costs of all tokens."""


class PairedDistance(FlaggedDistance):
    """A distance that is computed pair by pair from the distinct layers, or their tokens."""

    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        found = paired_layers(xs, ys, pairs, per_token=per_token, min_samples=self.min_samples)
        return found.results(*self._compare(found))

    @abstractmethod
    def _compare(self, pairs: PairedLayers) -> tuple[Tensor, Tensor | None]:
        """Distances and degenerate flags, one a pair."""


def variant(name: str, *words: str, **options: tuple[float | None, float | None]) -> str:
    """A distance's name with its options: ``rsa(euclidean)``, ``ridge(penalty=100,seed=1)``.

    `options` are values with their defaults, of which no name speaks.
    """
    given = [
        f"{key}={str(value).removesuffix('.0')}"
        for key, (value, default) in options.items()
        if value != default
    ]
    return f"{name}({','.join([*words, *given])})" if words or given else name
