"""The networks: sizes, names, shapes and the layers that are paired. Paper's sizes on `meta`."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import nn

from pyguide import Guidance, list_layers
from pyguide.experiments.networks import (
    DeepFCN,
    ResNet,
    ResNet1D,
    WideFCN,
    deep_convnet,
    resnet18,
    resnet50,
)

PIXELS = 3 * 224 * 224


def on_meta(build, **options):
    with torch.device("meta"):
        return build(**options)


def images(n=2):
    return torch.zeros(n, 3, 224, 224, device="meta")


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def hidden(build, x):
    """Paths of the layers that "even" pairs: all of them with a network of the same kind."""
    pairs = Guidance(on_meta(build), on_meta(build), pairs="even", example=x).pairs
    return [target for target, _ in pairs]


def fcn_parameters(widths, classes):
    """Linear with bias, BatchNorm's weight and bias, and the output layer."""
    blocks = sum(a * b + b + 2 * b for a, b in pairwise(widths))
    return blocks + widths[-1] * classes + classes


def test_deep_fcn_counts_its_output_layer():
    model = DeepFCN(50)
    kinds = Counter(type(module) for module in model.modules())
    assert kinds[nn.Linear] == 50
    assert kinds[nn.BatchNorm1d] == kinds[nn.ReLU] == kinds[nn.Dropout] == 49
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert parameters(model) == fcn_parameters([40] + 49 * [128], 10)
    assert model(torch.randn(4, 40)).shape == (4, 10)
    for depth in (-1, 0, 1):
        with pytest.raises(ValueError, match=f"at least 2, got {depth}"):
            DeepFCN(depth)


def test_the_small_deep_fcn_draws_its_weights_layer_by_layer():
    torch.manual_seed(5)
    linears = [nn.Linear(40, 128), nn.Linear(128, 128), nn.Linear(128, 10)]
    torch.manual_seed(5)
    state = DeepFCN(3).state_dict()
    for path, linear in zip(("0.0", "1.0", "2"), linears, strict=True):
        assert torch.equal(state[f"{path}.weight"], linear.weight)
        assert torch.equal(state[f"{path}.bias"], linear.bias)


def test_the_papers_deep_fcn():
    model = on_meta(DeepFCN.paper)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linears] == [2048] + 47 * [1024] + [1000]
    assert parameters(model) == fcn_parameters([PIXELS, 2048] + 47 * [1024], 1000) == 359_788_520
    kinds = [type(m) for m in model[0]]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert model(images()).shape == (2, 1000)
    assert len(hidden(DeepFCN.paper, images())) == 48


def test_the_papers_wide_fcn():
    model = on_meta(WideFCN)
    assert parameters(model) == fcn_parameters([PIXELS] + 3 * [8192], 1000)
    assert [type(m) for m in model[0]] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert not any(isinstance(m, nn.Dropout) for m in model.modules())
    assert model(images()).shape == (2, 1000)
    assert hidden(WideFCN, images()) == ["0.0", "1.0", "2.0"]


def batch_norm(name):
    return [
        f"{name}.{part}"
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]


