"""The loss of labels at positions, where the processes' shares have different numbers of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyguide.data.copy_paste import CopyPaste
from pyguide.data.tokens import IGNORED
from pyguide.experiments import copy_paste
from pyguide.experiments.harness.shares import Processes
from pyguide.experiments.networks import RNN

SETTING = copy_paste.EXPERIMENT.scales["default"]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Short sequences first, so that the first process has fewer labels."""
    x, y = CopyPaste(1, 9).sample(12, torch.Generator().manual_seed(0))
    order = (y != IGNORED).sum(dim=1).argsort()
    return x[order], y[order]


def step(rank: int) -> Any:
    """Number of labels, the own loss, and the gradients that an optimizer would see."""
    torch.manual_seed(0)
    model: nn.Module = RNN(13, 10, width=6, layers=2).double()
    processes = Processes()
    own = processes.share.of(12)
    x, y = (tensor[own] for tensor in batch())
    wrapped = processes.wrapped(model)
    loss = SETTING.task_loss(wrapped(x), y)
    loss.backward()
    return int((y != IGNORED).sum()), loss.item(), [p.grad for p in model.parameters()]


def test_gradients_are_those_of_one_process(worlds):
    count, loss, gradients = step(0)
    results = worlds[2].run(step)
    counts = [own for own, _, _ in results]
    assert sum(counts) == count and counts[1] > 2 * counts[0]
    torch.testing.assert_close(sum(own for _, own, _ in results) / 2, loss)
    for _, _, theirs in results:
        for own, expected in zip(theirs, gradients, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-9)
