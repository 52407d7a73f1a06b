"""Every candidate's values and gradients against pyguide.reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyguide import reference
from pyguide.bench.candidates import Result
from pyguide.bench.workloads import Problem, Workload

__all__ = ["TOLERANCE", "Errors", "errors", "exact"]

#: Largest relative error (Frobenius norm) of a right answer. Loose: float32 Grams of some
#: peers and 16-bit gradients are meant to pass, another quantity is not.
TOLERANCE = {"value": 1e-3, "gradient": 1e-2}


@dataclass(frozen=True)
class Errors:
    """Relative errors; the gradient's is the largest over the layers, None without one.

    ``loose`` says that the values are products of 16-bit numbers, not averages over many.
    """

    value: float
    gradient: float | None
    loose: bool = False

    @property
    def wrong(self) -> bool:
        """Whether one is above its tolerance, or NaN."""
        # Written so that NaN is wrong.
        value_is_right = self.value <= TOLERANCE["gradient" if self.loose else "value"]
        gradient_is_right = self.gradient is None or self.gradient <= TOLERANCE["gradient"]
        return not (value_is_right and gradient_is_right)


def _pairwise_distance(
    function: str, parameters: Sequence[float], centering: str, x: Tensor, y: Tensor
) -> Tensor:
    values, _ = reference.pairwise_alignment(
        [x], [y], function, parameters, centering, pairs=[(0, 0)]
    )
    return 1 - values[0]


def exact(workload: Workload, problem: Problem) -> Result:
    """The reference in float64, a layer or pair at a time; gradients rounded to float32."""
    if workload.kind == "loss":
        return _loss(problem, _DISTANCES[workload.distance])
    return {"matrix": _matrix, "gram": _gram, "apply": _apply}[workload.kind](problem)


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cka": lambda x, y: 1 - reference.cka(x, y),
    "rbf_cka": partial(_pairwise_distance, "rbf", (1.0, 0.0), "h"),
    "rsa": partial(_pairwise_distance, "cosine", (), "off_diagonal"),
}


def _loss(problem: Problem, distance_of: Callable[[Tensor, Tensor], Tensor]) -> Result:
    loss = problem.xs[0].new_zeros((), dtype=torch.float64)
    gradient = []
    for x, y in zip(*problem.pairs(), strict=True):
        x = x.detach().double().requires_grad_()
        distance = distance_of(x, y.double())
        gradient.append(torch.autograd.grad(distance, x)[0].float())
        loss += distance.detach()
    return Result([loss], gradient)


def _matrix(problem: Problem) -> Result:
    grams = [reference.u_center(reference.gram([x.double()])[0]).flatten() for x in problem.xs]
    stacked = torch.stack([k / k.norm() for k in grams])
    return Result([stacked @ stacked.T], [])


def _gram(problem: Problem) -> Result:
    return Result([reference.gram([x.double()])[0] for x in problem.xs], [])


def _apply(problem: Problem) -> Result:
    assert problem.coefficients is not None
    pairs = zip(problem.coefficients, problem.xs, strict=True)
    products = [a.double() @ reference.center_features(x.double()) for a, x in pairs]
    return Result([product.float() for product in products], [])


def errors(problem: Problem, result: Result, expected: Result, *, loose: bool = False) -> Errors:
    """Compare a candidate's result with :func:`exact`'s."""
    value = _largest(result.values, expected.values)
    if not expected.gradient:
        return Errors(value, None, loose)
    return Errors(value, _largest(problem.split(result.gradient), expected.gradient))


def _largest(got: list[Tensor], expected: list[Tensor]) -> float:
    relative = [
        float((g.double() - e.double()).norm() / e.double().norm())
        for g, e in zip(got, expected, strict=True)
    ]
    return max(relative, key=lambda e: (e != e, e))  # max() alone would pass over a NaN
