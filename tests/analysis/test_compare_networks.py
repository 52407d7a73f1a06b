"""compare_networks against a float64 formula over kept activations; layers, data."""

from __future__ import annotations

import contextlib
import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

from pyguide import reference
from pyguide.analysis import compare_networks, layer_grams
from pyguide.ops.hsic import centered_grams


class Net(nn.Module):
    """Registers its layers in another order than it runs them, and calls one ReLU twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(16 * width, 3)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Dropout(), nn.Conv2d(width, width, 1))
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(2, width, 3, padding=1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(self.block(x))
        return self.fc(x.flatten(1))


LAYERS = ("conv", "norm", "relu:0", "block.0", "block.1", "relu:1", "fc")


class Layer(nn.Module):
    """Calls a function of its input; for layers with unusual outputs."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def _mlp(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 4))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(70, 2, 4, 4)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(40, 6)


def _activations(net: Net, x: Tensor) -> list[Tensor]:
    """Every layer's output in float64, in the order in which they run."""
    net = copy.deepcopy(net).double().eval()
    with torch.no_grad():
        conv = net.conv(x.double())
        norm = net.norm(conv)
        relu = norm.clamp(min=0)
        block = net.block[1](relu)
        last = block.clamp(min=0)
        return [conv, norm, relu, relu, block, last, net.fc(last.flatten(1))]


def _hsic(xs: list[Tensor], ys: list[Tensor], debiased: bool) -> Tensor:
    center = reference.u_center if debiased else reference.h_center
    ks, ms = ([center(x.flatten(1) @ x.flatten(1).T) for x in layers] for layers in (xs, ys))
    n = len(xs[0])
    inner = torch.stack([torch.stack([(k * m).sum() for m in ms]) for k in ks])
    return inner / (n * (n - 3) if debiased else (n - 1) ** 2)


def _expected(first: Net, second: Net, batches, debiased: bool) -> Tensor:
    pairs = [(_activations(first, x), _activations(second, x)) for x in batches]
    cross = sum(_hsic(xs, ys, debiased) for xs, ys in pairs)
    own, others = (sum(_hsic(p[i], p[i], debiased).diagonal() for p in pairs) for i in (0, 1))
    return cross / own.sqrt()[:, None] / others.sqrt()


@pytest.mark.parametrize("debiased", [True, False])
def test_every_layer_with_every_layer_in_the_order_in_which_they_run(images, debiased):
    first, second = Net(5), Net(3)
    found = compare_networks(
        first, second, [(x, None) for x in images.split(30)], debiased=debiased, names=("a", "b")
    )
    assert found.rows == found.columns == LAYERS
    assert found.row_shapes[0] == (5, 4, 4) and found.column_shapes[-1] == (3,)
    expected = _expected(first, second, images.split(30), debiased)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)
    assert (found.samples, found.batches, found.batch_size) == (70, 3, 30)
    assert (found.names, found.debiased, found.with_itself) == (("a", "b"), debiased, False)


def test_the_cuda_kernels_give_the_same(emulated, images):
    first, second = Net(5), Net(3)
    found = compare_networks(first, second, images.split(35))
    expected = _expected(first, second, images.split(35), True)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)


@pytest.mark.cuda
def test_networks_on_a_gpu(images):
    first, second = Net(5).cuda(), Net(3)  # inputs go to each network's own device
    found = compare_networks(first, second, images.split(35))
    expected = _expected(first.cpu(), second, images.split(35), True)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-3)
    assert found.values.device.type == "cpu"


def test_a_network_with_itself_runs_once_a_batch(images):
    net = Net(5)
    calls = []
    net.register_forward_hook(lambda *args: calls.append(args))
    found = compare_networks(net, data=images.split(35))
    assert len(calls) == 2 and found.with_itself
    expected = _expected(net, net, images.split(35), True)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)
    assert found.rows == found.columns == LAYERS


def test_networks_are_left_as_they_were(images):
    first, second = Net(5).train(), Net(3).eval()
    first.norm.eval()
    before = copy.deepcopy(first.state_dict())
    modes = [m.training for m in first.modules()]
    random = torch.get_rng_state()
    compare_networks(first, second, images.split(35))
    assert [m.training for m in first.modules()] == modes
    assert not any(m.training for m in second.modules())
    assert all(torch.equal(v, before[k]) for k, v in first.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    for module in (*first.modules(), *second.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_no_activation_outlives_its_use_in_the_forward_pass(images):
    outputs: list[weakref.ref] = []
    alive: list[int] = []

    def count(module, args, output):
        outputs.append(weakref.ref(output))
        alive.append(sum(ref() is not None for ref in outputs))

    net = nn.Sequential(*[nn.Conv2d(2, 2, 1) for _ in range(9)])
    for module in net:
        module.register_forward_hook(count)
    compare_networks(net, data=images.split(35))
    assert len(outputs) == 18
    assert max(alive) == 2  # a layer's input and output


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("block.*", ("block.0", "block.1")),
        (["fc", "conv"], ("conv", "fc")),
        (["relu"], ("relu:0", "relu:1")),
        (["relu:1", "**.conv", "block"], ("conv", "relu:1", "block")),
    ],
)
def test_layers_by_path_call_and_glob(images, layers, names):
    found = compare_networks(Net(5), data=[images], layers=layers)
    assert set(found.rows) == set(names)
    every = compare_networks(Net(5), data=[images], layers="**.*[!d]").rows
    assert found.rows == tuple(name for name in every if name in names)


