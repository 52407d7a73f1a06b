"""What is predicted of a way to compare is what is sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyguide.distances import LinearCKA
from pyguide.distributed import GlobalBatch
from pyguide.distributed.costs import feature_space_cost, gather_cost, sample_space_cost

N = 32  # samples a process
WIDE, NARROW = [64, 128, 256], [4, 8, 12]
PAIRS = [(0, 0), (1, 0)]


def layers(features: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Two of a target, with gradient, and one of a guide."""
    return [torch.randn(N, d, dtype=dtype).requires_grad_(i < 2) for i, d in enumerate(features)]


def sent(rank: int, features: list[int], dtype: torch.dtype, debiased: bool) -> Any:
    distance = GlobalBatch(LinearCKA(debiased=debiased))
    x, y, guide = layers(features, dtype)
    distance([x, y], [guide], pairs=PAIRS).sum().backward()
    return dict(distance.sent)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("features", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("processes", [2, 4])
def test_bytes(features, dtype, debiased, processes, worlds):
    made = layers(features, dtype)
    pairs = [(0, 2), (1, 2)]
    by_samples = sample_space_cost(made, pairs, processes)
    by_features = feature_space_cost(made, pairs, processes, debiased)
    assert (by_features.sent < by_samples.sent) == (features == NARROW)
    expected = by_features if features == NARROW else by_samples
    for counted in worlds[processes].run(sent, features, dtype, debiased):
        assert counted.get("all_to_all", 0) == expected.all_to_all
        assert counted.get("all_reduce", 0) == pytest.approx(expected.all_reduce, abs=16)
        assert counted.get("all_gather", 0) == expected.all_gather == 0


def test_dealing_out_features_sends_and_computes_a_share():
    """Bytes of activations do not grow with the processes; those of gathering do."""
    made = layers([65536, 65536, 65536], torch.float32)
    pairs = [(0, 2), (1, 2)]
    one, two, many = (sample_space_cost(made, pairs, w) for w in (1, 2, 64))
    assert one.sent == 0
    activations = sum(x.nbytes for x in made) + sum(x.nbytes for x in made[:2])
    assert two.all_to_all == activations // 2
    assert many.all_to_all == activations * 63 // 64
    assert gather_cost(made, pairs, 64).all_gather == 63 * sum(x.nbytes for x in made)
    # N^2 d / W multiply-adds, N = n W.
    assert many.multiply_adds == pytest.approx(64 * one.multiply_adds)
    assert gather_cost(made, pairs, 64).multiply_adds == pytest.approx(64 * many.multiply_adds)
