"""Who is compared: pyguide, torch written with care, and what others publish."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pyguide
from pyguide.bench import formulas
from pyguide.bench.workloads import Problem, Workload
from pyguide.distances import get_distance
from pyguide.ops.dispatch import backend_of
from pyguide.ops.precision import precision_code

__all__ = ["CANDIDATES", "Candidate", "Result", "Run", "candidate", "candidates_of"]


@dataclass
class Result:
    """Values (the loss, a matrix, or one tensor a layer), and for a loss the gradient in xs."""

    values: list[Tensor]
    gradient: list[Tensor]


Run = Callable[[Problem], Result]


@dataclass(frozen=True)
class Candidate:
    """One way to compute some of the workloads.

    Attributes
    ----------
    make : callable
        Given a workload, the function to time, or None where the candidate does not apply.
    extra_bytes : callable
        About how much memory a call needs besides the inputs, given workload and n.
    package : (str, str), optional
        What ``pip install`` needs, and the module that it brings.
    compiles, graph : bool
        Whether its first call compiles, or captures a CUDA graph that later calls replay.
    devices : tuple of str
        Types of device that it runs on.
    uncentered : bool
        Whether its Gram matrices still have to be centred before they are compared.
    """

    name: str
    description: str
    make: Callable[[Workload], Run | None]
    extra_bytes: Callable[[Workload, int], int]
    package: tuple[str, str] | None = None
    compiles: bool = False
    graph: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    uncentered: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here, and what to do; None if it can."""
        if self.package is None or importlib.util.find_spec(self.package[1]) is not None:
            return None
        return f"not installed: pip install {self.package[0]}"


class _Replay:
    """A CUDA graph of a function, captured at the first call for that call's problem."""

    def __init__(self, run: Run):
        self.run = run
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, problem: Problem) -> Result:
        if self.graph is None:
            self._capture(problem)
        assert self.graph is not None
        self.graph.replay()
        return self.result

    def _capture(self, problem: Problem) -> None:
        # On a side stream, as torch asks: libraries allocate and compile before the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.run(problem)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.result = self.run(problem)
        self.graph = graph


def _graphed(make: Callable[[Workload], Run | None]) -> Callable[[Workload], Run | None]:
    def make_graph(workload: Workload) -> Run | None:
        run = make(workload)
        return None if run is None else _Replay(run)

    return make_graph


def _loss_of_lists(loss: Callable[[list[Tensor], list[Tensor]], Tensor]) -> Run:
    """Loss of two lists of layers, and its gradient by autograd."""

    def run(problem: Problem) -> Result:
        value = loss(*problem.pairs())
        return Result([value.detach()], list(torch.autograd.grad(value, problem.xs)))

    return run


def _loss_of_tokens(loss: Callable[[Tensor, Tensor], Tensor]) -> Run:
    """Loss of two (n, T, d) layers, and its gradient by autograd."""

    def run(problem: Problem) -> Result:
        value = loss(problem.xs[0], problem.ys[0])
        return Result([value.detach()], list(torch.autograd.grad(value, problem.xs)))

    return run


def _pyguide(workload: Workload) -> Run:
    def apply(problem: Problem) -> Result:
        assert problem.coefficients is not None
        device = problem.coefficients.device
        products = backend_of(device).apply(
            problem.coefficients, problem.xs, shifted=True, precision=precision_code(None, device)
        )
        return Result(products, [])

    if workload.tokens:
        loss = pyguide.CKALoss(per_token=True)
        return _loss_of_tokens(lambda x, y: loss([x], [y]))
    distance = get_distance(workload.distance)
    return {
        "loss": _loss_of_lists(lambda xs, ys: distance(xs, ys).sum()),
        "matrix": lambda p: Result([pyguide.cka_matrix(p.xs, debiased=True)], []),
        "gram": lambda p: Result(list(pyguide.gram(p.xs)), []),
        "apply": apply,
    }[workload.kind]


_EAGER_LOSSES = {
    "cka": formulas.eager_loss,
    "rbf_cka": formulas.eager_rbf_loss,
    "rsa": formulas.eager_rsa_loss,
}


def _eager(workload: Workload, wrap: Callable[[Any], Any] = lambda function: function) -> Run:
    matrix, gram = wrap(formulas.debiased_matrix), wrap(formulas.gram)
    apply = wrap(formulas.apply)
    return {
        "loss": _loss_of_lists(wrap(_EAGER_LOSSES[workload.distance])),
        "matrix": lambda p: Result([matrix(p.xs)], []),
        "gram": lambda p: Result([gram(x) for x in p.xs], []),
        "apply": lambda p: Result(apply(p.coefficients, p.xs), []),
    }[workload.kind]


def _compile(function: Any) -> Any:
    return torch.compile(function, dynamic=False)


def _compiled(workload: Workload) -> Run | None:
    if workload.input_bytes:  # what a compiler makes of one product is no question
        return None
    if workload.distance != "cka":  # torch 2.13.0 compiled a gradient of RBF CKA that was 0.4 off
        return None
    if workload.tokens:  # a loop over all tokens would take minutes to compile
        return _loss_of_tokens(_compile(formulas.eager_loss_batched))
    return _eager(workload, _compile)


def _batched(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Workload], Run | None]:
    return lambda workload: _loss_of_tokens(loss) if workload.tokens else None


