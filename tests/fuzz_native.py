"""Random calls of the native module and the public operators, each compared with float64.

Every call has its own seed, so a failure is repeated by the arguments that it prints:

    python tests/fuzz_native.py --calls 100000 --seed 0
    python tests/fuzz_native.py --calls 1 --seed 0 --start 4711
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fuzz_bad_calls import call_badly
from fuzz_matrices import DTYPES, Matrix, Output, expect, expect_close, settings
from torch import Tensor
from tqdm import tqdm

import pyguide
from pyguide import _native, reference
from pyguide.ops import cpu
from pyguide.ops.views import DTYPE_CODES

CENTERINGS = {"none": 0, "H": 1, "U": 2}


def few_or_many(rng: random.Random, smallest: int = 1) -> int:
    """A number of samples: mostly up to 70, sometimes to 600."""
    return rng.randint(
        smallest, rng.choice([8, 40, 40, 70, 70, 70] if rng.random() < 0.97 else [600])
    )


def width(rng: random.Random, n: int) -> int:
    return rng.randint(1, rng.choice([3, 40, 100, 700]) if n <= 70 else 60)


def random_stack(rng: random.Random, dtype: torch.dtype, layers: int, n: int) -> Tensor:
    x = torch.randn(layers, n, n, dtype=torch.float64) + rng.choice([0, 0.5])
    return ((x + x.mT) * rng.choice([1e-6, 1, 1e3])).to(dtype)


def token_count(rng: random.Random) -> int:
    return rng.choice([1, 1, 2, 3])


def by_token(indices: Sequence[int], tokens: int) -> list[int]:
    """The matrices of layers in a stack that holds them token by token."""
    return [i * tokens + t for i in indices for t in range(tokens)]


def random_pairs(rng: random.Random, layers: int) -> tuple[list[int], list[int]]:
    count = rng.randint(1, 6)
    sides = [[rng.randrange(layers) for _ in range(count)] for _ in range(2)]
    return sides[0], sides[1]


def call_gram(rng: random.Random) -> None:
    centering = rng.choice(list(CENTERINGS))
    n, tokens = few_or_many(rng, 4 if centering == "U" else 1), token_count(rng)
    layers = [
        Matrix(rng, rng.choice(DTYPES), n, width(rng, n), tokens, False).randomize(rng)
        for _ in range(rng.randint(1, 3))
    ]
    matrices = [matrix for x in layers for matrix in x.values]
    dtype = rng.choice([torch.float32, torch.float64])
    grams, stats = Output(dtype, len(matrices), n, n), Output(torch.float64, len(matrices), 2)
    views = [x.view for x in layers]
    code = DTYPE_CODES[dtype]
    _native.gram(
        views, CENTERINGS[centering], grams.address(), code, n, stats.address(), *settings(rng)
    )
    for x, k, (trace, square) in zip(matrices, grams.tensor, stats.tensor.tolist(), strict=True):
        exact = x.double()
        if centering != "none":
            exact = reference.center_features(exact)
        expected = exact @ exact.mT
        exact_double = x.dtype == dtype == torch.float64
        bound = (1e-13 if exact_double else 3e-6) * expected.diagonal().max().item()
        expected_trace = expected.trace().item()
        if centering == "U":
            expected = reference.u_center(expected)
        what = f"Gram of {tuple(x.shape)} {x.dtype} {x.stride()}"
        expect_close(k, expected, bound, what)
        expect(torch.equal(k, k.mT), f"{what}: not symmetric")
        if centering != "none":
            expect(abs(trace - expected_trace) <= n * bound, f"{what}: trace {trace}")
            norm = k.double().norm().item()
            expect(abs(square**0.5 - norm) <= 1e-9 * norm, f"{what}: square of the norm {square}")
    grams.check_guards()
    stats.check_guards()


def random_alignment(rng: random.Random) -> dict[str, Any]:
    """Grams, their statistics, pairs and the pairs' values, computed in float64."""
    n, tokens, layers = few_or_many(rng), token_count(rng), rng.randint(1, 4)
    dtype = rng.choice([torch.float32, torch.float64])
    grams = random_stack(rng, dtype, layers * tokens, n)
    if rng.random() < 0.2:
        grams[rng.randrange(len(grams))] = 0
    if rng.random() < 0.1:
        grams[rng.randrange(len(grams)), 0, 0] = float("nan")
    squares = grams.double().square().sum(dim=(1, 2))
    stats = torch.stack([squares.sqrt() * rng.choice([0.5, 1, 30]), squares], dim=1)
    layer_pairs = random_pairs(rng, layers)
    left, right = (by_token(side, tokens) for side in layer_pairs)
    exact = grams.double()
    inner = torch.stack([(exact[i] * exact[j]).sum() for i, j in zip(left, right, strict=True)])
    norms = squares.sqrt()
    values = inner / norms[left] / norms[right]
    nan = squares[left].isnan() | squares[right].isnan()
    degenerate = ((squares[left] == 0) | (squares[right] == 0)) & ~nan
    values[degenerate] = 0
    return {
        "n": n,
        "grams": grams,
        "stats": stats,
        "layers": (*layer_pairs, tokens),
        "left": left,
        "right": right,
        "values": values,
        "degenerate": degenerate,
    }


