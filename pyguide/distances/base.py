"""What a distance is to :class:`pyguide.Guidance`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Distance", "FlaggedDistance"]


class Distance(ABC):
    """A differentiable distance between layers, for many pairs of layers at once.

    A new distance is a subclass with a :attr:`name` and :meth:`__call__`. One whose
    value is undefined for some layers also overrides :meth:`values_and_flags`.
    """

    #: Short name, used in log keys.
    name: str
    #: Fewest samples that it is defined for.
    min_samples: int = 2

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