def test_some_layers_of_a_network_with_others_of_it(images):
    net = Net(5)
    found = compare_networks(net, None, [images], layers="conv", second_layers=["fc", "norm"])
    assert (found.rows, found.columns) == (("conv",), ("norm", "fc"))
    expected = _expected(net, net, [images], True)[0, [1, 6]]
    torch.testing.assert_close(found.values[0], expected, rtol=0, atol=1e-5)


def test_networks_that_share_modules(rows):
    shared = nn.Linear(6, 8)
    first, second = nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Tanh())
    found = compare_networks(first, second, [rows])
    assert found.values.shape == (2, 2)
    assert found.values[0, 0].item() == pytest.approx(1, abs=1e-12)


def test_a_compiled_network_is_compared_eagerly(rows):
    net = _mlp()
    found = compare_networks(net, torch.compile(net, backend="eager"), [rows])
    assert found.columns == ("0", "1")
    assert found.values.diagonal().tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    "output",
    [
        lambda x: (x, None),
        lambda x: {"last_hidden_state": x, "pooled": x[:, :1]},
        lambda x: x.to(torch.bfloat16),
    ],
)
def test_outputs_that_stand_for_one_tensor(rows, output):
    net = nn.Sequential(nn.Linear(6, 8), Layer(output), Layer(lambda y: None))
    found = compare_networks(net, data=[rows])
    assert found.rows == ("0", "1")
    assert found.values[0, 1].item() == pytest.approx(1, abs=1e-4)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4)
        self.lengths = torch.tensor([5, 3, 4, 2, 5, 1])

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x, self.lengths, batch_first=True, enforce_sorted=False
        )
        return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


def test_padding_counts_as_an_average_sample():
    net, x = Padded(), torch.randn(6, 5, 3)
    other = nn.Sequential(nn.Flatten(), nn.Linear(15, 4))
    found = compare_networks(net, other, [x], second_layers="1")
    output = net(x).double()
    for t in range(5):
        valid = net.lengths > t
        output[~valid, t] = output[valid, t].mean(dim=0)
    expected = reference.cka(output, other(x).double(), debiased=True).item()
    assert found.values.item() == pytest.approx(expected, abs=1e-5)


def test_time_before_batch():
    net = nn.Sequential(nn.LSTM(3, 4))
    net.forward = lambda x: net[0](x.transpose(0, 1))
    x = torch.randn(8, 5, 3)
    found = compare_networks(net, data=[x])
    assert found.row_shapes == ((5, 4),)


@pytest.mark.parametrize(
    "batches",
    [
        lambda x: [(x, torch.zeros(40))],
        lambda x: [[x, torch.zeros(40)]],
        lambda x: [{"x": x, "scale": torch.tensor(2.0)}],
        lambda x: [((x, torch.tensor(2.0)), torch.zeros(40))],
        lambda x: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=20),
    ],
)
def test_batches_as_loaders_give_them(rows, batches):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.linear(scale * x)

    net = Scaled()
    found = compare_networks(net, data=batches(rows), max_samples=30)
    assert found.samples == 30
    assert found.row_shapes == ((3,),)
    assert found.values.item() == pytest.approx(1)


def test_max_samples_cuts_the_last_batch(images):
    first, second = Net(5), Net(3)
    read = []
    data = (read.append(i) or x for i, x in enumerate(images.split(20)))
    found = compare_networks(first, second, data, max_samples=35)
    assert read == [0, 1] and (found.samples, found.batches) == (35, 2)
    expected = _expected(first, second, [images[:20], images[20:35]], True)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)


def test_a_small_last_batch_is_left_out(rows):
    with pytest.warns(UserWarning, match="a batch of 2 samples was left out") as caught:
        found = compare_networks(_mlp(), data=rows[:22].split(10))
    assert caught[0].filename == __file__
    assert (found.samples, found.batches, found.batch_size) == (20, 2, 10)


