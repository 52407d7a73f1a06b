"""Rules that choose pairs of layers from the order in which two networks run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd

from pyguide.capture.paths import unwrapped
from pyguide.capture.sharding import layer_class

__all__ = [
    "even_layers",
    "even_pairs",
    "is_even_candidate",
    "is_paper_candidate",
    "paper_layers",
    "paper_pairs",
]

# (path, number of the call), in execution order.
Calls = Sequence[tuple[str, int]]

_PARAMETRISED = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_POOLING = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_PAPER = (
    nn.Conv2d,
    nn.Linear,
    nn.AdaptiveAvgPool2d,
    nn.LSTM,
    nn.RNN,
    nn.TransformerDecoderLayer,
    nn.LayerNorm,
    nn.MultiheadAttention,
)


def is_even_candidate(module: nn.Module) -> bool:
    """Whether "even" may pair the layer: parametrised, or adaptive pooling; no norm layer."""
    return isinstance(unwrapped(module), (*_PARAMETRISED, *_POOLING))


def even_layers(calls: Calls, layers: Mapping[str, nn.Module]) -> list[str]:
    """Layers that are called once, in execution order, without the output layer.

    The output layer is the last parametrised one; what only pools its output goes too.
    """
    repeated = {path for path, call in calls if call}
    paths = [path for path, _ in calls if path not in repeated]
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


def is_paper_candidate(module: nn.Module) -> bool:
    """Whether the code of arXiv 2410.20035 compares the layer: these classes, no subclasses."""
    return layer_class(unwrapped(module)) in _PAPER


def paper_layers(calls: Calls, layers: Mapping[str, nn.Module]) -> list[str]:
    """Every call of a layer, in execution order, without the last one, the logits."""
    repeated = {path for path, call in calls if call}
    return [f"{path}:{call}" if path in repeated else path for path, call in calls][:-1]


def paper_pairs(
    target: Sequence[str], guide: Sequence[str], *, every_guide_layer: bool
) -> list[tuple[str, str]]:
    """Guide layer i of l with target layer min(round(i (t - 1) / (l - 1)), t - 1) of t.

    Halves go to the even number, as in the paper's code. Where several guide layers fall on
    one target layer, that code overwrites all but the last; the paper's text has them all.

    Examples
    --------
    >>> paper_pairs(["a", "b"], ["1", "2", "3"], every_guide_layer=False)
    [('a', '2'), ('b', '3')]
    >>> paper_pairs(["a", "b"], ["1", "2", "3"], every_guide_layer=True)
    [('a', '1'), ('a', '2'), ('b', '3')]
    """
    t, guides = len(target), len(guide)
    step = (t - 1) / (guides - 1) if guides > 1 else 1
    pairs = [(target[min(round(i * step), t - 1)], path) for i, path in enumerate(guide)]
    return pairs if every_guide_layer else list(dict(pairs).items())
