"""compare_networks with padded sequences: what is padded counts nothing."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyguide import reference
from pyguide.analysis import compare_networks

N, T = 24, 5


class Transformer(nn.Module):
    """Like those of Hugging Face: padded positions are not attended to, but have activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.pooler = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **unused) -> Tensor:
        valid = attention_mask.bool()
        x = self.embedding(input_ids)
        q = self.query(x)
        attended = F.scaled_dot_product_attention(q, q, self.value(x), attn_mask=valid[:, None])
        x = self.norm(x + attended)
        return self.pooler((x * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True))


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module]:
    return Transformer(6).double(), Transformer(9).double()


@pytest.fixture
def sequences() -> list[Tensor]:
    lengths = [T, T, *torch.randint(1, T + 1, (N - 2,)).tolist()]
    return [torch.randint(1, 11, (length,)) for length in lengths]


def _padded(sequences: list[Tensor], length: int = T, token: int = 0) -> dict[str, Tensor]:
    ids = torch.full((len(sequences), length), token)
    mask = torch.zeros(len(sequences), length, dtype=torch.int64)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)], mask[i, : len(sequence)] = sequence, 1
    return {"input_ids": ids, "attention_mask": mask}


def _none(batch) -> None:
    return None


def test_values_do_not_depend_on_the_padding(networks, sequences):
    short, long = _padded(sequences), _padded(sequences, T + 4, token=7)
    found = compare_networks(*networks, [short])
    assert found.rows == ("embedding", "query", "value", "norm", "pooler")
    again = compare_networks(*networks, [long])
    torch.testing.assert_close(again.values, found.values, rtol=0, atol=1e-12)
    short, long = (compare_networks(*networks, [x], mask=_none).values for x in (short, long))
    assert (long - short)[:4, :4].abs().min() > 1e-6
    assert (short - found.values)[:4, :4].abs().min() > 1e-6
    torch.testing.assert_close(long[4, 4], found.values[4, 4], rtol=0, atol=1e-12)


def test_padding_counts_as_an_average_sample(networks, sequences):
    batch = _padded(sequences)
    values = compare_networks(*networks, [batch], layers="norm", second_layers="embedding").values
    layers = []
    for network, name in zip(networks, ("norm", "embedding"), strict=True):
        network.get_submodule(name).register_forward_hook(lambda m, args, x: layers.append(x))
        network(**batch)
    for x in layers:
        for t, valid in enumerate(batch["attention_mask"].bool().T):
            x.data[~valid, t] = x.data[valid, t].mean(dim=0)
    expected = reference.cka(*layers, debiased=True).item()
    assert values.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "mask"),
    [
        (lambda batch: (batch, None), None),
        (collections.UserDict, None),
        (lambda batch: {**batch, "valid": batch["attention_mask"].bool()}, lambda b: b["valid"]),
        (
            lambda batch: ((batch["input_ids"], batch["attention_mask"]), None),
            lambda batch: batch[0][1].float(),
        ),
    ],
)
def test_masks_as_loaders_give_them(networks, sequences, given, mask):
    found = compare_networks(*networks, [given(_padded(sequences))], mask=mask)
    expected = compare_networks(*networks, [_padded(sequences)])
    assert torch.equal(found.values, expected.values)


def test_each_batch_has_its_own_padding(networks, sequences):
    sequences.sort(key=len)
    halves = sequences[:12], sequences[12:]
    own = [_padded(half, max(map(len, half))) for half in halves]
    assert own[0]["input_ids"].size(1) < T
    found = compare_networks(*networks, own, max_samples=20)
    same = compare_networks(*networks, [_padded(half) for half in halves], max_samples=20)
    assert found.samples == 20
    torch.testing.assert_close(found.values, same.values, rtol=0, atol=1e-12)


def test_a_mask_without_padding_changes_nothing(networks):
    batch = _padded([torch.randint(1, 11, (T,)) for _ in range(N)])
    assert torch.equal(
        compare_networks(*networks, [batch]).values,
        compare_networks(*networks, [batch], mask=_none).values,
    )


def test_masks_of_a_layer_and_of_the_batch_are_joined():
    """A packed LSTM has its own padding."""
    lengths = torch.randint(2, T + 1, (N,))
    lengths[0] = T
    lstm = nn.LSTM(3, 4, batch_first=True).double()

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = lstm

        def forward(self, x: Tensor) -> object:
            return self.lstm(
                nn.utils.rnn.pack_padded_sequence(
                    x, lengths, batch_first=True, enforce_sorted=False
                )
            )

    x = torch.randn(N, T, 3, dtype=torch.float64)
    other = nn.Sequential(nn.Linear(3, 5)).double()
    given = torch.ones(N, T, dtype=torch.bool)
    given[::3, 0] = False
    found = compare_networks(Packed(), other, [x], mask=lambda batch: given)
    layers = [lstm(x)[0].detach(), other(x).detach()]
    masks = [given & (torch.arange(T) < lengths[:, None]), given]
    for layer, valid in zip(layers, masks, strict=True):
        for t, rows in enumerate(valid.T):
            layer[~rows, t] = layer[rows, t].mean(dim=0)
    expected = reference.cka(*layers, debiased=True).item()
    assert found.values.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (lambda batch: torch.arange(N * T).view(N, T), ValueError, r"0 and 1.*int64 \(24, 5\)"),
        (lambda batch: torch.ones(N, 1, T, T), ValueError, r"samples must be .* \(24, 1, 5, 5\)"),
        (lambda batch: torch.ones(T, T), ValueError, r"a batch of 24 samples .* \(5, 5\): give"),
        (lambda batch: "valid", ValueError, "got str"),
        (torch.ones(N, T), TypeError, r"mask must be a function .* got Tensor; .*batch\[1\]"),
        (lambda batch: torch.eye(N, 7), ValueError, r"\(n, T\) = \(24, 7\), but no layer that is"),
    ],
)
def test_bad_masks_say_what_to_do(networks, sequences, mask, error, message):
    with pytest.raises(error, match=message):
        compare_networks(*networks, [_padded(sequences)], mask=mask)


def test_layers_without_positions_do_not_need_those_of_the_batch(networks, sequences):
    found = compare_networks(
        *networks, [_padded(sequences)], layers="pooler", second_layers="pooler"
    )
    assert found.values.shape == (1, 1)
