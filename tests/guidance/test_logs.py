"""What guidance logs."""

from __future__ import annotations

import pytest
import torch
from guided_training import Net, batch

from pyguide.guidance import Guidance


def test_logs():
    x, _ = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    pairs = [("blocks.0.0", "head"), ("blocks.1.0", "blocks.0.0")]
    guidance = Guidance(target, guide, pairs=pairs, distance="debiased_cka", weight=3.0)
    assert guidance.last is None
    assert guidance.log_dict() == {}
    with guidance.capture():
        target(x)
    loss = guidance.loss(x)
    logs = guidance.log_dict()
    assert list(logs) == [
        "guidance/loss",
        "guidance/debiased_cka/blocks.0.0~head",
        "guidance/debiased_cka/blocks.1.0~blocks.0.0",
    ]
    assert all(isinstance(v, torch.Tensor) and v.shape == () for v in logs.values())
    assert not any(v.requires_grad for v in logs.values())
    values = [v.item() for v in logs.values()]
    assert values[0] == loss.item() == pytest.approx(3 * sum(values[1:]), rel=1e-6)
    assert guidance.last.tolist() == values[1:]
