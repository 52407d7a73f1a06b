"""What tests compare of trainings: weights, and how often a model ran."""

from __future__ import annotations

import torch
from torch import nn


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    state, other = model.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


class Forwards:
    """Counts the forward passes of a model."""

    def __init__(self, model: nn.Module):
        self.count = 0
        model.register_forward_pre_hook(self._add)

    def _add(self, *_) -> None:
        self.count += 1
