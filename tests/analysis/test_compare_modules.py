"""compare_networks with modules, outputs and wrappers that are out of the ordinary."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import Tensor, nn

from pyguide import list_layers
from pyguide.analysis import compare_networks

ONE = pytest.approx(1, abs=1e-6)


class Layer(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(20, 6)


def test_a_network_that_was_made_in_inference_mode(rows):
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        net[1].running_var.fill_(4)
    found = compare_networks(net, data=[rows])
    assert found.rows == ("0", "1", "2") and found.values[0, 1].item() > 0.9
    assert [layer.path for layer in list_layers(net, rows)] == ["0", "1", "2"]


def test_buffers_of_inference_mode_are_put_back(rows):
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                self.calls += 1
            return super().forward(x)

    with torch.inference_mode():
        net = nn.Sequential(Counting())
    buffer = net[0].calls
    compare_networks(net, data=rows.split(10))
    assert net[0].calls is buffer and buffer.item() == 0


def test_two_layers_of_one_name_are_refused_in_the_first_batch(rows):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.add_module("a:0", nn.Linear(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.get_submodule("a:0")(self.a(self.a(x)))

    read = []
    data = (read.append(x) or x for x in rows.split(5))
    with pytest.raises(ValueError, match="two layers 'a:0', a call of 'a' and the module 'a:0'"):
        compare_networks(Net(), data=data)
    assert len(read) == 1
    assert compare_networks(Net(), data=[rows], layers="a:0").rows == ("a:0",)
    assert compare_networks(Net(), data=[rows], layers="a").rows == ("a:0", "a:1")


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (lambda x: x.to(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
        (lambda x: x[:, :0], r"has no features: shape \(20, 0\)"),
        (lambda x: x.to_sparse(), "must be a dense tensor"),
    ],
)
@pytest.mark.parametrize("layers", [None, "*"])
def test_what_cannot_be_compared_is_left_out_unless_it_is_named(rows, output, why, layers):
    net = nn.Sequential(nn.Linear(6, 8), Layer(output), Layer(lambda x: rows))
    message = rf"layers of the first network were left out: layer '1' (must|has).*{why[-9:]}"
    with pytest.warns(UserWarning, match=message) as caught:
        found = compare_networks(net, data=[rows], layers=layers)
    assert caught[0].filename == __file__
    assert found.rows == ("0", "2")
    with pytest.raises((TypeError, ValueError), match=f"layer '1' of the first network .*{why}"):
        compare_networks(net, data=[rows], layers=["*", "1"])


class Attention(nn.Module):
    """Its out_proj is never called: MultiheadAttention uses its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


def test_a_glob_takes_those_that_are_called():
    x = torch.randn(10, 5, 6)
    found = compare_networks(Attention(), data=[x], layers="**")
    assert found.rows == ("attention",) and found.row_shapes == ((5, 6),)
    for layers in ("attention.out_proj", ["attention", "**.out_*"]):
        with pytest.raises(ValueError, match=r"out_\S+ of the first network was not called"):
            compare_networks(Attention(), data=[x], layers=layers)


def test_a_glob_leaves_out_what_gives_no_tensor(rows):
    net = nn.Sequential(nn.Linear(6, 8), Layer(lambda x: x.long()), Layer(lambda x: None))
    assert compare_networks(net, data=[rows], layers="*").rows == ("0",)
    with pytest.raises(ValueError, match=r"no layer .*none of those that match was called and"):
        compare_networks(net, data=[rows], layers="[12]")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_says_so(rows):
    inner = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    for scripted in (torch.jit.script(inner), torch.jit.trace(inner, rows)):
        with pytest.raises(TypeError, match=r"the second network is TorchScript, .* compare the"):
            compare_networks(inner, scripted, [rows])
    net = nn.Sequential(torch.jit.script(inner), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match="TorchScript cannot be observed: '0'$") as caught:
        assert compare_networks(net, data=[rows]).rows == ("1",)
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match=r"'0.1' of the first network is TorchScript, .* around"):
        compare_networks(net, data=[rows], layers=["0.1", "1"])


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", [nn.DataParallel, nn.parallel.DistributedDataParallel])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_is_not_divided_among_replicas(rows, wrapper, compiled, process_group, monkeypatch):
    """DataParallel's layers would see parts of it, and other processes are not there."""
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    wrapped = wrapper(net)
    if compiled:
        wrapped = torch.compile(wrapped, backend="eager")
    monkeypatch.setattr(wrapper, "forward", lambda *args: pytest.fail("was called"))
    found = compare_networks(net, wrapped, [rows])
    assert found.columns == ("0", "1")
    assert found.values.diagonal().tolist() == [ONE, ONE]


def test_a_network_without_data_says_so(rows):
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2, device="meta"))
    with pytest.raises(ValueError, match="the first network is on meta, without data: load its"):
        compare_networks(net, data=[rows])


def test_any_mapping_is_keyword_arguments(rows):
    """Also for a network without parameters, whose inputs are not moved."""
    batch = collections.UserDict(input=rows)
    for given in (batch, (batch, None)):
        assert compare_networks(nn.Sequential(nn.Tanh()), data=[given]).samples == 20
