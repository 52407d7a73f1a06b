"""CKA over a data set as a metric of torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyguide.analysis.streaming import batch_hsic
from pyguide.ops.hsic import HSIC, cka_of
from pyguide.ops.inputs import check_precision

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError("CKAMetric needs torchmetrics: pip install torchmetrics") from error

__all__ = ["CKAMetric"]


class CKAMetric(Metric):
    """:class:`pyguide.analysis.StreamingCKA` as a ``torchmetrics.Metric``.

    Its states are sums, so batches, merged metrics and processes (synchronised by
    torchmetrics) give what one pass over all the data gives.

    Parameters
    ----------
    rows, columns : int
        How many layers `xs` and `ys` of :meth:`update` have. Without `columns` the layers are
        compared with each other, and there is no `ys`.
    debiased, precision
        As of :class:`pyguide.analysis.StreamingCKA`.
    **kwargs
        As of ``torchmetrics.Metric``.

    Examples
    --------
    >>> import torch
    >>> from pyguide.analysis.torchmetrics import CKAMetric
    >>> metric = CKAMetric(rows=1, columns=2)
    >>> x, y = torch.randn(32, 10), torch.randn(32, 3, 4)
    >>> metric.update([x], [2 * x + 1, y])
    >>> metric.compute().shape
    torch.Size([1, 2])
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    cross: Tensor
    first: Tensor
    second: Tensor
    samples: Tensor

    def __init__(
        self,
        rows: int,
        columns: int | None = None,
        *,
        debiased: bool = True,
        precision: str | None = None,
        **kwargs: Any,
    ) -> None:
        for name, count in (("rows", rows), ("columns", columns)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        check_precision(precision)
        super().__init__(**kwargs)
        self.rows = rows
        self.columns = columns
        self.debiased = debiased
        self.precision = precision
        count = rows if columns is None else columns
        for name, shape in (("cross", (rows, count)), ("first", (rows,)), ("second", (count,))):
            zeros = torch.zeros(shape, dtype=torch.float64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")
        self.add_state("samples", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None = None) -> None:
        """Count one batch; see :meth:`pyguide.analysis.StreamingCKA.update`."""
        expected = (self.rows, self.columns)
        found = batch_hsic(xs, ys, expected, debiased=self.debiased, precision=self.precision)
        if found is not None:
            self.cross, self.first, self.second = self._sums().plus(found)
            self.samples += xs[0].size(0)

    def compute(self) -> Tensor:
        """The CKA matrix, (rows, columns) float64; NaN if no batch was counted."""
        values = cka_of(self._sums())
        return values.masked_fill(self.samples == 0, math.nan)

    def _sums(self) -> HSIC:
        return HSIC(self.cross, self.first, self.second)
