"""What is captured of a target's forward pass, what is refused, and what is left behind."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from pyguide import reference
from pyguide.guidance import Guidance, list_layers

N = 40


def _mlp(*widths: int, inplace: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), nn.ReLU(inplace=inplace)]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(1))


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def _guided(target: nn.Module, guide: nn.Module, x: torch.Tensor, **options: object) -> float:
    guidance = Guidance(target, guide, **options)
    with guidance.capture():
        target(x)
    return guidance.loss(x).item()


def _distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return 1 - reference.cka(x.double(), y.double()).item()


class _Layer(nn.Module):
    """Calls a function of its input; for layers with unusual outputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class _Pick(nn.Module):
    """Two Linears with a layer between whose output is unpacked by `pick`."""

    def __init__(self, layer: nn.Module, pick):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.layer = layer
        self.last = nn.Linear(6, 3)
        self.pick = pick

    def forward(self, x):
        return self.last(self.pick(self.layer(self.first(x))))


# --- the window ---------------------------------------------------------------------------


def test_only_the_window_records(x):
    target, guide = _mlp(6, 8, 3), _mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    target(x + 100)
    with guidance.capture():
        target(x)
    target(x - 100)
    expected = _distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_loss_needs_its_own_capture(x):
    target = _mlp(6, 8, 3)
    guidance = Guidance(target, _mlp(6, 5, 3), pairs=[("0", "0")])
    with pytest.raises(RuntimeError, match="needs a capture"):
        guidance.loss(x)
    with guidance.capture():
        target(x)
        with pytest.raises(RuntimeError, match="after the `with"):
            guidance.loss(x)
        with pytest.raises(RuntimeError, match="already open"), guidance.capture():
            pass
    guidance.loss(x)
    with pytest.raises(RuntimeError, match="needs a capture"):
        guidance.loss(x)


def test_an_exception_in_the_window_leaves_a_clean_state(x):
    target, guide = _mlp(6, 8, 3), _mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])

    kept: list[weakref.ref] = []

    def fail(module, args, output):
        kept.append(weakref.ref(output))
        raise ZeroDivisionError

    failing = target[0].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), guidance.capture():
        target(x + 100)
    failing.remove()
    gc.collect()
    assert kept[0]() is None
    with pytest.raises(RuntimeError, match="needs a capture"):
        guidance.loss(x)
    target(x + 100)
    with guidance.capture():
        target(x)
    expected = _distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_a_new_window_replaces_an_unused_one(x):
    target, guide = _mlp(6, 8, 3), _mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    with guidance.capture():
        target(x + 100)
    with guidance.capture():
        target(x)
    expected = _distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_loss_frees_the_activations(x):
    target = _mlp(6, 8, 3)
    kept: list[weakref.ref] = []
    target[0].register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    guidance = Guidance(target, _mlp(6, 5, 3), pairs=[("0", "0")])
    with guidance.capture():
        target(x)
    assert kept[0]() is not None
    loss = guidance.loss(x)
    loss.backward()
    del loss
    gc.collect()
    assert kept[0]() is None


def test_hooks_do_not_change_outputs(x):
    target = _mlp(6, 8, 3)
    before = target(x)
    guidance = Guidance(target, _mlp(6, 5, 3))
    with guidance.capture():
        inside = target(x)
    assert torch.equal(before, inside)
    assert torch.equal(before, target(x))


# --- outputs that are not one tensor, or not the layer's own any more -----------------------


def test_tuple_output_stands_for_its_first_tensor():
    torch.manual_seed(0)
    x = torch.randn(N, 5, 6)
    target = _Pick(nn.LSTM(6, 6, batch_first=True), lambda output: output[0][:, -1])
    guide = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    loss = _guided(target, guide, x, pairs=[("layer", "0")])
    sequence, _ = target.layer(target.first(x))
    assert loss == pytest.approx(_distance(sequence, guide[0](x)), abs=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "attention", "transformer"])
def test_time_first_layers_are_compared_by_sample(kind):
    torch.manual_seed(0)
    layer, call = {
        "lstm": (nn.LSTM(6, 6), lambda m, x: m(x)[0]),
        "attention": (nn.MultiheadAttention(6, 2), lambda m, x: m(x, x, x)[0]),
        "transformer": (nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0), lambda m, x: m(x)),
    }[kind]

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            return self.last(call(self.layer, x.transpose(0, 1)))

    x = torch.randn(N, 5, 6)
    target, guide = TimeFirst(), nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    loss = _guided(target, guide, x, pairs=[("layer", "0")])
    sequence = call(layer, x.transpose(0, 1)).transpose(0, 1)
    assert sequence.shape == (N, 5, 6)
    assert loss == pytest.approx(_distance(sequence, guide[0](x)), abs=1e-6)