def test_layers_without_variation_are_named(rows):
    net = _mlp(Layer(torch.zeros_like))
    found = compare_networks(net, data=[rows], second_layers="0")
    assert found.degenerate_rows == ("1", "2") and found.degenerate_columns == ()
    assert found.values[1:].tolist() == [[0.0], [0.0]]


def test_layers_without_the_batch_axis_are_left_out_by_default_only(rows):
    net = nn.Sequential(nn.Linear(6, 8), Layer(lambda x: x.T), Layer(lambda x: x.T), nn.Flatten())
    with pytest.warns(UserWarning, match=r"'1' \(8, 40\)") as caught:
        found = compare_networks(net, data=[rows])
    assert caught[0].filename == __file__
    assert found.rows == ("0", "2", "3")
    with pytest.raises(ValueError, match=r"layer '1' of the first network gave \(8, 40\) for a"):
        compare_networks(net, data=[rows], layers="1")


def test_an_output_that_is_its_input_is_multiplied_once(rows, monkeypatch):
    counted: list[int] = []

    def gram(layers, **options):
        counted.append(len(layers))
        return centered_grams(layers, **options)

    monkeypatch.setattr(layer_grams, "centered_grams", gram)
    found = compare_networks(_mlp(nn.Dropout(), nn.Identity()), data=[rows])
    assert found.rows == ("0", "1", "2", "3") and sum(counted) == 2
    assert found.values[0, :3].tolist() == pytest.approx([1, 1, 1])


def test_what_computes_a_weight_is_no_layer(rows):
    net = _mlp(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    assert compare_networks(net, data=[rows]).rows == ("0", "1", "2")
    assert compare_networks(net, data=[rows], layers="**").rows == ("0", "1", "2")


def test_a_network_that_catches_what_a_layer_raises(rows):
    net = _mlp(nn.Linear(99, 8))

    def forward(x: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError):
            net[1](x)
        return net[2](net[0](x))

    net.forward = forward
    assert compare_networks(net, data=rows.split(20)).rows == ("0", "2")


def test_progress(rows, capsys):
    calls = []
    compare_networks(_mlp(), data=rows.split(20), progress=lambda *done: calls.append(done))
    compare_networks(_mlp(), data=iter([rows]), progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2), (1, None)]
    compare_networks(_mlp(), data=rows.split(20), progress=True)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "layer9"}, ValueError, "the first network has no layer 'layer9'"),
        ({"layers": "9*"}, ValueError, r"no layer of the first network matches '9\*'"),
        ({"layers": []}, ValueError, "no layers of the first network are named"),
        ({"second_layers": ["0:1"]}, ValueError, "'0:1' of the second network was not called"),
        ({"layers": "3"}, ValueError, "'3' of the first network was not called"),
        ({"layers": "2"}, TypeError, "layer '2' of the first network gave NoneType: one tensor"),
        ({"device": "meta"}, ValueError, "the first network is on cpu, device is meta"),
        ({"max_samples": 3}, ValueError, "max_samples must be at least 4, got 3"),
        ({"data": []}, ValueError, "data gave no batch"),
        ({"data": torch.randn(40, 6)}, TypeError, r"data=inputs\.split\(256\)"),
        ({"data": None}, TypeError, "data must be an iterable of batches, got NoneType"),
        ({"data": ["text"]}, TypeError, "a batch of data must be a tensor .* got str"),
        ({"second": [1]}, TypeError, r"second must be a torch\.nn\.Module, got list; to compare"),
        ({"precision": "low"}, ValueError, "precision must be one of"),
    ],
)
def test_errors_say_what_to_do(rows, options, error, message):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Layer(lambda x: None), nn.Linear(2, 2))
    net.forward = lambda x: net[2](net[1](net[0](x)))
    arguments = {"data": [rows], **options}
    with pytest.raises(error, match=message):
        compare_networks(net, **{"second": _mlp(), **arguments})
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_that_changes_its_input_says_so(rows):
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 2))
    with pytest.raises(RuntimeError, match="the first network changed its input in place"):
        compare_networks(net, _mlp(), [rows])


def test_a_network_without_layers_says_so(rows):
    with pytest.raises(ValueError, match="no layer of the first network can be compared"):
        compare_networks(nn.Linear(6, 2), data=[rows])


@pytest.mark.parametrize("layers", [None, "**"])
def test_a_layer_that_is_not_called_in_every_batch(rows, layers):
    net = _mlp(nn.Dropout())
    net.forward = lambda x: net[2](net[1](net[0](x))) if x[0, 0] > 0 else net[2](net[0](x))
    batches = [rows.clone(), rows.clone()]
    batches[0][0, 0], batches[1][0, 0] = 1, -1
    with pytest.raises(RuntimeError, match="'1' of the first network was called 0 times in this"):
        compare_networks(net, data=batches, layers=layers)