def call_alignment(rng: random.Random) -> None:
    a = random_alignment(rng)
    grams, count = a["grams"], len(a["left"])
    values, flags = Output(torch.float64, count), Output(torch.uint8, count)
    _native.alignment(
        *(grams.data_ptr(), DTYPE_CODES[grams.dtype], len(grams), a["n"], a["stats"].data_ptr()),
        *(*a["layers"], values.address(), flags.address(), *settings(rng)),
    )
    expect_close(values.tensor, a["values"], 1e-12, f"alignment at n = {a['n']}")
    expect(torch.equal(flags.tensor.bool(), a["degenerate"]), "degenerate flags differ")
    values.check_guards()
    flags.check_guards()


def call_coefficients(rng: random.Random) -> None:
    a = random_alignment(rng)
    grams, stats = a["grams"], a["stats"]
    tokens = a["layers"][2]
    wanted_layers = [rng.randrange(len(grams) // tokens) for _ in range(rng.randint(0, 4))]
    wanted = by_token(wanted_layers, tokens)
    grad = torch.randn(len(a["left"]), dtype=torch.float64)
    out = Output(grams.dtype, len(wanted), a["n"], a["n"])
    _native.coefficients(
        *(grams.data_ptr(), DTYPE_CODES[grams.dtype], len(grams), a["n"], stats.data_ptr()),
        *(*a["layers"], a["values"].data_ptr(), a["degenerate"].data_ptr()),
        *(grad.data_ptr(), wanted_layers, out.address(), *settings(rng)),
    )
    exact, norms = grams.double(), stats[:, 1].sqrt()
    for w, actual in zip(wanted, out.tensor, strict=True):
        expected = torch.zeros_like(exact[w])
        for p, ends in enumerate(zip(a["left"], a["right"], strict=True)):
            for self, other in (ends, ends[::-1]):
                if self == w and not a["degenerate"][p]:
                    c = a["values"][p]
                    both = exact[other] / norms[other] - c * exact[self] / norms[self]
                    expected += 2 * grad[p] * both / norms[self]
        # The terms may cancel: their own size is what rounding is relative to.
        term = (2 * grad.abs().sum() / norms[w]).nan_to_num(posinf=0).item()
        scale = expected.nan_to_num().abs().max().item() + term
        bound = (1e-13 if grams.dtype == torch.float64 else 1e-6) * scale
        expect_close(actual, expected, bound, f"coefficients at n = {a['n']}")
    out.check_guards()


def call_symmetrize(rng: random.Random) -> None:
    n, layers, center = few_or_many(rng), rng.randint(1, 4), rng.random() < 0.5
    dtype = rng.choice([torch.float32, torch.float64])
    grads = (torch.randn(layers, n, n) * rng.choice([1e-6, 1, 1e3])).to(dtype)
    out = Output(dtype, layers, n, n)
    _native.symmetrize(
        grads.data_ptr(), DTYPE_CODES[dtype], layers, n, center, out.address(), *settings(rng)
    )
    for g, actual in zip(grads.double(), out.tensor, strict=True):
        expected = g + g.mT
        bound = (1e-14 if dtype == torch.float64 else 1e-6) * expected.abs().max().item()
        if center:
            expected = reference.h_center(expected)
        expect_close(actual, expected, bound, f"symmetrize at n = {n}, center {center}")
    out.check_guards()


def call_apply(rng: random.Random) -> None:
    n, shifted = few_or_many(rng), rng.random() < 0.5
    dtype = rng.choice([torch.float32, torch.float64])
    counts = [token_count(rng)] * rng.randint(1, 3)
    a = random_stack(rng, torch.float64, sum(counts), n)
    if shifted:
        a = torch.stack([reference.h_center(k) for k in a])
    a = a.to(dtype)
    xs, outs = [], []
    for tokens in counts:
        d = width(rng, n)
        xs.append(Matrix(rng, rng.choice(DTYPES), n, d, tokens, output=False).randomize(rng))
        outs.append(Matrix(rng, xs[-1].values.dtype, n, d, tokens, output=True))
    views, to = [x.view for x in xs], [out.view for out in outs]
    _native.apply(a.data_ptr(), DTYPE_CODES[dtype], n, views, to, shifted, *settings(rng))
    inputs, results = ([matrix for batch in side for matrix in batch.values] for side in (xs, outs))
    for k, x, out in zip(a.double(), inputs, results, strict=True):
        exact = x.double()
        if shifted:
            exact = exact - exact[:1]
        expected = k @ exact
        scale = k.abs() @ exact.abs()
        arithmetic = 1e-13 if x.dtype == dtype == torch.float64 else 3e-6
        # A's row sums are not exactly zero, and the shift is not exactly this one.
        scale = scale + shifted * k.abs().sum(dim=1, keepdim=True) * exact.abs().max()
        info = torch.finfo(x.dtype)
        expected = expected.to(x.dtype).double()
        bound = arithmetic * scale + info.eps * expected.abs() + info.smallest_normal * info.eps
        bound = torch.where(expected.isinf(), float("inf"), bound)
        what = f"apply to {tuple(x.shape)} {x.dtype}, shifted {shifted}"
        same = (out.double() == expected) | ((out - expected).abs() <= bound)
        expect((same | (expected.abs() > 0.99 * info.max)).all(), what)
    for output in outs:
        output.check_guards()


def random_tensor(rng: random.Random, n: int, dtype: torch.dtype) -> Tensor:
    """A tensor of n samples with any strides that torch's own views can make."""
    d = width(rng, n)
    kind = rng.randrange(8)
    offset = rng.choice([0, 1, 30])

    def randn(*shape: int) -> Tensor:
        return (torch.randn(shape) + offset).to(dtype)

    if kind == 0:
        return randn(d, n).t()
    if kind == 1:
        return randn(2 * n, 3 * d)[::2, 1::3]
    if kind == 2:
        return randn(n, 3, max(1, d // 3))[:, rng.randrange(3)]
    if kind == 3:
        image = randn(n, 3, rng.randint(1, 6), rng.randint(1, 6))
        return image.to(memory_format=torch.channels_last)
    if kind == 4:
        return randn(n, d, 1).expand(n, d, 2)
    if kind == 5:
        return randn(n * d + 5)[rng.randrange(5) :][: n * d].view(n, d)
    if kind == 6:
        return randn(n)
    return randn(n, d)


def random_tokens(rng: random.Random, n: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """A tensor (n, T, ...) with any strides that torch's own views can make."""
    d, kind = rng.randint(1, 20), rng.randrange(6)
    offset = rng.choice([0, 1, 30])

    def randn(*shape: int) -> Tensor:
        return (torch.randn(shape) + offset).to(dtype)

    if kind == 0:
        return randn(tokens, n, d).transpose(0, 1)
    if kind == 1:
        return randn(n, d, tokens).transpose(1, 2)
    if kind == 2:
        return randn(n, 2 * tokens, 2 * d)[:, ::2, 1::2]
    if kind == 3:
        return randn(n, tokens, 3, rng.randint(1, 4)).transpose(2, 3)
    if kind == 4:
        return randn(n, tokens)
    return randn(n, tokens, d)


def condition(x: Tensor, debiased: bool, per_token: bool) -> float:
    """How much rounding of the Gram matrix is amplified in CKA: tr(Kc) / ||K°||."""
    if per_token:
        return max(condition(token, debiased, False) for token in x.unbind(1))
    x = reference.center_features(x.reshape(len(x), -1))
    k = x @ x.mT
    norm = (reference.u_center(k) if debiased else k).norm().item()
    return k.trace().item() / norm if norm > 0 else float("inf")


def call_public(rng: random.Random) -> None:
    debiased = rng.random() < 0.5
    n = few_or_many(rng, 4 if debiased else 2)
    dtype = rng.choice([*DTYPES, None])  # None: mixed
    options: dict[str, Any] = {"debiased": debiased}
    function = rng.choice(["cka_pairs", "cka_pairs", "cka_matrix"])
    per_token = function == "cka_pairs" and rng.random() < 0.5
    tokens = rng.randint(1, 6)

    def random_layer() -> Tensor:
        of = dtype or rng.choice(DTYPES)
        return random_tokens(rng, n, tokens, of) if per_token else random_tensor(rng, n, of)

    xs, ys = ([random_layer() for _ in range(rng.randint(1, 3))] for _ in range(2))
    if rng.random() < 0.3:
        ys[0] = xs[0]
    if function == "cka_pairs":
        options["per_token"] = per_token
        count = rng.randint(1, 4)
        options["pairs"] = [(rng.randrange(len(xs)), rng.randrange(len(ys))) for _ in range(count)]

    # One leaf for each tensor: xs and ys may share some.
    leaves = {id(t): t.detach().requires_grad_(rng.random() < 0.7) for t in [*xs, *ys]}
    exact = {key: t.detach().double().requires_grad_(t.requires_grad) for key, t in leaves.items()}
    _configure(rng)
    actual, expected = (
        getattr(module, function)([of[id(x)] for x in xs], [of[id(y)] for y in ys], **options)
        for module, of in ((pyguide, leaves), (reference, exact))
    )
    pairs = [(x, exact[key]) for key, x in leaves.items() if x.requires_grad]
    grad = torch.randn(expected.shape, dtype=torch.float64)
    gradients = []
    if expected.requires_grad:
        gradients = [
            torch.autograd.grad(
                *(value, leaves, grad.to(value.dtype)), allow_unused=True, materialize_grads=True
            )
            for value, leaves in zip((actual, expected), zip(*pairs, strict=True), strict=True)
        ]
    amplification = max(condition(x.detach(), debiased, per_token) for x in exact.values())
    if amplification > 1e3:
        return  # nearly constant: the values are rounding noise
    bound = (1e-11 if actual.dtype == torch.float64 else 1e-5) * max(1, amplification / 10)
    expect_close(actual.detach(), expected.detach(), bound, function)
    for (x, y), g, e in zip(pairs, *(gradients or ([], [])), strict=bool(gradients)):
        # CKA does not change with X's scale: 1/||X|| is the scale of its gradient.
        size = reference.center_features(y.detach().reshape(n, -1)).norm()
        scale = e.norm() + grad.abs().sum() * amplification / size
        info = torch.finfo(x.dtype)
        rounding = info.eps * (e.norm() + info.smallest_normal * e.numel() ** 0.5)
        error = (g.double() - e).norm()
        expect(
            error <= 2 * bound * scale + rounding,
            f"gradient of {function} in {tuple(x.shape)} {x.dtype}: {error:.3e} of {scale:.3e}",
        )


def call_public_gram(rng: random.Random) -> None:
    n, center = few_or_many(rng, 2), rng.random() < 0.5
    xs = [random_tensor(rng, n, rng.choice(DTYPES)).detach() for _ in range(rng.randint(1, 3))]
    _configure(rng)
    leaves = [x.requires_grad_() for x in xs]
    exact = [x.detach().double().requires_grad_() for x in xs]
    actual, expected = pyguide.gram(leaves, center=center), reference.gram(exact, center=center)
    grad = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(actual, leaves, grad.to(actual.dtype))
    exact_gradients = torch.autograd.grad(expected, exact, grad)
    scale = expected.detach().abs().amax(dim=(1, 2), keepdim=True)
    double = actual.dtype == torch.float64
    expect_close(actual.detach(), expected, (1e-13 if double else 3e-6) * scale, "gram")
    for x, g, e in zip(leaves, gradients, exact_gradients, strict=True):
        magnitude = e.abs().max().item() + x.detach().double().abs().max().item() * n**0.5
        info = torch.finfo(x.dtype)
        bound = ((1e-12 if double else 1e-5) + info.eps) * magnitude
        finite = e.abs() < 0.9 * info.max
        expect_close(g[finite], e[finite], bound, f"gradient of gram in {tuple(x.shape)} {x.dtype}")


def _configure(rng: random.Random) -> None:
    threads, cpu.instruction_set = settings(rng)
    torch.set_num_threads(threads)


CALLS: dict[Callable[[random.Random], None], float] = {
    call_gram: 3,
    call_alignment: 1,
    call_coefficients: 1,
    call_symmetrize: 1,
    call_apply: 3,
    call_public: 2,
    call_public_gram: 1,
    call_badly: 2,
}


def fuzz_one(seed: int, index: int) -> str:
    """Make call number ``index`` of the run with this seed; return which kind of call it was.

    Raises AssertionError on a wrong answer, with the command that repeats it.
    """
    rng = random.Random(f"{seed} {index}")
    torch.manual_seed(rng.getrandbits(60))
    (call,) = rng.choices(list(CALLS), list(CALLS.values()))
    threads, instruction_set = torch.get_num_threads(), cpu.instruction_set
    try:
        call(rng)
    except Exception as error:
        again = f"python tests/fuzz_native.py --calls 1 --seed {seed} --start {index}"
        raise AssertionError(f"{call.__name__}: {error}; again with: {again}") from error
    finally:
        torch.set_num_threads(threads)
        cpu.instruction_set = instruction_set
    return call.__name__


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100_000, help="how many calls to make")
    parser.add_argument("--seed", type=int, default=0, help="which run")
    parser.add_argument("--start", type=int, default=0, help="number of the first call")
    arguments = parser.parse_args()
    for index in tqdm(range(arguments.start, arguments.start + arguments.calls), unit="call"):
        fuzz_one(arguments.seed, index)
    print(f"{arguments.calls} calls from {arguments.start} on, seed {arguments.seed}: all right")


if __name__ == "__main__":
    main()
