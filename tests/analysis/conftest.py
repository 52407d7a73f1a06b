"""A result to save, load and draw."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pyguide.analysis.similarity import LayerSimilarity


@pytest.fixture
def new_similarity():
    """Makes a result of the given values, with other fields changed."""

    def make(values: list[list[float]] | Tensor, **changes: Any) -> LayerSimilarity:
        values = torch.as_tensor(values, dtype=torch.float64)
        rows, columns = values.shape
        similarity = LayerSimilarity(
            values=values,
            rows=tuple(f"layer{i}.conv" for i in range(rows)),
            columns=tuple(f"blocks.{i}" for i in range(columns)),
            row_shapes=((8, 4, 4),) * rows,
            column_shapes=((16,),) * columns,
            names=("cnn", "mlp"),
            samples=1000,
            batches=4,
            debiased=True,
            degenerate_rows=(),
            degenerate_columns=(),
            batch_size=256,
        )
        return dataclasses.replace(similarity, **changes)

    return make
