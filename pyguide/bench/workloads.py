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
        ``"loss"`` (the sum of the distances of layers xs to layers ys, and its gradient in xs),
        ``"matrix"`` (debiased CKA of every x with every x), ``"gram"`` (the centred Gram
        matrix of every x) or ``"apply"`` (``A (X - mean)`` for every x).
    distance : str
        Name of a loss's distance.
    target, guide : tuple of int
        Widths of the layers xs and ys.
    tokens : int
        Above 0, every layer is (n, tokens, width) and each token is a pair of its own.
    n : int, optional
        The one batch size; None where it is free.
    input_bytes : int
        Above 0, the layers xs share so many bytes, whatever n and dtype; :meth:`at` sets the
        widths.
    """

    name: str
    description: str
    kind: str
    target: tuple[int, ...]
    guide: tuple[int, ...] = ()
    tokens: int = 0
    n: int | None = None
    dtype: torch.dtype = torch.float32
    input_bytes: int = 0
    distance: str = "cka"

    def at(self, n: int, dtype: torch.dtype | None) -> Workload:
        """The workload at one batch size, with layers of a dtype; None keeps its own."""
        dtype = self.dtype if dtype is None else dtype
        target = self.target
        if self.input_bytes:
            row_bytes = len(target) * n * dtype.itemsize
            target = (max(8, self.input_bytes // row_bytes // 8 * 8),) * len(target)
        return replace(self, target=target, dtype=dtype, n=n)

    def make(self, n: int, seed: int, device: torch.device | None = None) -> Problem:
        """The tensors, the same for the same seed and device."""
        generator = torch.Generator(device or "cpu").manual_seed(seed)
        shared = _normal(generator, n, _SIGNALS)
        xs = [self._layer(shared, d, generator) for d in self.target]
        ys = [self._layer(shared, d, generator) for d in self.guide]
        coefficients = None
        if self.kind == "loss":
            xs = [x.requires_grad_() for x in xs]
        elif self.kind == "apply":
            a = _normal(generator, len(xs), n, n)
            # Without row sums, as CKA's are: then it does not matter which shift is subtracted.
            coefficients = torch.stack([h_center(m + m.mT) for m in a])
        return Problem(xs, ys, coefficients, per_token=self.tokens > 0)

    def _layer(self, shared: Tensor, d: int, generator: torch.Generator) -> Tensor:
        shape = (shared.size(0), self.tokens, d) if self.tokens else (shared.size(0), d)
        own = _normal(generator, *shared.shape)
        mixing = _normal(generator, 2 * _SIGNALS, math.prod(shape[1:]))
        layer = _normal(generator, *shape)
        layer += (torch.cat([shared, own], dim=1) @ mixing).reshape(shape)
        return layer.to(self.dtype)

    def least_work(self, n: int) -> Work:
        """The work that no implementation can leave out."""
        batch = max(1, self.tokens)
        widths = [*self.target, *self.guide]
        gram, apply = n * (n + 1) * sum(widths) * batch, 0
        if self.kind == "apply":
            gram, apply = 0, 2 * n * n * sum(widths)
        if self.kind == "loss":
            apply = 2 * n * n * sum(self.target) * batch
            if self.distance == "cka":
                gram, apply = min((gram, apply), self._feature_space_flop(n, batch), key=sum)
        size = self.dtype.itemsize
        inputs = n * sum(widths) * batch * size
        outputs = {
            "loss": n * sum(self.target) * batch * size,
            "matrix": 4 * len(self.target) ** 2,
            "gram": 4 * len(self.target) * n * n,
            "apply": n * sum(self.target) * size + 4 * len(self.target) * n * n,
        }[self.kind]
        return Work(gram, apply, inputs, inputs + outputs)

    def layer_bytes(self, n: int, *widths: int) -> int:
        """Bytes of layers of these widths in float32."""
        return 4 * n * sum(widths) * max(1, self.tokens)

    def _feature_space_flop(self, n: int, batch: int) -> tuple[int, int]:
        """X^T X, Y^T Y and X^T Y; then Y (Y^T X) and X (X^T X) for the gradient."""
        products = gradient = 0
        for d, e in zip(self.target, self.guide, strict=True):
            products += n * d * (d + 1) + n * e * (e + 1) + 2 * n * d * e
            gradient += 2 * n * e * d + 2 * n * d * d
        return products * batch, gradient * batch

    def tiny(self) -> Workload:
        """The same computation at widths that take no time."""
        return replace(
            self,
            target=tuple(_tiny(d) for d in self.target),
            guide=tuple(_tiny(d) for d in self.guide),
            tokens=min(self.tokens, 4),
            n=None if self.n is None else 16,
            input_bytes=min(self.input_bytes, 1 << 16),
        )


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _tiny(d: int) -> int:
    return max(8, d // 1024)


@dataclass(frozen=True)
class Work:
    """Least work of a workload; a multiply-add is two FLOP."""

    gram_flop: int  # of products that contract features (in feature space samples)
    apply_flop: int  # of the gradient's products
    input_bytes: int
    bytes: int  # inputs read once and results (or gradients, and apply's coefficients) once

    @property
    def flop(self) -> int:
        return self.gram_flop + self.apply_flop


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
_SHARES = (0,) * 8
_GIB = 1 << 30

WORKLOADS = [
    Workload(
        "gram-large",
        "centred Gram matrices of 8 layers of 1 GiB together",
        "gram",
        _SHARES,
        input_bytes=_GIB,
    ),
    Workload(
        "apply-large",
        "A (X - mean) for 8 layers of 1 GiB together",
        "apply",
        _SHARES,
        input_bytes=_GIB,
    ),
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
    Workload("rbf", "conv-fcn with RBF CKA, median rule", "loss", _FCN, CONV, distance="rbf_cka"),
    Workload("rsa", "conv-fcn with RSA: cosines, Pearson", "loss", _FCN, CONV, distance="rsa"),
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
