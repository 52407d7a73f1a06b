"""CKA of many layers over a whole data set, batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyguide.ops.hsic import HSIC, CenteredGram, centered_grams, cka_of, hsic, least_samples
from pyguide.ops.inputs import check_layers, check_precision

__all__ = ["StreamingCKA", "batch_hsic", "is_too_small"]


# How many layers xs and ys have; None is no ys.
Counts = tuple[int, int | None]


def batch_hsic(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor] | None,
    expected: Counts | None,
    *,
    debiased: bool,
    precision: str | None,
) -> HSIC | None:
    """HSIC of one batch; None, with a warning, if it has too few samples for the estimator."""
    check_layers([("xs[]", xs), ("ys[]", () if ys is None else ys)], min_samples=0)
    if len(xs) == 0 or (ys is not None and len(ys) == 0):
        raise ValueError("xs and ys must hold at least one layer each, got an empty list")
    check_counts((len(xs), None if ys is None else len(ys)), expected)
    if is_too_small(xs[0].size(0), debiased, stacklevel=4):
        return None
    grams = centered_grams([*xs, *(ys or ())], debiased=debiased, precision=precision)
    others = None if ys is None else grams[len(xs) :]
    return hsic(grams[: len(xs)], others, debiased=debiased)


def check_counts(given: Counts, expected: Counts | None) -> None:
    """Raise unless there are as many layers as in the batches before."""
    if expected is not None and given != expected:
        raise ValueError(
            f"expected {_described(*expected)} as in every batch, got {_described(*given)}"
        )


def _described(xs: int, ys: int | None) -> str:
    return f"{xs} layers xs and {'no' if ys is None else ys} layers ys"


def is_too_small(n: int, debiased: bool, *, stacklevel: int) -> bool:
    """Whether a batch of n samples must be left out; warns if so."""
    least = least_samples(debiased)
    if n >= least:
        return False
    warnings.warn(
        f"a batch of {n} samples was left out: the {'debiased' if debiased else 'biased'} "
        f"estimator needs at least {least}",
        stacklevel=stacklevel,
    )
    return True


class StreamingCKA:
    """Linear CKA of every layer of one network with every layer of another over many batches.

    With K and L the Gram matrices of two layers over one batch of n samples::

        CKA = sum HSIC(K, L) / sqrt(sum HSIC(K, K) sum HSIC(L, L))

    summed in float64 over the batches; ``HSIC(K, L) = <K°, L°> / (n (n - 3))`` with U-centring
    (debiased; Song et al. 2012) or ``<K°, L°> / (n - 1)^2`` with H-centring (Gretton et al. 2005).
    This is minibatch CKA (Nguyen et al. 2021). The debiased HSIC of a random batch has that of
    the whole data as its expectation whatever the batch size; the biased one has not, and its
    CKA grows as batches shrink. No activation or Gram matrix is kept between batches.

    Parameters
    ----------
    debiased : bool
        The debiased estimator, for batches of at least 4 samples; else the biased one, for at
        least 2. Smaller batches are left out with a warning.
    precision : {"highest", "high", "medium"}, optional
        How GPUs multiply float32 features, see :func:`pyguide.cka_pairs`.

    Notes
    -----
    A layer without variation in a batch adds nothing to its sums; if it has none in any batch,
    its CKA is 0. NaN in an input gives NaN. Nothing is clamped.

    Examples
    --------
    >>> import torch, pyguide
    >>> from pyguide.analysis import StreamingCKA
    >>> x, y = torch.randn(64, 10), torch.randn(64, 3, 4)
    >>> streaming = StreamingCKA()
    >>> for batch in (slice(0, 32), slice(32, 64)):
    ...     streaming.update([x[batch], y[batch]])
    >>> streaming.compute().shape, streaming.samples
    (torch.Size([2, 2]), 64)
    >>> one = StreamingCKA(debiased=False)
    >>> one.update([x], [x, y])
    >>> torch.allclose(one.compute().float(), pyguide.cka_matrix([x], [x, y]), atol=1e-6)
    True
    """

    def __init__(self, *, debiased: bool = True, precision: str | None = None) -> None:
        check_precision(precision)
        self.debiased = debiased
        self.precision = precision
        self.reset()

    def reset(self) -> None:
        """Forget every batch."""
        self._sums: HSIC | None = None
        self._self_comparison = False
        #: Samples and batches that were counted.
        self.samples = 0
        self.batches = 0

    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None = None) -> None:
        """Count one batch.

        Parameters
        ----------
        xs, ys : sequence of Tensor, each (n, ...)
            The same layers in every call; n may differ from call to call. ``ys`` is ``xs`` by
            default. Types as in :func:`pyguide.cka_pairs`; gradients are not recorded.

        Raises
        ------
        TypeError, ValueError
            Before any work: as :func:`pyguide.cka_pairs`, or if the number of layers is not that
            of the calls before.
        """
        found = batch_hsic(xs, ys, self._counts, debiased=self.debiased, precision=self.precision)
        if found is not None:
            self._add(found, xs[0].size(0), 1, ys is None)

    def update_grams(
        self, xs: Sequence[CenteredGram], ys: Sequence[CenteredGram] | None = None
    ) -> None:
        """Count one batch by the centred Gram matrices of its layers, of the same estimator."""
        check_counts((len(xs), None if ys is None else len(ys)), self._counts)
        found = hsic(xs, ys, debiased=self.debiased)
        self._add(found, xs[0].matrix.size(0), 1, ys is None)

    def compute(self) -> Tensor:
        """The CKA matrix of the batches so far, (L1, L2) float64, on their device.

        Raises
        ------
        RuntimeError
            If no batch was counted.
        """
        return cka_of(self._counted())

    def degenerate(self) -> tuple[Tensor, Tensor]:
        """Which xs and which ys had no variation in any batch: (L1,) and (L2,) bool."""
        _, first, second = self._counted()
        return first == 0, second == 0

    def merge(self, other: StreamingCKA) -> None:
        """Add the batches of another, of a shard of the data say.

        Raises
        ------
        ValueError
            If the other has another estimator or another number of layers.
        """
        if other.debiased != self.debiased:
            raise ValueError(
                f"cannot merge debiased={other.debiased} into debiased={self.debiased}: HSIC of "
                "different estimators cannot be added"
            )
        if other._sums is not None and other._counts is not None:
            check_counts(other._counts, self._counts)
            self._add(other._sums, other.samples, other.batches, other._self_comparison)

    def state_dict(self) -> dict[str, Any]:
        """Everything that was counted: tensors and numbers, for ``torch.save``."""
        return {
            "debiased": self.debiased,
            "samples": self.samples,
            "batches": self.batches,
            "self_comparison": self._self_comparison,
            "sums": None if self._sums is None else self._sums._asdict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, in place of what was counted here.

        Raises
        ------
        ValueError
            If the state is of the other estimator.
        """
        if state["debiased"] != self.debiased:
            raise ValueError(
                f"the state has debiased={state['debiased']}, this object {self.debiased}"
            )
        self.samples, self.batches = state["samples"], state["batches"]
        self._self_comparison = state["self_comparison"]
        self._sums = None if state["sums"] is None else HSIC(**state["sums"])

    def _add(self, found: HSIC, samples: int, batches: int, self_comparison: bool) -> None:
        if self._sums is None:
            self._sums = found
        else:
            device = self._sums.cross.device
            self._sums = self._sums.plus(HSIC(*(t.to(device) for t in found)))
        self._self_comparison = self_comparison
        self.samples += samples
        self.batches += batches

    def _counted(self) -> HSIC:
        if self._sums is None:
            raise RuntimeError(
                "no batch was counted: call update() with a batch of at least "
                f"{least_samples(self.debiased)} samples first"
            )
        return self._sums

    @property
    def _counts(self) -> Counts | None:
        if self._sums is None:
            return None
        rows, columns = self._sums.cross.shape
        return rows, None if self._self_comparison else columns