def _feature_space(workload: Workload) -> Run | None:
    if workload.kind != "loss" or workload.n is None or workload.n <= max(workload.target):
        return None
    return _loss_of_lists(formulas.eager_loss_feature_space)


def _16bit(workload: Workload) -> Run | None:
    if workload.kind != "loss" or workload.dtype == torch.float32:
        return None
    return _loss_of_lists(formulas.eager_loss_16bit)


def _16bit_compiled(workload: Workload) -> Run | None:
    if workload.tokens or _16bit(workload) is None:
        return None
    return _loss_of_lists(_compile(formulas.eager_loss_16bit))


def _mm(workload: Workload) -> Run | None:
    if workload.kind == "gram":
        return lambda problem: Result([formulas.full_gram(x) for x in problem.xs], [])
    return None


def _official(workload: Workload) -> Run | None:
    if workload.kind != "loss" or workload.distance != "cka":
        return None
    return _loss_of_lists(formulas.official_loss)


def _pytorch_cka(workload: Workload) -> Run | None:
    if workload.kind != "matrix":
        return None

    def run(problem: Problem) -> Result:
        from cka import cka_from_features

        return Result([cka_from_features(problem.xs, problem.xs)], [])

    return run


def _squares(workload: Workload, n: int, a_pair: int) -> int:
    """``a_pair`` n x n matrices for every pair or layer."""
    return 4 * a_pair * len(workload.target) * max(1, workload.tokens) * n * n


def _least_extra(workload: Workload, n: int) -> int:
    """Results alone, and the n x n matrices."""
    out = workload.target if workload.kind in ("loss", "apply") else ()
    return workload.layer_bytes(n, *out) + _squares(workload, n, 4)


def _autograd_extra(workload: Workload, n: int) -> int:
    """The centred layers that autograd keeps, and the largest layer's temporaries."""
    kept = workload.target if workload.kind == "loss" else ()
    largest = max(workload.target + workload.guide)
    return (
        _least_extra(workload, n)
        + workload.layer_bytes(n, *kept, *(4 * [largest]))
        + _squares(workload, n, 8)
    )


def _official_extra(workload: Workload, n: int) -> int:
    return _autograd_extra(workload, n) + _squares(workload, n, 40)


_CUDA = ("cuda",)

CANDIDATES = [
    Candidate("pyguide", "this package", _pyguide, _least_extra),
    Candidate(
        "pyguide-graph",
        "this package, replayed as a CUDA graph",
        _graphed(_pyguide),
        _least_extra,
        graph=True,
        devices=_CUDA,
    ),
    Candidate(
        "eager",
        "honest eager torch: centred features, one Gram matrix a layer, autograd",
        _eager,
        _autograd_extra,
    ),
    Candidate(
        "eager-graph",
        "eager, replayed as a CUDA graph",
        _graphed(_eager),
        _autograd_extra,
        graph=True,
        devices=_CUDA,
    ),
    Candidate(
        "compile",
        "eager (for tokens eager-bmm) under torch.compile; its first call compiles",
        _compiled,
        _autograd_extra,
        compiles=True,
    ),
    # After compile, whose code it finds compiled.
    Candidate(
        "compile-graph",
        "compile, replayed as a CUDA graph",
        _graphed(_compiled),
        _autograd_extra,
        graph=True,
        devices=_CUDA,
    ),
    Candidate(
        "eager-bmm",
        "eager with batched products, for tokens",
        _batched(formulas.eager_loss_batched),
        _autograd_extra,
    ),
    Candidate(
        "eager-feature",
        "eager with d x d products, where n > d",
        _feature_space,
        _autograd_extra,
    ),
    Candidate(
        "eager-bf16",
        "eager with products in bfloat16, for bfloat16 layers",
        _16bit,
        _autograd_extra,
    ),
    Candidate(
        "compile-bf16",
        "eager-bf16 under torch.compile",
        _16bit_compiled,
        _autograd_extra,
        compiles=True,
        devices=_CUDA,
    ),
    Candidate(
        "mm",
        "torch.mm(x, x.T) alone (cuBLAS): the full product, not centred",
        _mm,
        _least_extra,
        devices=_CUDA,
        uncentered=True,
    ),
    Candidate(
        "official",
        "the formula of the paper's code: six Gram matrices a pair, centred by products with H",
        _official,
        _official_extra,
    ),
    Candidate(
        "pytorch-cka",
        "cka.cka_from_features, debiased, no gradient",
        _pytorch_cka,
        _autograd_extra,
        package=("pytorch-cka", "cka"),
    ),
    Candidate(
        "lightly-formula",
        "the formula of lightly 1.6's PatchKernelAlignmentLoss, a token an image",
        _batched(formulas.lightly_loss),
        _autograd_extra,
    ),
]


def candidate(name: str) -> Candidate:
    """The candidate of that name.

    Raises
    ------
    KeyError
    """
    return {c.name: c for c in CANDIDATES}[name]


def candidates_of(workload: Workload, names: list[str], device: str = "cpu") -> list[Candidate]:
    """Those of the named candidates that compute the workload on that type of device."""
    named = [c for c in CANDIDATES if c.name in names and device in c.devices]
    return [c for c in named if c.make(workload) is not None]
