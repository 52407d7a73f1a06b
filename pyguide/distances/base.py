"""What a distance is to :class:`pyguide.Guidance`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

__all__ = ["Distance"]


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
    ) -> tuple[Tensor, Tensor | None]:
        """The distances and, (P,) bool, which pairs have a degenerate layer.

        The flags are None for a distance that is defined for every layer.
        """
        return self(xs, ys, pairs=pairs), None
