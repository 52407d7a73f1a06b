"""The memory of a guided step of a large batch, from the shapes of the paired layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pyguide.distributed import GlobalBatch
from pyguide.guidance.comparison import Comparison
from pyguide.guidance.plan import costs_of

__all__ = ["BatchMemory", "batch_memory", "pair_groups"]


@dataclass(frozen=True)
class BatchMemory:
    """Bytes that a step of :class:`LargeBatch` holds at most, beside what a chunk needs.

    The paired layers are kept while both networks run; then one pair after another is compared, and
    layers give way to gradients; while the target runs again, there are the gradients of its layers
    alone. Batch and networks are not counted.
    """

    #: The paired layers of target and guide: ``n (sum of d_t + sum of d_g)`` values.
    activations: int
    #: While pairs are compared: layers and gradients that are held then, and matrices. None
    #: if the distance does not tell its memory (:meth:`pyguide.distances.Distance.costs`).
    distances: int | None
    #: The gradients in the target's paired layers: ``n (sum of d_t)`` values.
    gradients: int

    def peak(self, forward: int, step: int) -> int | None:
        """The most that is held at a time, for the chunks that you measured.

        Parameters
        ----------
        forward : int
            Bytes that the forward passes of both networks take for a chunk, without a graph, its
            paired layers included.
        step : int
            Bytes of unguided steps of two chunks, one after the other: the second one's graph is
            there beside the gradients of the parameters.
        """
        if self.distances is None:
            return None
        return max(self.activations + forward, self.distances, self.gradients + step)


def pair_groups(
    comparison: Comparison, xs: Sequence[Tensor], ys: Sequence[Tensor], limit: int
) -> list[list[int]]:
    """Which pairs are compared in one call, for layers of these shapes.

    Runs of pairs that share layers, so that one Gram matrix of each is computed, as long as
    `limit` bytes are enough for their matrices; pairs of unknown memory are alone.
    """
    needed = _MatrixBytes(comparison, xs, ys)
    groups: list[list[int]] = []
    for p in range(len(comparison.pairs)):
        if groups and _share_a_layer(comparison, groups[-1], p):
            together = needed.of([*groups[-1], p])
            if together is not None and together <= limit:
                groups[-1].append(p)
                continue
        groups.append([p])
    return groups


def _share_a_layer(comparison: Comparison, group: Sequence[int], p: int) -> bool:
    i, j = comparison.indices[p]
    return any(i == t or j == g for t, g in (comparison.indices[q] for q in group))


class _MatrixBytes:
    """What pairs need beside layers and gradients, each as if it were alone."""

    def __init__(self, comparison: Comparison, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        self._comparison, self._layers = comparison, (xs, ys)
        self._known: dict[int, int | None] = {}

    def of(self, group: Sequence[int]) -> int | None:
        """Of some pairs together, at most; None if it is not known."""
        total = 0
        for p in group:
            if p not in self._known:
                self._known[p] = self._of_pair(p)
            each = self._known[p]
            if each is None:
                return None
            total += each
        return total

    def _of_pair(self, p: int) -> int | None:
        pair, indices = self._comparison.pairs[p], self._comparison.indices[p]
        distance = self._comparison.distance
        if isinstance(distance, GlobalBatch):
            # All processes must make the same calls, whatever the numbers of their samples.
            return None
        cost = dict(costs_of(distance, [pair], [indices], *self._layers)).get(0)
        if cost is None or cost.workspace_bytes is None:
            return None
        return cost.gram_bytes + cost.workspace_bytes


def batch_memory(
    comparison: Comparison, xs: Sequence[Tensor], ys: Sequence[Tensor], limit: int
) -> BatchMemory:
    """For layers of these shapes, on the meta device, compared in groups of at most `limit`."""
    held = {("target", i): x.nbytes for i, x in enumerate(xs)}
    held |= {("guide", j): y.nbytes for j, y in enumerate(ys)}
    activations, peak = sum(held.values()), 0
    known = True
    needed = _MatrixBytes(comparison, xs, ys)
    for group in pair_groups(comparison, xs, ys, limit):
        matrices = needed.of(group)
        known = known and matrices is not None
        targets = {comparison.indices[p][0] for p in group}
        repeated = {i for i in targets if ("gradient", i) in held}
        computed = sum(xs[i].nbytes for i in targets) + sum(xs[i].nbytes for i in repeated)
        peak = max(peak, sum(held.values()) + computed + (matrices or 0))
        later = comparison.indices[group[-1] + 1 :]
        still = {("target", i) for i, _ in later} | {("guide", j) for _, j in later}
        held |= {("gradient", i): xs[i].nbytes for i in targets}
        held = {key: size for key, size in held.items() if key[0] == "gradient" or key in still}
    return BatchMemory(activations, peak if known else None, sum(x.nbytes for x in xs))
