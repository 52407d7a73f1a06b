"""Which target layer is compared with which guide layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd

from pyguide.guidance.layers import unwrapped

__all__ = ["even_pairs", "hidden_layers", "is_candidate"]

_PARAMETRISED = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_POOLING = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)


def is_candidate(module: nn.Module) -> bool:
    """Whether "even" may pair the layer: parametrised, or adaptive pooling; no norm layer."""
    return isinstance(unwrapped(module), (*_PARAMETRISED, *_POOLING))


def hidden_layers(paths: Sequence[str], layers: Mapping[str, nn.Module]) -> list[str]:
    """Candidate layers in execution order, without the output layer.

    The output layer is the last parametrised one; what only pools its output goes too.
    """
    paths = [path for path in paths if is_candidate(layers[path])]
    while paths and isinstance(unwrapped(layers[paths[-1]]), _POOLING):
        paths.pop()
    return paths[:-1]


def even_pairs(target: Sequence[str], guide: Sequence[str]) -> list[tuple[str, str]]:
    """k = min(t, g) pairs spread evenly over both sequences, ends included.

    Pair i takes position round(i (t - 1) / (k - 1)) of t, halves up; a single pair takes
    the last of both. No layer is used twice.

    Examples
    --------
    >>> even_pairs(["a", "b", "c"], ["1", "2", "3", "4", "5"])
    [('a', '1'), ('b', '3'), ('c', '5')]
    """
    k = min(len(target), len(guide))
    if k == 1:
        return [(target[-1], guide[-1])]

    def position(i: int, count: int) -> int:
        return (2 * i * (count - 1) + k - 1) // (2 * (k - 1))

    return [(target[position(i, len(target))], guide[position(i, len(guide))]) for i in range(k)]
