"""Small networks, and guidance of one step, that the tests of this folder share."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from pyguide import reference
from pyguide.guidance import Guidance

N = 40


def mlp(*widths: int, inplace: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), nn.ReLU(inplace=inplace)]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def guided(target: nn.Module, guide: nn.Module, x: torch.Tensor, **options: object) -> float:
    guidance = Guidance(target, guide, **options)
    with guidance.capture():
        target(x)
    return guidance.loss(x).item()


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return 1 - reference.cka(x.double(), y.double()).item()


class Layer(nn.Module):
    """Calls a function of its input; for layers with unusual outputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Pick(nn.Module):
    """Two Linears with a layer between whose output is unpacked by `pick`."""

    def __init__(self, layer: nn.Module, pick):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.layer = layer
        self.last = nn.Linear(6, 3)
        self.pick = pick

    def forward(self, x):
        return self.last(self.pick(self.layer(self.first(x))))
