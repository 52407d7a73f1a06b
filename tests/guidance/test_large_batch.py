"""Large batches in two passes: the gradient of the whole batch, chunk by chunk."""

from __future__ import annotations

import contextlib
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyguide
from pyguide.guidance import Guidance, LargeBatch, Pair, schedules

N, CHUNK = 50, 12  # the last chunk has 2
PAIRS = [("hidden.0", "0"), ("hidden.1", "2")]


class Target(nn.Module):
    """Two hidden layers with what makes a second forward pass differ from the first."""

    def __init__(self, *, dropout=0.3, norm=True):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(6, 9), nn.Linear(9, 7)])
        self.norm = nn.BatchNorm1d(9) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(7, 3)

    def layers(self, x):
        first = self.hidden[0](x)
        second = self.hidden[1](self.dropout(self.norm(first).relu()))
        return first, second, self.out(second.tanh())

    def forward(self, x):
        return self.layers(x)[-1]


def networks(dtype=torch.float64, **options):
    torch.manual_seed(0)
    target = Target(**options).to(dtype)
    guide = nn.Sequential(nn.Linear(6, 11), nn.Tanh(), nn.Linear(11, 5), nn.Linear(5, 3)).to(dtype)
    return target, guide


def batch(dtype=torch.float64, n=N):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator, dtype=dtype)
    return x, torch.randint(3, (n,), generator=generator)


def mean_task(target):
    return lambda x, y: F.cross_entropy(target(x), y)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def in_one_graph(target, guide, x, y, *, weight=1.0, chunk=CHUNK, pairs=((0, 0), (1, 1))):
    """Loss and gradients with every chunk's graph held, and what the run leaves."""
    parts = [target.layers(part) for part in x.split(chunk)]
    layers = [torch.cat(layer) for layer in zip(*parts, strict=True)]
    with torch.no_grad():
        first = guide[0](x)
        guides = [first, guide[2](first.tanh())]
    distances = torch.stack([1 - pyguide.cka(layers[i], guides[j]) for i, j in pairs])
    loss = F.cross_entropy(layers[-1], y) + weight * distances.sum()
    loss.backward()
    return loss.detach(), distances.detach()


