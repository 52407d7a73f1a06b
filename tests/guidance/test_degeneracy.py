"""Warnings about degenerate layers."""

from __future__ import annotations

import warnings

import pytest
import torch
from guided_training import Net, batch, step
from torch import nn

from pyguide.guidance import Guidance


def test_a_degenerate_layer_is_named_once():
    x, y = batch()
    target, guide = Net(2, 12, seed=0, dropout=0.0), Net(2, 9, seed=1)
    nn.init.zeros_(target.blocks[1][0].weight)
    pairs = [("blocks.0.0", "head"), ("blocks.1.0", "blocks.0.0")]
    guidance = Guidance(target, guide, pairs=pairs)
    with pytest.warns(UserWarning, match="degenerate") as caught:
        step(target, guidance, x, y)
    assert len(caught) == 1
    assert "'blocks.1.0'" in str(caught[0].message)
    assert "'blocks.0.0'" in str(caught[0].message)
    assert guidance.last[1].item() == 1.0
    assert all(torch.isfinite(p.grad).all() for p in target.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(target, guidance, x, y)


@pytest.mark.cuda
def test_a_degenerate_layer_on_a_gpu_is_named_without_a_sync():
    x, y = (t.cuda() for t in batch())
    target, guide = Net(2, 12, seed=0, dropout=0.0).cuda(), Net(2, 9, seed=1).cuda()
    nn.init.zeros_(target.blocks[1][0].weight)
    guidance = Guidance(target, guide, pairs=[("blocks.1.0", "blocks.0.0")])
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(target, guidance, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    with pytest.warns(UserWarning, match=r"'blocks\.1\.0'.*degenerate"):
        step(target, guidance, x, y)
