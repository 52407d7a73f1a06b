"""StreamingCKA: sums of HSIC over batches, against formulas that are written another way."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor

import pyguide
from pyguide.analysis import StreamingCKA
from pyguide.ops import hsic as hsic_of_grams

BOTH = pytest.mark.parametrize("debiased", [True, False])


def _hsic(x: Tensor, y: Tensor, debiased: bool) -> float:
    """Equation 5 of Song et al. (2012), and tr(KHLH)/(n - 1)^2 of Gretton et al. (2005)."""
    n = len(x)
    k, m = (t.double().flatten(1) @ t.double().flatten(1).T for t in (x, y))
    if not debiased:
        h = torch.eye(n, dtype=torch.float64) - 1 / n
        return (torch.trace(k @ h @ m @ h) / (n - 1) ** 2).item()
    k, m = (t - t.diag().diag() for t in (k, m))
    total = torch.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2))
    return ((total - 2 / (n - 2) * (k @ m).sum()) / (n * (n - 3))).item()


def _ratio_of_sums(batches: list[tuple[Tensor, Tensor]], debiased: bool) -> float:
    xy, xx, yy = (
        sum(_hsic(batch[i], batch[j], debiased) for batch in batches)
        for i, j in ((0, 1), (0, 0), (1, 1))
    )
    return xy / (xx * yy) ** 0.5


def _streamed(batches, debiased: bool = True) -> StreamingCKA:
    streaming = StreamingCKA(debiased=debiased)
    for batch in batches:
        streaming.update(*batch)
    return streaming


@BOTH
def test_batches_of_any_size_give_the_ratio_of_sums(related_layers, debiased):
    x, y = related_layers(90, [7, 30])
    batches = list(zip(x.split([40, 30, 20]), y.split([40, 30, 20]), strict=True))
    streaming = _streamed([([a], [b]) for a, b in batches], debiased)
    assert streaming.compute().item() == pytest.approx(_ratio_of_sums(batches, debiased), abs=1e-12)
    assert (streaming.samples, streaming.batches) == (90, 3)


@BOTH
def test_one_batch_is_cka_matrix(backend, related_layers, debiased):
    x, y, z = (t.float().to(torch.get_default_device()) for t in related_layers(40, [12, 24, 60]))
    images = y.reshape(40, 2, 3, 4).to(memory_format=torch.channels_last)
    xs, ys = [x, images, z[:, ::2].bfloat16()], [z.half(), x[:, 3]]
    for layers in ((xs, ys), (xs,)):
        values = _streamed([layers], debiased).compute()
        expected = pyguide.cka_matrix(*layers, debiased=debiased)
        assert values.dtype is torch.float64 and values.device == x.device
        torch.testing.assert_close(values.float(), expected, rtol=0, atol=1e-6)


def test_all_subsets_of_the_data_give_the_debiased_value_of_the_whole(related_layers):
    x, y = related_layers(7, [3, 5], signals=2)
    subsets = [list(rows) for rows in itertools.combinations(range(7), 5)]
    whole = pyguide.cka(x, y, debiased=True).item()
    streamed = _streamed([([x[rows]], [y[rows]]) for rows in subsets]).compute().item()
    mean = sum(pyguide.cka(x[rows], y[rows], debiased=True).item() for rows in subsets) / 21
    assert streamed == pytest.approx(whole, abs=1e-12)
    assert abs(mean - whole) > 1e-3


@pytest.mark.parametrize(("debiased", "published"), [(False, 0.55761), (True, 0.51346)])
def test_published_values(debiased, published):
    numpy = pytest.importorskip("numpy")
    generator = numpy.random.RandomState(1337)
    x = generator.randn(100, 10)
    y = x + generator.randn(100, 10)
    streaming = _streamed([([torch.from_numpy(x)], [torch.from_numpy(y)])], debiased)
    assert streaming.compute().item() == pytest.approx(published, abs=5e-6)


@BOTH
def test_shards_merged_in_any_order_give_one_pass(related_layers, debiased):
    x, y = related_layers(60, [6, 9])
    batches = [([a], [b]) for a, b in zip(x.split(20), y.split(20), strict=True)]
    one_pass = _streamed(batches, debiased)
    for order in itertools.permutations(range(3)):
        merged = StreamingCKA(debiased=debiased)
        for i in order:
            merged.merge(_streamed(batches[i : i + 1], debiased))
        merged.merge(StreamingCKA(debiased=debiased))
        torch.testing.assert_close(merged.compute(), one_pass.compute(), rtol=0, atol=1e-14)
        assert (merged.samples, merged.batches) == (60, 3)


def test_a_merge_leaves_the_other_as_it_was(related_layers):
    x, y = related_layers(40, [6, 9])
    other = _streamed([([x[:20]], [y[:20]])])
    before = other.compute()
    merged = StreamingCKA()
    merged.merge(other)
    merged.update([x[20:]], [y[20:]])
    assert torch.equal(other.compute(), before)
    torch.testing.assert_close(
        merged.compute(), _streamed([([x[:20]], [y[:20]]), ([x[20:]], [y[20:]])]).compute()
    )


def test_a_saved_state_goes_on(related_layers, tmp_path):
    x, y = related_layers(40, [6, 9])
    torch.save(_streamed([([x[:20], y[:20]],)]).state_dict(), tmp_path / "state.pt")
    resumed = StreamingCKA()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.update([x[20:], y[20:]])
    whole = _streamed([([x[:20], y[:20]],), ([x[20:], y[20:]],)])
    assert torch.equal(resumed.compute(), whole.compute())
    assert (resumed.samples, resumed.batches) == (40, 2)
    with pytest.raises(ValueError, match="the state has debiased=True, this object False"):
        StreamingCKA(debiased=False).load_state_dict(whole.state_dict())


@BOTH
@pytest.mark.parametrize("offset", [0, 1000])
def test_float32_far_from_zero_keeps_its_digits(related_layers, debiased, offset):
    layers = [(x + offset).float() for x in related_layers(128, [300, 40])]
    batches = list(zip(*(x.split(64) for x in layers), strict=True))
    exact = [tuple(x.double() - offset for x in batch) for batch in batches]
    value = _streamed([([x], [y]) for x, y in batches], debiased).compute().item()
    assert value == pytest.approx(_ratio_of_sums(exact, debiased), abs=1e-5)


def test_tiny_activations_are_no_zeros(related_layers):
    x, y = (t.float() for t in related_layers(40, [8, 9]))
    scaled = _streamed([([1e-10 * x], [1e-10 * y])])  # Gram matrices of 1e-20
    torch.testing.assert_close(scaled.compute(), _streamed([([x], [y])]).compute())


@BOTH
def test_a_layer_without_variation_is_zero(related_layers, debiased):
    x, y = (t.float() for t in related_layers(40, [8, 9]))
    constant = torch.full((40, 3), 0.1)
    streaming = _streamed([([x, constant], [y, x]), ([x, constant], [x, y])], debiased)
    assert streaming.compute()[1].tolist() == [0.0, 0.0]
    assert [flags.tolist() for flags in streaming.degenerate()] == [[False, True], [False, False]]


def test_orthogonal_samples_have_no_debiased_similarity(related_layers):
    # Their Gram matrix is all diagonal, but for rounding.
    (x,) = (t.float() for t in related_layers(40, [8]))
    orthogonal = torch.linalg.qr(torch.randn(40, 40)).Q
    streaming = _streamed([([x, orthogonal],), ([x, orthogonal],)])
    assert streaming.compute()[1].tolist() == [0.0, 0.0]
    assert streaming.degenerate()[0].tolist() == [False, True]


def test_a_batch_without_variation_adds_nothing(related_layers):
    x, y = (t.float() for t in related_layers(40, [8, 9]))
    constant = torch.full((20, 8), 0.1)
    batches = [([x[:20]], [y[:20]]), ([constant], [y[20:]]), ([x[20:]], [constant])]
    value = _streamed(batches).compute().item()
    xy = _hsic(x[:20], y[:20], True)
    xx = _hsic(x[:20], x[:20], True) + _hsic(x[20:], x[20:], True)
    yy = _hsic(y[:20], y[:20], True) + _hsic(y[20:], y[20:], True)
    assert value == pytest.approx(xy / (xx * yy) ** 0.5, abs=1e-6)


@BOTH
def test_nan_wins_over_everything(related_layers, debiased):
    x, y = (t.float() for t in related_layers(40, [8, 9]))
    broken = y.clone()
    broken[3, 2] = float("nan")
    constant = torch.ones(40, 2)
    values = _streamed([([x, constant], [y, broken]), ([x, constant], [y, y])], debiased).compute()
    assert values.isnan().tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(("debiased", "least"), [(True, 4), (False, 2)])
def test_too_small_batches_are_left_out_with_a_warning(related_layers, debiased, least):
    x, y = related_layers(40, [8, 9])
    streaming = _streamed([([x], [y])], debiased)
    before = streaming.compute()
    with pytest.warns(UserWarning, match=rf"a batch of {least - 1} samples was left out") as caught:
        streaming.update([x[: least - 1]], [y[: least - 1]])
    assert caught[0].filename == __file__
    assert torch.equal(streaming.compute(), before)
    assert (streaming.samples, streaming.batches) == (40, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        streaming.update([x[:least]], [y[:least]])


def test_nothing_counted_has_no_value():
    streaming = StreamingCKA()
    with pytest.warns(UserWarning, match="left out"):
        streaming.update([torch.randn(3, 2)])
    with pytest.raises(RuntimeError, match=r"no batch was counted: .* at least 4 samples"):
        streaming.compute()
    streaming.update([torch.randn(8, 2)])
    streaming.reset()
    with pytest.raises(RuntimeError, match="no batch was counted"):
        streaming.compute()


def test_bad_calls_raise_before_anything_is_counted(related_layers):
    x, y = related_layers(20, [8, 9])
    streaming = _streamed([([x, y], [y])])
    before = streaming.compute()
    for layers, error, message in [
        (([x], [y]), ValueError, "expected 2 layers xs and 1 layers ys as in every batch, got 1"),
        (([x, y],), ValueError, "got 2 layers xs and no layers ys"),
        (([x, y[:10]], [y]), ValueError, r"xs\[0\] has 20, xs\[1\] has 10"),
        ((x, y), TypeError, "xs must be a list or tuple of tensors"),
        (([], []), ValueError, "at least one layer"),
    ]:
        with pytest.raises(error, match=message):
            streaming.update(*layers)
    with pytest.raises(ValueError, match="cannot merge debiased=False into debiased=True"):
        streaming.merge(_streamed([([x, y], [y])], debiased=False))
    with pytest.raises(ValueError, match="expected 2 layers xs"):
        streaming.merge(_streamed([([x], [y])]))
    assert torch.equal(streaming.compute(), before)
    assert streaming.batches == 1


@BOTH
def test_devices_without_a_backend_use_the_reference(monkeypatch, related_layers, debiased):
    x, y = (t.float() for t in related_layers(40, [8, 9]))
    layers = ([x, torch.full((40, 3), 0.1)], [y, x])
    native = _streamed([layers], debiased).compute()
    # As if these were tensors of a device that has none.
    monkeypatch.setattr(hsic_of_grams, "has_native_backend", lambda device: False)
    values = _streamed([layers], debiased).compute()
    torch.testing.assert_close(values, native, rtol=0, atol=1e-6)


def test_nothing_is_differentiated(related_layers):
    x, y = related_layers(20, [8, 9])
    streaming = _streamed([([x.requires_grad_()], [y])])
    assert not streaming.compute().requires_grad
