"""The target and the guide."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from pyguide.experiments.networks import DeepFCN, ResNet1D
from pyguide.guidance import Guidance


def test_deep_fcn_counts_its_output_layer():
    model = DeepFCN(50)
    kinds = Counter(type(module) for module in model.modules())
    assert kinds[nn.Linear] == 50
    assert kinds[nn.BatchNorm1d] == kinds[nn.ReLU] == kinds[nn.Dropout] == 49
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1}
    by_hand = (40 * 128 + 128) + 48 * (128 * 128 + 128) + 49 * 2 * 128 + (128 * 10 + 10)
    assert sum(p.numel() for p in model.parameters()) == by_hand
    assert model(torch.randn(4, 40)).shape == (4, 10)
    with pytest.raises(ValueError, match="at least 2"):
        DeepFCN(1)


def test_the_guide_gives_14_pairs_from_the_first_to_the_last_hidden_layer():
    x = torch.randn(8, 40)
    guidance = Guidance(DeepFCN(50), ResNet1D(), example=x)
    assert len(guidance.pairs) == 14
    assert guidance.pairs[0] == ("0.0", "stem") and guidance.pairs[-1] == ("48.0", "pool")
