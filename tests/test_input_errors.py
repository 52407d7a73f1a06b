"""Bad input raises before any kernel runs, and the message names the argument."""

from __future__ import annotations

import pytest
import torch

import pyguide
from pyguide import _native
from pyguide.ops import cka_pairs_and_flags

X = torch.randn(8, 3)


@pytest.fixture(autouse=True)
def _no_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("a kernel ran")

    for name in ("gram", "alignment", "apply"):
        monkeypatch.setattr(_native, name, fail)


CASES = [
    (
        lambda: pyguide.cka_pairs([X], [torch.randn(9, 3)]),
        ValueError,
        r"xs\[0\] has 8, ys\[0\] has 9",
    ),
    (lambda: pyguide.cka_pairs([X, torch.randn(5, 1)], [X, X]), ValueError, r"xs\[1\] has 5"),
    (lambda: pyguide.cka(X[:1], X[:1]), ValueError, "^x needs at least 2 samples"),
    (lambda: pyguide.cka(X, X[:5]), ValueError, "x has 8, y has 5"),
    (lambda: pyguide.cka_matrix(None), TypeError, "xs must be a list or tuple"),
    (lambda: pyguide.cka_matrix(x for x in [X]), TypeError, "xs must be a list.*generator"),
    (lambda: pyguide.CKALoss(pairs=[(0, 0.7)]), TypeError, r"pairs\[0\] must be two integers"),
    (lambda: pyguide.CKALoss(pairs=[(0,)]), TypeError, r"pairs\[0\] must be two integers"),
    (lambda: pyguide.gram([torch.nested.nested_tensor([X, X])]), TypeError, "nested tensor"),
    (lambda: pyguide.cka(X[:3], X[:3], debiased=True), ValueError, "at least 4 samples.*debiased"),
    (lambda: pyguide.gram([X[:1]]), ValueError, r"xs\[0\] needs at least 2"),
    (lambda: pyguide.cka_pairs([X.long()], [X]), TypeError, r"xs\[0\] must be float64.*int64"),
    (lambda: pyguide.cka_pairs([X], [X.to(torch.complex64)]), TypeError, r"ys\[0\].*complex64"),
    (lambda: pyguide.cka_pairs([X], [X.to("meta")]), ValueError, r"ys\[0\] is on meta"),
    (lambda: pyguide.cka_pairs([X], [X[:, :0]]), ValueError, r"ys\[0\] has no features.*\(8, 0\)"),
    (lambda: pyguide.cka_pairs([X], [X.to_sparse()]), TypeError, r"ys\[0\].*sparse.*to_dense"),
    (lambda: pyguide.cka_pairs([X], [torch.tensor(1.0)]), ValueError, r"ys\[0\].*a scalar"),
    (lambda: pyguide.cka_pairs([X], [None]), TypeError, r"ys\[0\] must be a tensor, got NoneType"),
    (lambda: pyguide.cka_pairs(X, [X]), TypeError, "xs must be a list or tuple of tensors"),
    (lambda: pyguide.cka(X.numpy(), X), TypeError, "x must be a tensor, got ndarray"),
    (lambda: pyguide.cka_pairs([X, X], [X]), ValueError, "same length, got 2 and 1"),
    (lambda: pyguide.cka_pairs([X], [X], pairs=[(0, 1)]), IndexError, r"pairs\[0\].*1 is out.*ys"),
    (lambda: pyguide.cka_pairs([X], [X], pairs=[(-1, 0)]), IndexError, "-1 is out of range for xs"),
    (lambda: pyguide.cka_pairs([X], [X], pairs=[(0, 0), 5]), TypeError, r"pairs\[1\] must be two"),
    (lambda: pyguide.cka_pairs([X], [X], pairs=[(0, 0.5)]), TypeError, r"pairs\[0\] must be two"),
    (lambda: pyguide.cka(X, X, precision="fast"), ValueError, "precision must be one of.*'fast'"),
    (lambda: pyguide.gram([]), ValueError, "xs must hold at least one layer"),
    (lambda: pyguide.gram([X], precision="exact"), ValueError, "precision"),
    (lambda: pyguide.CKALoss(reduction="none"), ValueError, "reduction must be one of.*'none'"),
    (lambda: cka_pairs_and_flags([X], [X], route="fast"), ValueError, "route must be one of"),
]


@pytest.mark.parametrize("call, error, message", CASES, ids=[c[2][:40] for c in CASES])
def test_message(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