@pytest.mark.filterwarnings("ignore:the target has BatchNorm")
@pytest.mark.parametrize("chunk", [1, CHUNK, N, 3 * N])
@pytest.mark.parametrize("pairs", [PAIRS, [*PAIRS, ("hidden.0", "2")]])
def test_the_step_is_that_of_one_graph(chunk, pairs):
    norm = chunk > 2  # a BatchNorm layer in training mode refuses a chunk of one sample
    (target, guide), (other, _) = networks(norm=norm), networks(norm=norm)
    x, y = batch()
    indices = [(int(t[-1]), int(g) // 2) for t, g in pairs]
    torch.manual_seed(2)
    loss, distances = in_one_graph(other, guide, x, y, weight=0.7, chunk=chunk, pairs=indices)
    state = torch.get_rng_state()

    guidance = Guidance(target, guide, pairs, weight=0.7)
    torch.manual_seed(2)
    losses = LargeBatch(guidance, chunk).backward(mean_task(target), x, y)
    torch.testing.assert_close(losses.total, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(guidance.last, distances, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(target), gradients(other), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dict(target.named_buffers()), dict(other.named_buffers()))
    assert torch.equal(torch.get_rng_state(), state)
    assert losses.total == losses.task + losses.guidance


def test_random_numbers_go_on_after_those_of_the_first_pass():
    target, guide = networks(norm=False)
    x, y = batch()
    noisy = Guidance(target, guide, PAIRS, guide_transform=lambda x: x + torch.randn_like(x))
    torch.manual_seed(2)
    LargeBatch(noisy, CHUNK).backward(mean_task(target), x, y)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    for part in x.split(CHUNK):
        target(part), torch.randn_like(part)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_batch_statistics_it_is_the_step_of_the_whole_batch():
    (target, guide), (other, _) = networks(norm=False, dropout=0.0), networks(norm=False, dropout=0)
    x, y = batch()
    whole = Guidance(other, guide, PAIRS, distance="rsa")
    with whole.capture():
        logits = other(x)
    whole.total_loss(F.cross_entropy(logits, y), x).backward()
    guidance = Guidance(target, guide, PAIRS, distance="rsa")
    LargeBatch(guidance, CHUNK).backward(mean_task(target), x, y)
    torch.testing.assert_close(gradients(target), gradients(other), rtol=1e-8, atol=1e-12)
    logs, expected = guidance.log_dict(), whole.log_dict()
    assert list(logs) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(logs[name]), torch.as_tensor(value))


def test_each_networks_forward_passes_are_counted():
    target, guide = networks(norm=False)
    calls = {"target": 0, "guide": 0}
    for name, model in (("target", target), ("guide", guide)):
        model.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    x, y = batch()
    guidance = Guidance(target, guide, PAIRS, release_at=1)
    large = LargeBatch(guidance, CHUNK)
    large.backward(mean_task(target), x, y)
    assert calls == {"target": 10, "guide": 5}
    guidance.step()
    losses = large.backward(mean_task(target), x, y)
    assert calls == {"target": 15, "guide": 5}  # released
    assert losses.guidance == 0 and losses.total == losses.task


def test_a_released_step_is_gradient_accumulation():
    (target, guide), (other, _) = networks(norm=False, dropout=0), networks(norm=False, dropout=0)
    x, y = batch()
    LargeBatch(Guidance(target, guide, PAIRS, release_at=0), CHUNK).backward(
        mean_task(target), x, y
    )
    F.cross_entropy(other(x), y).backward()
    torch.testing.assert_close(gradients(target), gradients(other))


@pytest.mark.parametrize("weight", [1.0, schedules.linear(0.0, 1.0, 10)])
def test_while_aligning_the_task_has_no_gradient(weight):
    target, guide = networks(norm=False)
    x, y = batch()
    guidance = Guidance(target, guide, PAIRS, weight=weight, align_only=5)
    losses = LargeBatch(guidance, CHUNK).backward(mean_task(target), x, y)
    assert losses.total == losses.guidance and losses.task > 0
    after = target.out.weight.grad
    assert after is None if guidance.weight else not after.any()
    assert guidance.weight == 0 or target.hidden[0].weight.grad.any()


@pytest.mark.filterwarnings("ignore:the target has BatchNorm")
def test_without_grad_mode_there_are_losses_only():
    target, guide = networks()
    x, y = batch()
    before = {name: value.clone() for name, value in target.named_buffers()}
    large = LargeBatch(Guidance(target.eval(), guide, PAIRS), CHUNK)
    with torch.no_grad():
        losses = large.backward(mean_task(target), x, y)
    layers = target.layers(x)
    cka = [pyguide.cka(layers[0], guide[0](x)), pyguide.cka(layers[1], guide[:3](x))]
    expected = F.cross_entropy(layers[2], y) + sum(1 - c for c in cka)
    torch.testing.assert_close(losses.total, expected.detach())
    assert all(p.grad is None for p in target.parameters())
    torch.testing.assert_close(dict(target.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:the target has BatchNorm")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_with_a_scaler(dtype):
    (target, guide), (other, _) = networks(torch.float32), networks(torch.float32)
    x, y = batch(torch.float32)
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype):
        in_one_graph(other, guide, x, y)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    large = LargeBatch(Guidance(target, guide, PAIRS), CHUNK, scaler=scaler)
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype):
        large.backward(mean_task(target), x, y)
    # The biases of the hidden layers have none: neither CKA nor BatchNorm sees a shift.
    for name in ("hidden.0.weight", "hidden.1.weight", "out.weight", "out.bias"):
        found, expected = gradients(target)[name] / 2.0**12, gradients(other)[name]
        assert (found - expected).norm() <= 0.02 * expected.norm(), name


def test_activations_may_be_kept_in_bfloat16():
    (target, guide), (other, _) = networks(torch.float32), networks(torch.float32)
    x, y = batch(torch.float32)
    steps = [
        LargeBatch(Guidance(model, guide, PAIRS), N, storage_dtype=dtype, storage_device="cpu")
        for model, dtype in ((target, torch.bfloat16), (other, None))
    ]
    for large, model in zip(steps, (target, other), strict=True):
        torch.manual_seed(2)
        large.backward(mean_task(model), x, y)
    for name in ("hidden.0.weight", "hidden.1.weight"):
        found, expected = gradients(target)[name], gradients(other)[name]
        assert 0 < (found - expected).norm() <= 0.02 * expected.norm(), name
    assert torch.equal(target.out.weight.grad, other.out.weight.grad)


def test_padding_is_that_of_the_whole_batch():
    torch.manual_seed(0)
    target, guide = nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(15, 2)), nn.Linear(4, 3)
    target, guide = target.double(), nn.Sequential(guide, nn.Flatten()).double()
    x, y = torch.randn(N, 3, 4, dtype=torch.float64), torch.randint(2, (N,))
    mask = torch.rand(N, 3) < 0.7
    pairs = [Pair("0", "0"), Pair("0", "0", per_token=True)]
    guidance = Guidance(target, guide, pairs)
    with guidance.capture():
        logits = target(x)
    guidance.total_loss(F.cross_entropy(logits, y), x, mask=mask).backward()
    expected = {name: p.grad.clone() for name, p in target.named_parameters()}
    target.zero_grad()
    LargeBatch(guidance, CHUNK).backward(mean_task(target), x, y, mask=mask)
    torch.testing.assert_close(gradients(target), expected)


def test_all_chunks_but_the_last_run_without_synchronisation():
    target, guide = networks(norm=False)
    entered = []

    @contextlib.contextmanager
    def no_sync():
        entered.append(torch.is_grad_enabled())
        yield

    x, y = batch()
    LargeBatch(Guidance(target, guide, PAIRS), CHUNK, no_sync=no_sync).backward(
        mean_task(target), x, y
    )
    assert entered == [False, True, True, True, True]  # the first pass, and 4 of 5 chunks


def test_batch_norm_is_warned_of_once():
    target, guide = networks()
    x, y = batch()
    large = LargeBatch(Guidance(target, guide, PAIRS), CHUNK)
    with pytest.warns(UserWarning, match="their chunk of 12 samples"):
        large.backward(mean_task(target), x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large.backward(mean_task(target), x, y)
        LargeBatch(Guidance(target, guide, PAIRS), N).backward(mean_task(target), x, y)


def test_bad_input_is_named_before_any_work():
    target, guide = networks(norm=False)
    x, y = batch()
    guidance = Guidance(target, guide, PAIRS)
    with pytest.raises(ValueError, match="chunk_size"):
        LargeBatch(guidance, 0)
    large = LargeBatch(guidance, CHUNK)
    with pytest.raises(ValueError, match=r"first axis, got the shapes \(50, 6\), \(49,\)"):
        large.backward(mean_task(target), x, y[1:])
    with pytest.raises(ValueError, match="of no tensor"):
        large.backward(mean_task(target), None)
    with pytest.raises(ValueError, match="no samples"):
        large.backward(mean_task(target), x[:0], y[:0])
    with pytest.raises(ValueError, match="first axis"):
        large.backward(mean_task(target), x, torch.tensor(1.0))


def test_chunks_of_other_shapes_are_refused():
    target = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    guide = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    guidance = Guidance(target, guide, [("0", "0")])
    x = torch.randn(8, 6, 4)
    lengths = iter([6, 5])
    task = lambda x: target(x[:, : next(lengths)]).mean()  # noqa: E731
    with pytest.raises(
        ValueError, match=r"layer '0' gave \(4, 5, 5\) for a chunk, expected \(4, 6"
    ):
        LargeBatch(guidance, 4).backward(task, x)


def test_dicts_and_tuples_are_split():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x, scale):
            return self.layer(x) * scale

    torch.manual_seed(0)
    target, guide = Named(), Named()
    guidance = Guidance(target, guide, [("layer", "layer")])
    x, _ = batch(torch.float32)
    inputs = {"x": x, "scale": 2.0}
    losses = LargeBatch(guidance, CHUNK).backward(
        lambda kwargs, others: (target(**kwargs) * others[0]).mean(), inputs, (x[:, :1], "kept")
    )
    expected = (
        (target(**inputs) * x[:, :1]).mean() + 1 - pyguide.cka(target.layer(x), guide.layer(x))
    )
    torch.testing.assert_close(losses.total, expected.detach())


@pytest.mark.parametrize("source", ["random", "numpy"])
def test_random_numbers_of_python_and_numpy_are_those_of_the_first_pass(source):
    """The gradient is that of one graph with the numbers that were drawn."""
    numpy = pytest.importorskip("numpy") if source == "numpy" else None
    draw = random.random if numpy is None else numpy.random.random
    drawn = []

    class Scaled(nn.Module):
        def forward(self, x):
            drawn.append(draw())
            return x * drawn[-1]

    (target, guide), (other, _) = networks(norm=False, dropout=0), networks(norm=False, dropout=0)
    target.norm = Scaled()
    x, y = batch()
    large = LargeBatch(Guidance(target, guide, PAIRS), CHUNK)
    large.backward(mean_task(target), x, y)
    chunks = len(drawn) // 2
    assert drawn[:chunks] == drawn[chunks:] and len(set(drawn)) == chunks == 5
    factors = iter(drawn)

    class Again(nn.Module):
        def forward(self, x):
            return x * next(factors)

    other.norm = Again()
    in_one_graph(other, guide, x, y)
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(gradients(target)[name], gradient, rtol=1e-9, atol=1e-12)
    # And the generator goes on behind them.
    assert draw() not in drawn


def test_lazy_layers_that_have_seen_no_batch():
    for affine in (True, False):
        norm = nn.LazyBatchNorm1d(affine=affine)
        target = nn.Sequential(nn.Linear(6, 9), norm, nn.Linear(9, 3)).double()
        guide = nn.Sequential(nn.Linear(6, 5), nn.LazyBatchNorm1d(), nn.Linear(5, 3)).double()
        x, y = batch()
        large = LargeBatch(Guidance(target, guide, [("0", "0"), ("1", "1")]), N)
        with pytest.raises(ValueError, match="lazy layers that have seen no batch"):
            large.backward(mean_task(target), x, y)
        target.eval()(x[:1])
        target.train()
        # The guide's may be lazy: it runs once.
        assert large.backward(mean_task(target), x, y).total.isfinite()
        assert target[1].num_batches_tracked == 1