@pytest.mark.parametrize(
    ("layer", "pick", "kind"),
    [
        (_Layer(lambda x: {"hidden": x}), lambda output: output["hidden"], "dict"),
        (_Layer(lambda x: ("text", x)), lambda output: output[1], "tuple"),
    ],
)
def test_output_without_a_tensor_raises(x, layer, pick, kind):
    target = _Pick(layer, pick)
    with pytest.raises(TypeError, match=f"'layer' of the target returned {kind}"):
        _guided(target, _mlp(6, 5, 3), x, pairs=[("layer", "0")])


def test_packed_sequence_raises():
    lstm = nn.LSTM(6, 6, batch_first=True)
    pack = _Layer(lambda x: pack_padded_sequence(x, [5] * len(x), batch_first=True))
    target = _Pick(nn.Sequential(pack, lstm), lambda output: output[1][0][0])
    with pytest.raises(TypeError, match="PackedSequence"):
        _guided(target, _mlp(6, 5, 3), torch.randn(N, 5, 6), pairs=[("layer.0", "0")])


def test_different_numbers_of_samples_raise_by_name(x):
    target = _Pick(_Layer(lambda x: x[: N // 2]), lambda output: output)
    with pytest.raises(ValueError, match=r"'layer' gave \(20, 6\) and guide layer '0' \(40, 5\)"):
        _guided(target, _mlp(6, 5, 3), x, pairs=[("layer", "0")])


@pytest.mark.parametrize("side", ["target", "guide"])
def test_inplace_change_after_capture_raises(x, side):
    models = {"target": _mlp(6, 8, 3), "guide": _mlp(6, 5, 3)}
    models[side] = _mlp(6, 8, 3, inplace=True)
    with pytest.raises(RuntimeError, match=rf"'0' of the {side} was modified in place.*inplace=F"):
        _guided(**models, x=x, pairs=[("0", "0")])
    loss = _guided(**models, x=x, pairs=[("1", "1")])
    activations = [m[1](m[0](x)) for m in models.values()]
    assert loss == pytest.approx(_distance(*activations), abs=1e-6)


def test_a_layer_called_twice_raises_by_name(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(6, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            return self.last(self.shared(self.shared(x)))

    with pytest.raises(RuntimeError, match="'shared' of the target was called more than once"):
        _guided(Twice(), _mlp(6, 5, 3), x, pairs=[("shared", "0")])


def test_two_target_forwards_in_a_window_raise(x):
    target = _mlp(6, 8, 3)
    guidance = Guidance(target, _mlp(6, 5, 3), pairs=[("0", "0")])
    with guidance.capture():
        target(x)
        target(x)
    with pytest.raises(RuntimeError, match="once a window"):
        guidance.loss(x)


def test_a_layer_that_did_not_run_raises_by_name(x):
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(RuntimeError, match="nothing was captured from 'unused' of the target"):
        _guided(Skips(), _mlp(6, 5, 3), x, pairs=[("used", "0"), ("unused", "0")])


# --- gradient -------------------------------------------------------------------------------


class _Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool | None):
        super().__init__()
        torch.manual_seed(0)
        self.block = _mlp(6, 8, 7, 7)
        self.last = nn.Linear(7, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        if self.use_reentrant is None:
            return self.last(self.block(x))
        return self.last(checkpoint(self.block, x, use_reentrant=self.use_reentrant))


def test_checkpointing_on_equals_off(x):
    gradients = []
    for use_reentrant in (None, False):
        target = _Checkpointed(use_reentrant)
        guidance = Guidance(target, _mlp(6, 5, 3, seed=1), pairs=[("block.0", "0")])
        with guidance.capture():
            logits = target(x)
        (logits.square().mean() + guidance.loss(x)).backward()
        gradients.append([p.grad for p in target.parameters()])
    for off, on in zip(*gradients, strict=True):
        torch.testing.assert_close(on, off)
    assert gradients[0][0].norm() > 1e-4


def test_reentrant_checkpointing_raises(x):
    target = _Checkpointed(use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"'block\.0' of the target has no gradient.*reentrant"):
        _guided(target, _mlp(6, 5, 3), x.requires_grad_(), pairs=[("block.0", "0")])


def test_a_checkpoint_wrapper_can_be_paired_as_a_whole(x):
    linear = nn.Linear(6, 8)
    wrapped = checkpoint_wrapper(linear, checkpoint_impl=CheckpointImpl.REENTRANT)
    guide = _mlp(6, 5, 3)
    guidance = Guidance(nn.Sequential(wrapped, nn.Linear(8, 3)), guide, pairs=[("0", "0")])
    with guidance.capture():
        guidance.target(x.requires_grad_())
    loss = guidance.loss(x)
    loss.backward()
    assert loss.item() == pytest.approx(_distance(linear(x), guide[0](x)), abs=1e-6)
    assert linear.weight.grad.norm() > 1e-4


def test_frozen_layers_raise_with_the_remedy(x):
    target, guide = _mlp(6, 8, 7, 3), _mlp(6, 5, 4, 3, seed=1)
    target[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"'0' of the target.*frozen.*pairs as a list"):
        _guided(target, guide, x)
    loss = _guided(target, guide, x, pairs=[("2", "2")])
    assert loss == pytest.approx(_distance(target[:3](x), guide[:3](x)), abs=1e-6)


def test_no_gradient_raises_only_while_grad_is_enabled(x):
    target, guide = _mlp(6, 8, 3), _mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    with guidance.capture(), torch.no_grad():
        target(x)
    with pytest.raises(RuntimeError, match="no_grad"):
        guidance.loss(x)
    expected = _distance(target[0](x), guide[0](x))
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            with guidance.capture():
                target(x)
            loss = guidance.loss(x)
        assert not loss.requires_grad
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    target.requires_grad_(False)
    with guidance.capture():
        target(x)
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


# --- copies, compilation and export -----------------------------------------------------------


def test_a_deepcopy_does_not_record(x):
    target, guide = _mlp(6, 8, 3), _mlp(6, 5, 3, seed=1)
    guidance = Guidance(target, guide, pairs=[("0", "0")])
    early = copy.deepcopy(target)
    with guidance.capture():
        target(x)
        early(x + 100)
        # The target's activations, which cannot be copied, are held by now.
        copy.deepcopy(target)(x + 100)
    expected = _distance(target[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_guidance_itself_cannot_be_copied(duplicate):
    guidance = Guidance(_mlp(6, 8, 3), _mlp(6, 5, 3))
    with pytest.raises(TypeError, match="make one for the copied networks"):
        duplicate(guidance)


def test_a_hooked_target_can_be_pickled(x):
    target = _mlp(6, 8, 3)
    guidance = Guidance(target, _mlp(6, 5, 3), pairs=[("0", "0")])
    with guidance.capture():
        target(x)
    loaded = pickle.loads(pickle.dumps(target))
    assert torch.equal(loaded(x), target(x))
    buffer = io.BytesIO()
    torch.save(target, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), target(x))
    guidance.loss(x)


def test_compiled_target_captures_with_one_graph(x):
    target, guide = _mlp(6, 8, 3), _mlp(6, 5, 3, seed=1)
    counter = CompileCounter()
    compiled = torch.compile(target, backend=counter, fullgraph=True)
    guidance = Guidance(compiled, guide, pairs=[("0", "0")])
    expected = _distance(target[0](x), guide[0](x))
    for _ in range(3):
        with guidance.capture():
            compiled(x)
        loss = guidance.loss(x)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        loss.backward()
    assert target[0].weight.grad.norm() > 1e-4
    assert counter.frame_count == 1


def test_compiled_target_stops_returning_what_is_no_longer_captured(x):
    outputs: list[int] = []

    def backend(graph, inputs):
        outputs.append(len(graph.graph.output_node().args[0]))
        return graph.forward

    torch._dynamo.reset()
    target, guide = _mlp(6, 8, 8, 8, 8, 3), _mlp(6, 5, 3, seed=1)
    compiled = torch.compile(target, backend=backend, fullgraph=True)
    guidance = Guidance(compiled, guide)
    for _ in range(3):
        with guidance.capture():
            compiled(x)
        guidance.loss(x)
    guidance.release()
    for _ in range(2):
        with guidance.capture():
            compiled(x)
    assert outputs == [6, 2, 1]


def test_compiled_target_keeps_the_output_from_an_inplace_change(x):
    target, guide = _mlp(6, 8, 3, inplace=True), _mlp(6, 5, 3, seed=1)
    compiled = torch.compile(target, backend="aot_eager", fullgraph=True)
    loss = _guided(compiled, guide, x, pairs=[("0", "0")])
    assert loss == pytest.approx(_distance(target[0](x), guide[0](x)), abs=1e-6)


class _Compiled(nn.Module):
    """A network whose code torch.compile caches for the class."""

    def __init__(self):
        super().__init__()
        self.net = _mlp(6, 8, 3)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("pairs", [[("net.0", "0")], "even"])
@pytest.mark.parametrize("early", ["itself", "another of its class", "itself, released"])
def test_a_target_compiled_too_early_raises_until_reset(x, early, pairs):
    torch.compiler.reset()
    model, guide = _Compiled(), _mlp(6, 5, 3, seed=1)
    target = torch.compile(model, backend="eager", fullgraph=True)
    if early == "itself":
        target(x)
    elif early == "another of its class":
        torch.compile(_Compiled(), backend="eager", fullgraph=True)(x)
    guidance = Guidance(target, guide, pairs=pairs)
    if early == "itself, released":
        state = guidance.state_dict()
        guidance.release()
        target(x)
        guidance.load_state_dict(state)

    with guidance.capture():
        target(x)
    with pytest.raises(RuntimeError, match=r"nothing was captured.*call torch\.compiler\.reset"):
        guidance.loss(x)
    torch.compiler.reset()
    with guidance.capture():
        target(x)
    expected = _distance(model.net[0](x), guide[0](x))
    assert guidance.loss(x).item() == pytest.approx(expected, abs=1e-6)


def test_export_while_attached_and_after(x):
    target = _mlp(6, 8, 3).eval()
    guidance = Guidance(target, _mlp(6, 5, 3), pairs=[("0", "0")])
    with torch.no_grad():
        assert torch.equal(torch.export.export(target, (x,)).module()(x), target(x))
        guidance.release()
        assert torch.equal(torch.export.export(target, (x,)).module()(x), target(x))


# --- list_layers --------------------------------------------------------------------------------


class _Zoo(nn.Module):
    """Registered in another order than it runs; a repeated call; a tuple; a dict; a draw."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.relu = nn.ReLU()
        self.block = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.wrap = _Layer(lambda x: {"x": x})
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.block[1].running_mean = self.block[1].running_mean + 1
        h = self.relu(self.relu(self.block(x + torch.rand(()))))
        h, _ = self.lstm(h[:, None].double().float())
        return self.last(self.wrap(h[:, -1])["x"])


def test_list_layers_in_execution_order(x):
    layers = [(i.path, i.type, i.shape, i.dtype, i.call) for i in list_layers(_Zoo(), x)]
    f = torch.float32
    assert layers == [
        ("block.0", "Linear", (N, 8), f, 0),
        ("block.1", "BatchNorm1d", (N, 8), f, 0),
        ("block", "Sequential", (N, 8), f, 0),
        ("relu", "ReLU", (N, 8), f, 0),
        ("relu", "ReLU", (N, 8), f, 1),
        ("lstm", "LSTM", (N, 1, 8), f, 0),
        ("last", "Linear", (N, 3), f, 0),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_list_layers_leaves_no_trace(x, fails):
    model = _Zoo().train()
    model.block[0].eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    objects = dict(model.named_buffers())
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError):
            list_layers(model, torch.zeros(N, 5))
    else:
        list_layers(model, x)
    assert [module.training for module in model.modules()] == modes
    for name, buffer in model.named_buffers():
        assert buffer is objects[name]
        assert torch.equal(buffer, buffers[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert _hooks(model) == 0
    assert torch.is_grad_enabled()


def test_list_layers_takes_several_arguments(x):
    model = nn.Bilinear(6, 6, 3)
    outer = nn.Module()
    outer.inner = model
    outer.forward = lambda a, b: model(a, b)
    assert [i.path for i in list_layers(outer, (x, x))] == ["inner"]
    assert [i.path for i in list_layers(outer, {"a": x, "b": x})] == ["inner"]


def test_list_layers_of_a_compiled_model_that_has_run(x):
    model = _mlp(6, 8, 3).eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    assert list_layers(compiled, x) == list_layers(model, x)
    assert [i.path for i in list_layers(model, x)] == ["0", "1", "2"]
