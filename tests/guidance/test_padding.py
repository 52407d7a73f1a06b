"""Padding masks: what is padded counts in no distance and gets no gradient."""

from __future__ import annotations

import pytest
import torch
from networks import Layer, N, mlp
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

from pyguide import reference
from pyguide.capture.padding import _by_elements, filled
from pyguide.distances import RBFCKA, RSA, Bures, Ridge
from pyguide.guidance import Guidance, Pair

T = 6


@pytest.fixture
def lengths() -> Tensor:
    """From 1 to T; two samples have the last position, three the one before."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, T - 1, (N,), generator=generator)
    lengths[:3] = torch.tensor([T, T, T - 1])
    return lengths


@pytest.fixture
def mask(lengths) -> Tensor:
    return torch.arange(T) < lengths[:, None]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(N, T, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _loss(target, guide, tokens, mask, per_token=False, distance="cka", **options) -> Tensor:
    pairs = [Pair("0", "0", per_token=per_token, **options)]
    guidance = Guidance(target, guide, pairs=pairs, distance=distance)
    with guidance.capture():
        target(tokens)
    loss = guidance.loss(tokens, mask=mask)
    guidance.close()
    return loss


def _networks() -> tuple[nn.Module, nn.Module]:
    return mlp(6, 8, 3).double(), mlp(6, 5, 3, seed=1).double()


@pytest.mark.parametrize("distance", ["cka", "debiased_cka", "rsa", "ridge"])
@pytest.mark.parametrize("per_token", [False, True])
def test_padded_values_change_nothing_and_get_no_gradient(tokens, mask, per_token, distance):
    target, guide = _networks()
    results = []
    for padding in (0.0, 7.0, float("nan")):
        x = torch.where(mask[..., None], tokens, padding).requires_grad_()
        loss = _loss(target, guide, x, mask, per_token, distance)
        loss.backward()
        results.append((loss.detach(), x.grad))
        assert loss.item() > 0.01
        assert x.grad[mask].abs().max() > 1e-6
        assert (x.grad[~mask] == 0).all()
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])
    changed = torch.where(mask[..., None], tokens, 7.0)
    assert _loss(target, guide, changed, None, per_token, distance) != results[0][0]


@pytest.mark.parametrize(("distance", "fewest"), [("cka", 2), ("debiased_cka", 4)])
@pytest.mark.parametrize("order", ["by length", "scattered"])
def test_per_token_equals_a_loop_over_gathered_samples(tokens, mask, distance, fewest, order):
    """Positions with too few valid samples are left out of the mean: the last, for debiased two."""
    if order == "scattered":
        mask = mask[:, torch.randperm(T)]
        mask = torch.stack([row[torch.randperm(N)] for row in mask.T], dim=1)
    target, guide = _networks()
    loss = _loss(target, guide, tokens, mask, per_token=True, distance=distance)
    loss.backward()
    gradient = target[0].weight.grad.clone()

    target.zero_grad()
    x, y = target[0](tokens), guide[0](tokens).detach()
    positions = [
        1 - reference.cka(x[rows, t], y[rows, t], debiased=distance != "cka")
        for t, rows in enumerate(mask.T)
        if rows.sum() >= fewest
    ]
    assert len(positions) == (T if fewest == 2 else T - 2)
    expected = torch.stack(positions).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient, target[0].weight.grad, rtol=1e-9, atol=1e-12)


def test_whole_sequences_have_the_mean_where_they_are_padded(tokens, mask):
    target, guide = _networks()
    loss = _loss(target, guide, tokens, mask)
    loss.backward()
    gradient = target[0].weight.grad.clone()

    target.zero_grad()
    layers = []
    for layer in (target[0](tokens), guide[0](tokens).detach()):
        positions = []
        for t, rows in enumerate(mask.T):
            centred = layer[:, t] - layer[rows, t].mean(0)
            positions.append(centred * rows[:, None])
        layers.append(torch.stack(positions, dim=1))
    expected = 1 - reference.cka(*layers)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient, target[0].weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("distance", "samples"),
    [
        (RSA("cosine"), 0),
        (RSA("euclidean"), N),
        (Ridge(1.0), N // 2),
        (Ridge(1.0), 0),
        (RBFCKA(), N),
        (Bures(), N),
    ],
)
def test_padding_is_at_the_origin_of_the_distance(tokens, mask, distance, samples):
    """An angle is one at zero; a regression's origin is the mean of the samples that it fits."""
    if samples == 0 and distance.name.startswith("ridge"):
        # Where no sample that fits is valid the mean is zero.
        mask[: N // 2, 2] = False
        samples = N // 2
    target, guide = _networks()
    loss = _loss(target, guide, tokens, mask, distance=distance).item()
    layers = []
    for layer in (target[0](tokens).detach(), guide[0](tokens).detach()):
        for t, rows in enumerate(mask.T):
            known = layer[:samples, t][rows[:samples]]
            layer[~rows, t] = known.mean(0) if len(known) else 0.0
        layers.append(layer)
    expected = distance([layers[0]], [layers[1]]).item()
    assert loss == pytest.approx(expected, abs=1e-9)


def test_two_padded_samples_have_the_cosine_of_what_is_valid(tokens):
    """Every other sample ends early: no padded position is in a product or a norm."""
    mask = torch.ones(N, T, dtype=torch.bool)
    mask[0::2, 4:] = False
    target, guide = _networks()
    loss = _loss(target, guide, tokens, mask, distance="rsa").item()
    rdms = []
    for layer in (target[0](tokens).detach(), guide[0](tokens).detach()):
        similarity = torch.zeros(N, N, dtype=torch.float64)
        for i in range(N):
            for j in range(N):
                both = mask[i] & mask[j]
                norms = layer[i, mask[i]].norm() * layer[j, mask[j]].norm()
                similarity[i, j] = (layer[i, both] * layer[j, both]).sum() / norms
        rdms.append(1 - similarity[~torch.eye(N, dtype=torch.bool)])
    expected = 1 - torch.corrcoef(torch.stack(rdms))[0, 1].item()
    assert loss == pytest.approx(expected, abs=1e-9)


def test_a_position_that_is_padded_everywhere_is_nothing(tokens, mask):
    target, guide = _networks()
    mask[:, 3] = False
    others = [0, 1, 2, 4, 5]
    for per_token in (False, True):
        expected = _loss(target, guide, tokens[:, others], mask[:, others], per_token)
        loss = _loss(target, guide, tokens, mask, per_token)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("per_token", [False, True])
def test_a_mask_without_padding_changes_nothing(tokens, per_token):
    target, guide = _networks()
    everything = torch.ones(N, T, dtype=torch.bool)
    assert torch.equal(
        _loss(target, guide, tokens, everything, per_token),
        _loss(target, guide, tokens, None, per_token),
    )


def test_half_precision_is_filled_with_a_mean_in_float32(mask):
    tokens = torch.randn(N, T, 6) + 30
    tokens = torch.where(mask[..., None], tokens, 1000).bfloat16()
    target, guide = mlp(6, 8, 3), mlp(6, 5, 3, seed=1)
    target, guide = (nn.Sequential(Layer(lambda x: x), m) for m in (target, guide))
    pairs = [Pair("0", "0", extract=(lambda o: o[..., :3], lambda o: o[..., 1:]))]
    guidance = Guidance(target.bfloat16(), guide.bfloat16(), pairs=pairs)
    with guidance.capture(), torch.no_grad():
        target(tokens)
    with torch.no_grad():
        loss = guidance.loss(tokens, mask=mask).item()
    filled = tokens.double()
    for t, rows in enumerate(mask.T):
        filled[~rows, t] = filled[rows, t].mean(0)
    expected = 1 - reference.cka(filled[..., :3], filled[..., 1:]).item()
    # The mean of 30 is rounded to bfloat16: by 0.06 standard deviations at most.
    assert loss == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("shape", [(N, T), (N, T, 5), (N, T, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [None, N // 2, 0])
def test_cpus_fill_as_gpus_do(mask, shape, dtype, samples):
    mask[:, 0] = False
    generator = torch.Generator().manual_seed(4)
    x, weights = torch.randn(2, *shape, dtype=torch.float64, generator=generator).to(dtype)
    x[~mask] = float("nan")

    def outcome(fill, dtype):
        leaf = x.to(dtype, copy=True).requires_grad_()
        # Not contiguous, as a layer that was transposed.
        out = fill(leaf.transpose(0, 1).contiguous().transpose(0, 1), mask, samples)
        (out * weights.to(dtype)).sum().backward()
        return out.detach(), leaf.grad

    out, gradient = outcome(filled, dtype)
    assert out.equal(outcome(_by_elements, dtype)[0]) and not out.isnan().any()
    _, expected = outcome(_by_elements, torch.float64)
    # A sum over the padded samples; that of bfloat16 is in float32, and rounded once.
    tolerance = (2 if dtype is torch.bfloat16 else 8) * torch.finfo(dtype).eps
    assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0), (2, 3, 2)])
@pytest.mark.parametrize("valid", [False, True])
def test_all_or_nothing_is_filled(shape, valid):
    x = torch.randn(shape)
    assert filled(x, torch.full(shape[:2], valid)).equal(x if valid else torch.zeros(shape))


def test_layers_without_these_positions_ignore_the_mask(tokens, mask):
    """One vector a sequence, shorter sequences, and T features."""
    target = nn.Sequential(Layer(lambda x: x[:, :3]), nn.Linear(6, T)).double()
    for layer in (target, nn.Sequential(Layer(lambda x: x[:, 0]), nn.Linear(6, T)).double()):
        guidance = Guidance(layer, _networks()[1], pairs=[("1", "0")])
        with guidance.capture():
            layer(tokens)
        loss = guidance.loss(tokens, mask=mask).item()
        filled = guidance.guide[0](tokens)
        for t, rows in enumerate(mask.T):
            filled[~rows, t] = filled[rows, t].mean(0)
        assert loss == pytest.approx(1 - reference.cka(layer(tokens), filled).item(), abs=1e-12)


def test_masks_of_both_sides_and_the_call_are_joined(tokens, lengths, mask):
    """A packed target against a guide on padded sequences."""
    lstm = nn.LSTM(6, 4, batch_first=True).double()

    def run(x):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return lstm(packed)

    target = nn.Sequential(Layer(run), Layer(lambda output: output[1][0][-1]))
    guide = _networks()[1]
    other = torch.ones_like(mask)
    other[::3, 0] = False
    for given, valid in ((None, mask), (other, mask & other)):
        loss = _loss(target, guide, tokens, given, per_token=True)
        x = torch.zeros(N, T, 4, dtype=torch.float64)
        for i, length in enumerate(lengths):
            x[i, :length] = lstm(tokens[i : i + 1, :length])[0][0].detach()
        y = guide[0](tokens)
        expected = [1 - reference.cka(x[rows, t], y[rows, t]) for t, rows in enumerate(valid.T)]
        assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-12)


@pytest.mark.parametrize("per_token", [False, True])
def test_nested_tensors_of_a_transformer_are_padded(tokens, mask, per_token):
    """In eval mode nn.TransformerEncoder packs what src_key_padding_mask leaves."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    guide = nn.TransformerEncoder(layer, 2).double()
    target = _networks()[0]
    losses, nested = [], []
    for enabled in (False, True):
        guide.use_nested_tensor = enabled
        pairs = [Pair("0", "layers.0", per_token=per_token)]
        guidance = Guidance(target, guide, pairs=pairs)
        hook = guide.layers[0].register_forward_hook(lambda m, args, o: nested.append(o.is_nested))
        with guidance.capture():
            target(tokens)
        inputs = {"src": tokens, "src_key_padding_mask": ~mask}
        losses.append(guidance.loss(tokens, guide_inputs=inputs, mask=mask).item())
        guidance.close()
        hook.remove()
    assert nested == [False, True]
    assert losses[1] == pytest.approx(losses[0], abs=1e-12)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(N, T), r"bool tensor.*got torch\.float32 \(40, 6\).*attention_mask\.bool"),
        (torch.ones(N, T).long(), "bool tensor.*int64"),
        (torch.ones(N, dtype=torch.bool), r"shape \(n, T\).*got torch\.bool \(40,\)"),
        ([[True]], "got <class 'list'>"),
    ],
)
def test_bad_masks_raise(tokens, bad, message):
    with pytest.raises(TypeError, match=message):
        _loss(*_networks(), tokens, bad)


@pytest.mark.parametrize("per_token", [False, True])
def test_a_mask_that_fits_no_layer_raises(tokens, mask, per_token):
    message = r"\(40, 5\), but no layer is .*\(40, 6, 8\), \(40, 6, 5\)"
    with pytest.raises(ValueError, match=message):
        _loss(*_networks(), tokens, mask[:, :5], per_token)


def test_too_few_valid_samples_raise(tokens, mask):
    mask[3:] = False
    with pytest.raises(ValueError, match=r"no position.*the 4 valid samples that 'debiased_cka'"):
        _loss(*_networks(), tokens, mask, per_token=True, distance="debiased_cka")
    assert _loss(*_networks(), tokens, mask, per_token=True).item() > 0
