"""What ``pyguide bench`` computes: the tensors of each workload and the least work for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyguide.reference import h_center

__all__ = ["WORKLOADS", "Problem", "Work", "Workload", "workload"]

#: Widths of a guide's layers: four stages of five convolutions, and the classifier's input.
CONV = (65536,) * 5 + (32768,) * 5 + (16384,) * 5 + (8192,) * 5 + (512,)

# Each layer is _SIGNALS directions that all layers share, as many of its own, and noise, so that
# CKA is neither near 0 nor near 1 at any width.
_SIGNALS = 4


@dataclass(frozen=True)
class Workload:
    """One computation at several batch sizes.

    Attributes
    ----------
    kind : str
        ``"loss"`` (``sum(1 - CKA)`` of layers xs with layers ys, and its gradient in xs),
        ``"matrix"`` (debiased CKA of every x with every x), ``"gram"`` (the centred Gram
        matrix of every x) or ``"apply"`` (``A (X - mean)`` for every x).
    target, guide : tuple of int
        Widths of the layers xs and ys.
    tokens : int
        Above 0, every layer is (n, tokens, width) and each token is a pair of its own.
    n : int, optional
        The one batch size; None where it is free.
    """

    name: str
    description: str
    kind: str
    target: tuple[int, ...]
    guide: tuple[int, ...] = ()
    tokens: int = 0
    n: int | None = None
    dtype: torch.dtype = torch.float32

    def make(self, n: int, seed: int) -> Problem:
        """The tensors, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(n, _SIGNALS, generator=generator)
        xs = [self._layer(shared, d, generator) for d in self.target]
        ys = [self._layer(shared, d, generator) for d in self.guide]
        coefficients = None
        if self.kind == "loss":
            xs = [x.requires_grad_() for x in xs]
        elif self.kind == "apply":
            a = torch.randn(len(xs), n, n, generator=generator)
            # Without row sums, as CKA's are: then it does not matter which shift is subtracted.
            coefficients = torch.stack([h_center(m + m.mT) for m in a])
        return Problem(xs, ys, coefficients, per_token=self.tokens > 0)

    def _layer(self, shared: Tensor, d: int, generator: torch.Generator) -> Tensor:
        shape = (shared.size(0), self.tokens, d) if self.tokens else (shared.size(0), d)
        own = torch.randn(shared.shape, generator=generator)
        mixing = torch.randn(2 * _SIGNALS, math.prod(shape[1:]), generator=generator)
        layer = torch.randn(shape, generator=generator)
        layer += (torch.cat([shared, own], dim=1) @ mixing).reshape(shape)
        return layer.to(self.dtype)

    def least_work(self, n: int) -> Work:
        """The work that no implementation can leave out."""
        batch = max(1, self.tokens)
        widths = [*self.target, *self.guide]
        if self.kind == "apply":
            flop = 2 * n * n * sum(widths)
        else:
            flop = n * (n + 1) * sum(widths) * batch
        if self.kind == "loss":
            flop += 2 * n * n * sum(self.target) * batch
            flop = min(flop, self._flop_in_feature_space(n) * batch)
        size = torch.finfo(self.dtype).bits // 8
        inputs = n * sum(widths) * batch * size
        outputs = {
            "loss": n * sum(self.target) * batch * size,
            "matrix": 4 * len(self.target) ** 2,
            "gram": 4 * len(self.target) * n * n,
            "apply": n * sum(self.target) * size + 4 * len(self.target) * n * n,
        }[self.kind]
        return Work(flop, inputs, inputs + outputs)

    def layer_bytes(self, n: int, *widths: int) -> int:
        """Bytes of layers of these widths in float32."""
        return 4 * n * sum(widths) * max(1, self.tokens)

    def _flop_in_feature_space(self, n: int) -> int:
        """X^T X, Y^T Y and X^T Y, then Y (Y^T X) and X (X^T X) for the gradient."""
        flop = 0
        for d, e in zip(self.target, self.guide, strict=True):
            flop += n * d * (d + 1) + n * e * (e + 1) + 2 * n * d * e
            flop += 2 * n * e * d + 2 * n * d * d
        return flop

    def tiny(self) -> Workload:
        """The same computation at widths that take no time."""
        return replace(
            self,
            target=tuple(_tiny(d) for d in self.target),
            guide=tuple(_tiny(d) for d in self.guide),
            tokens=min(self.tokens, 4),
            n=None if self.n is None else 16,
        )


def _tiny(d: int) -> int:
    return max(8, d // 1024)


@dataclass(frozen=True)
class Work:
    """Least work of a workload; a multiply-add is two FLOP."""

    flop: int
    input_bytes: int
    bytes: int  # inputs read once and results (or gradients, and apply's coefficients) once


@dataclass
class Problem:
    """The tensors of one workload."""

    xs: list[Tensor]
    ys: list[Tensor]
    coefficients: Tensor | None = None
    per_token: bool = False

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Layers whose CKA is wanted, in two lists of one length."""
        return self.split(self.xs), self.split(self.ys)

    def split(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors, or views of their tokens."""
        if not self.per_token:
            return tensors
        # unbind: indexing x[:, t] would add a tensor of zeros a token to the backward pass.
        return [view for x in tensors for view in x.unbind(1)]


_FCN = (1024,) * 21

WORKLOADS = [
    Workload("conv-fcn", "loss of 21 layers against 21 wide ones, + gradient", "loss", _FCN, CONV),
    Workload("conv-conv", "loss of 21 wide layers against 21, + gradient", "loss", CONV, CONV),
    Workload("matrix", "debiased CKA of 21 wide layers with each other", "matrix", CONV),
    Workload("gram", "centred Gram matrices of 21 wide layers", "gram", CONV),
    Workload("apply", "A (X - mean) for 21 wide layers", "apply", CONV),
    Workload("small-pair", "loss of one small pair, + gradient", "loss", (256,), (256,), n=64),
    Workload(
        "small-pairs", "loss of 50 small pairs, + gradient", "loss", (256,) * 50, (256,) * 50, n=64
    ),
    Workload(
        "per-token", "loss of 256 tokens of 64 features, + gradient", "loss", (64,), (64,), 256, 64
    ),
    Workload(
        "feature-space",
        "loss of one pair of far more samples than features, + gradient",
        "loss",
        (256,),
        (256,),
        n=4096,
    ),
    Workload(
        "bf16",
        "conv-fcn with bfloat16 layers",
        "loss",
        _FCN,
        CONV,
        dtype=torch.bfloat16,
    ),
]


def workload(name: str) -> Workload:
    """The workload of that name.

    Raises
    ------
    KeyError
    """
    return {w.name: w for w in WORKLOADS}[name]
