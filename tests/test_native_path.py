"""The native kernels are what runs: not the reference, and not torch's matrix products."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyguide
from pyguide import reference

_PRODUCTS = {"mm", "bmm", "addmm", "addbmm", "baddbmm", "mv", "addmv", "dot", "vdot", "matmul",
             "linear", "einsum", "inner", "cdist", "_cdist_forward"}  # fmt: skip


class NoMatrixProducts(TorchDispatchMode):
    """Raises when a pyguide operator calls one of torch's matrix products inside itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.operators: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if self.inside and name in _PRODUCTS:
            raise AssertionError(f"{name} inside a pyguide operator")
        if func.namespace != "pyguide":
            return func(*args, **(kwargs or {}))
        self.operators.append(name)
        with self:
            self.inside = True
            try:
                cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
                return func.redispatch(cpu, *args, **(kwargs or {}))
            finally:
                self.inside = False


@pytest.fixture(autouse=True)
def _reference_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("pyguide.reference was called")

    for name in reference.__all__:
        monkeypatch.setattr(reference, name, fail)


def test_the_mode_sees_products_inside_operators() -> None:
    # Tall layers take the feature route, which multiplies in torch: the guard must notice.
    x = torch.randn(4000, 20)
    with pytest.raises(AssertionError, match="inside a pyguide operator"), NoMatrixProducts():
        pyguide.cka(x, torch.randn(4000, 20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("debiased", [False, True])
def test_every_sample_space_operator(dtype: torch.dtype, debiased: bool) -> None:
    xs = [torch.randn(20, d).to(dtype).requires_grad_() for d in (30, 50)]
    ys = [torch.randn(20, d).to(dtype) for d in (40, 60)]
    with NoMatrixProducts() as mode:
        pyguide.cka(xs[0], ys[0], debiased=debiased).backward()
        pyguide.cka_pairs(xs, ys, debiased=debiased).sum().backward()
        pyguide.cka_matrix(xs, ys, debiased=debiased).sum().backward()
        pyguide.CKALoss(debiased=debiased)(xs, ys).backward()
        pyguide.gram(xs).sum().backward()
        pyguide.gram(xs, center=False).sum().backward()
    assert mode.operators.count("pyguide::cka_sample_space") == 4
    assert mode.operators.count("pyguide::cka_sample_space_backward") == 4
    assert mode.operators.count("pyguide::gram") == 2
    assert mode.operators.count("pyguide::gram_backward") == 2
    assert all(torch.isfinite(x.grad).all() for x in xs)


def test_a_guided_step() -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.Linear(40, 3))

    target, guide = network(), network()
    guidance = pyguide.Guidance(target, guide, pairs=[("0", "0"), ("2", "2")])
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    x, y = torch.randn(16, 10), torch.randint(3, (16,))
    before = [p.detach().clone() for p in target.parameters()]
    with NoMatrixProducts() as mode:
        with guidance.capture():
            logits = target(x)
        loss = nn.functional.cross_entropy(logits, y) + guidance.loss(x)
        loss.backward()
        optimizer.step()
        guidance.step()
    assert "pyguide::cka_sample_space_backward" in mode.operators
    assert any(not torch.equal(p, b) for p, b in zip(target.parameters(), before, strict=True))