def torchvision_keys(stages, convolutions, first_downsample):
    """The keys of torchvision's ResNet-18 and -50, in its order."""
    keys = ["conv1.weight", *batch_norm("bn1")]
    for stage, blocks in enumerate(stages, start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for i in range(1, convolutions + 1):
                keys += [f"{name}.conv{i}.weight", *batch_norm(f"{name}.bn{i}")]
            if block == 0 and stage >= first_downsample:
                keys += [f"{name}.downsample.0.weight", *batch_norm(f"{name}.downsample.1")]
    return [*keys, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("build", "count", "keys"),
    [
        (resnet18, 11_689_512, torchvision_keys([2, 2, 2, 2], 2, first_downsample=2)),
        (resnet50, 25_557_032, torchvision_keys([3, 4, 6, 3], 3, first_downsample=1)),
    ],
)
def test_resnets_have_torchvisions_parameters_and_keys(build, count, keys):
    model = on_meta(build)
    assert parameters(model) == count
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("build", [resnet18, resnet50, deep_convnet])
def test_resnet_shapes_at_224_pixels(build):
    model, widths = on_meta(build), [64, 128, 256, 512]
    shapes = {layer.path: layer.shape for layer in list_layers(model, images())}
    assert shapes["conv1"] == (2, 64, 112, 112)
    assert shapes["maxpool"] == (2, 64, 56, 56)
    expansion = 1 if build is resnet18 else 4
    for i, (width, side) in enumerate(zip(widths, [56, 28, 14, 7], strict=True), start=1):
        assert shapes[f"layer{i}"] == (2, expansion * width, side, side)
    assert shapes["avgpool"] == (2, expansion * 512, 1, 1)
    assert shapes["fc"] == (2, 1000)


def test_a_bottleneck_strides_on_its_3x3_convolution():
    shapes = {layer.path: layer.shape for layer in list_layers(on_meta(resnet50), images())}
    assert shapes["layer2.0.conv1"] == (2, 128, 56, 56)
    assert shapes["layer2.0.conv2"] == (2, 128, 28, 28)


@pytest.mark.parametrize(("build", "count"), [(resnet18, 21), (resnet50, 54), (deep_convnet, 50)])
def test_layers_that_guide(build, count):
    layers = hidden(build, images())
    assert len(layers) == count
    assert (layers[0], layers[-1]) == ("conv1", "avgpool")


@pytest.mark.parametrize("rule", ["even", "paper"])
def test_the_deep_fcn_gets_21_pairs_from_resnet18(rule):
    target, guide = on_meta(DeepFCN.paper), on_meta(resnet18)
    pairs = Guidance(target, guide, pairs=rule, example=images()).pairs
    assert len(pairs) == 21
    assert pairs[0] == ("0.0", "conv1") and pairs[-1] == ("47.0", "avgpool")


def test_the_deep_convnet_is_resnet50_without_shortcuts():
    plain, residual = on_meta(deep_convnet), on_meta(resnet50)
    expected = [key for key in residual.state_dict() if "downsample" not in key]
    assert list(plain.state_dict()) == expected
    # The downsample branches: a 1 x 1 convolution and a BatchNorm at each stage's first block.
    channels = [(64, 256), (256, 512), (512, 1024), (1024, 2048)]
    branches = sum(a * b + 2 * b for a, b in channels)
    assert parameters(plain) == parameters(residual) - branches == 22_780_456


def small(**options):
    return ResNet([1, 1], width=4, classes=5, in_channels=1, stem="small", **options)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_only_shortcuts_pass_the_input_around_silent_convolutions(bottleneck):
    x = torch.rand(3, 1, 8, 8)
    for skips in (True, False):
        model = small(bottleneck=bottleneck, skips=skips)
        for name, parameter in model.named_parameters():
            if name.startswith("layer") and "downsample" not in name:
                nn.init.zeros_(parameter)
        pooled = []
        model.avgpool.register_forward_hook(lambda *args, kept=pooled: kept.append(args[2]))
        model(x)
        assert pooled[0].any() == skips


def test_the_small_stem_keeps_the_image_size():
    layers = list_layers(small(), torch.zeros(2, 1, 9, 9))
    shapes = {layer.path: layer.shape for layer in layers}
    assert shapes["conv1"] == (2, 4, 9, 9)
    assert shapes["layer1"] == (2, 4, 9, 9)
    assert shapes["layer2"] == (2, 8, 5, 5)
    assert "maxpool" not in shapes


def test_convolutions_are_drawn_by_fan_out_or_as_torch_draws_them():
    for he_init in (True, False):
        conv = ResNet([1], width=128, he_init=he_init).layer1[0].conv1
        fan = 128 * 9
        expected = math.sqrt(2 / fan) if he_init else math.sqrt(1 / (3 * fan))
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, "at least one block"),
        ({"stages": [2, 0]}, "at least one block"),
        ({"stages": [1], "stem": "cifar"}, "expected 'imagenet' or 'small', got 'cifar'"),
    ],
)
def test_resnet_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_a_plain_network_is_guided_by_its_residual_twin():
    target, guide, x = small(skips=False), small(), torch.randn(64, 1, 8, 8)
    guidance = Guidance(target, guide, example=x)
    with guidance.capture():
        target(x)
    guidance.loss(x).backward()
    assert target.conv1.weight.grad.any()
    assert guide.conv1.weight.grad is None


def test_the_plain_1d_twin_has_the_same_convolutions_without_those_on_shortcuts():
    x = torch.randn(8, 40)
    residual, plain = (ResNet1D(width=4, stages=(2, 3, 2), skips=s) for s in (True, False))
    shapes = [
        [v.shape for name, v in m.state_dict().items() if "shortcut" not in name]
        for m in (residual, plain)
    ]
    assert shapes[0] == shapes[1] and len(plain.state_dict()) < len(residual.state_dict())
    convolutions = [m for m in plain.modules() if isinstance(m, torch.nn.Conv1d)]
    assert len(convolutions) == 15 and plain(x).shape == (8, 10)
    # Without shortcuts, a block whose weights are 0 gives no signal.
    for network, passes in [(residual, True), (plain, False)]:
        for block in network.blocks:
            torch.nn.init.zeros_(block.conv2.weight)
        first, second = network.eval()(x), network(2 * x)
        assert torch.equal(first, second) != passes


@pytest.mark.parametrize("stages", [(), (1, 0)])
def test_1d_stages_have_blocks(stages):
    with pytest.raises(ValueError, match="at least one block a stage"):
        ResNet1D(stages=stages)


def test_the_1d_guide_gives_14_pairs_from_the_first_to_the_last_hidden_layer():
    x = torch.randn(8, 40)
    guidance = Guidance(DeepFCN(50), ResNet1D(), example=x)
    assert len(guidance.pairs) == 14
    assert guidance.pairs[0] == ("0.0", "stem") and guidance.pairs[-1] == ("48.0", "pool")
