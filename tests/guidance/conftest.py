"""Data that the tests of guidance share."""

from __future__ import annotations

import pytest
import torch
from networks import N


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(1))
