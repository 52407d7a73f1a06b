"""The operators of CKA, in sample and in feature space, and their autograd function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyguide.ops import feature_space, sample_space
from pyguide.ops.contract import result_dtype, token_count
from pyguide.ops.first_derivative import by_input, needs_gradient
from pyguide.ops.library import register

__all__ = ["align"]

# The last arguments of every operator: debiased, per_token, precision code.
_Options = tuple[bool, bool, int]


def _register_route(name: str, route: Any) -> tuple[Any, Any]:
    """Register the forward and backward operators of one way to compute CKA."""

    def fake_forward(
        layers: list[Tensor],
        left: list[int],
        right: list[int],
        debiased: bool,
        per_token: bool,
        precision: int,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        count = len(left) * token_count(layers, per_token)
        values = layers[0].new_empty(count, dtype=torch.float64)
        degenerate = layers[0].new_empty(count, dtype=torch.bool)
        return values, degenerate, route.fake_saved(layers, left, right, per_token)

    def fake_backward(
        grad: Tensor,
        values: Tensor,
        degenerate: Tensor,
        saved: list[Tensor],
        layers: list[Tensor],
        left: list[int],
        right: list[int],
        wanted: list[int],
        debiased: bool,
        per_token: bool,
        precision: int,
    ) -> list[Tensor]:
        return [torch.empty_like(layers[w]) for w in wanted]

    forward = register(
        f"{name}(Tensor[] layers, int[] left, int[] right, bool debiased,"
        " bool per_token, int precision) -> (Tensor values, Tensor degenerate, Tensor[] saved)",
        implementation=route.forward,
        fake=fake_forward,
    )
    backward = register(
        f"{name}_backward(Tensor grad, Tensor values, Tensor degenerate, Tensor[] saved,"
        " Tensor[] layers, int[] left, int[] right, int[] wanted, bool debiased,"
        " bool per_token, int precision) -> Tensor[]",
        implementation=route.backward,
        fake=fake_backward,
    )
    return forward, backward


_sample_forward, _sample_backward = _register_route("cka_sample_space", sample_space)
_feature_forward, _feature_backward = _register_route("cka_feature_space", feature_space)


class _CKA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        in_feature_space: bool,
        left: list[int],
        right: list[int],
        options: _Options,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        forward = _feature_forward if in_feature_space else _sample_forward
        values, degenerate, saved = forward(list(layers), left, right, *options)
        ctx.in_feature_space = in_feature_space
        ctx.pairs = left, right
        ctx.options = options
        ctx.layers = len(layers)
        ctx.save_for_backward(values, degenerate, *layers, *saved)
        ctx.mark_non_differentiable(degenerate)
        return values.to(result_dtype(layers), copy=True), degenerate

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        values, degenerate, *rest = ctx.saved_tensors
        layers, saved = rest[: ctx.layers], rest[ctx.layers :]
        left, right = ctx.pairs
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        backward = _feature_backward if ctx.in_feature_space else _sample_backward
        computed = backward(
            grad, values, degenerate, saved, layers, left, right, wanted, *ctx.options
        )
        return (None, None, None, None, *by_input(computed, wanted, grad, layers))


def align(
    in_feature_space: bool,
    pairs: list[tuple[int, int]],
    options: _Options,
    layers: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Values and degenerate flags of pairs of layers by one of the routes."""
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    if needs_gradient(layers):
        values, degenerate = _CKA.apply(in_feature_space, left, right, options, *layers)
        return values, degenerate
    # Not only cheaper: where nothing requires grad, Dynamo tells a Function that takes ctx from
    # one that does not by the number of arguments, and some numbers of layers mislead it.
    forward = _feature_forward if in_feature_space else _sample_forward
    values, degenerate, _ = forward(layers, left, right, *options)
    return values.to(result_dtype(layers)), degenerate
