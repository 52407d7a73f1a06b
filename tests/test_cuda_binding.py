"""The binding of the CUDA library: what it refuses before a kernel is reached."""

from __future__ import annotations

import fake_libraries
import pytest
import torch

from pyguide import cuda_library
from pyguide._native import cuda

N = 8


@pytest.fixture(scope="module", autouse=True)
def _library(tmp_path_factory):
    library = fake_libraries.cuda_library(tmp_path_factory.mktemp("fake"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_library, "path", str(library))
        assert cuda_library.why_missing() is None
        yield


@pytest.fixture
def calls():
    """Arguments of one good call of each function, which keep nothing alive: see ``owners``."""
    xs = [torch.randn(N, d) for d in (3, 5)]
    outs = [torch.empty_like(x) for x in xs]
    grams, padded = torch.randn(2, N, N), torch.empty(2, N, 32)
    stats, values, bounds = (torch.ones(2, dtype=torch.float64) for _ in range(3))
    grad, flags, workspace = torch.ones(2), torch.zeros(2, dtype=torch.bool), torch.empty(64)

    def views(tensors):
        return [(t.data_ptr(), 1, N, t.size(1), t.size(1), 1, 1, 0) for t in tensors]

    where = {"device": 0, "stream": 0}
    space = {"workspace": workspace.data_ptr(), "workspace_bytes": 256}
    pairs = {"left": [0, 1], "right": [1, 1], "tokens": 1}
    stack = {"grams": grams.data_ptr(), "dtype": 1, "n": N, "stats": stats.data_ptr()}
    cka = {"values": values.data_ptr(), "degenerate": flags.data_ptr()}
    calls = {
        "gram": {**stack, **space, **where, "layers": views(xs), "centering": 1, "precision": 0},
        "gram_workspace": {"layers": views(xs), "n": N, "precision": 0, "device": 0},
        "alignment": {**stack, **pairs, **cka, **space, **where, "matrices": 2},
        "alignment_workspace": {"pairs": 2, "tokens": 3, "n": N},
        "coefficients": {
            **{**stack, **pairs, **cka, **where, "matrices": 2},
            **{"grad": grad.data_ptr(), "grad_dtype": 1, "wanted": [1, 0]},
            **{"out": padded.data_ptr(), "row_stride": 32, "bounds": bounds.data_ptr()},
        },
        "apply": {
            **{"coefficients": padded.data_ptr(), "dtype": 1, "n": N, "row_stride": 32},
            **{"bounds": bounds.data_ptr(), "layers": views(xs), "outs": views(outs)},
            **{"shifted": True, "precision": 2, **where},
        },
        "device_capability": {"device": 0},
        "open_device": {"device": 0},
        "stat_chunks": {"n": N},
    }
    owners = [xs, outs, grams, padded, stats, values, bounds, grad, flags, workspace]
    yield calls
    del owners


def view(**changed: int) -> tuple[int, ...]:
    names = ("data", "dtype", "rows", "cols", "row_stride", "col_stride", "tokens", "token_stride")
    good = dict(zip(names, (4096, 1, N, 3, 3, 1, 1, 0), strict=True))
    return tuple({**good, **changed}.values())


@pytest.mark.parametrize("function", ["gram", "alignment", "coefficients", "apply"])
def test_the_library_is_reached_and_its_message_raised(calls, function):
    with pytest.raises(RuntimeError, match=f"{function} was reached"):
        getattr(cuda, function)(**calls[function])


def test_sizes_are_returned(calls):
    assert cuda.gram_workspace(**calls["gram_workspace"]) == 2
    assert cuda.alignment_workspace(**calls["alignment_workspace"]) == 6
    assert cuda.stat_chunks(**calls["stat_chunks"]) == N
    assert cuda.device_capability(**calls["device_capability"]) == 90


LAYERS = [
    ([], "at least one layer"),
    ([view(data=0)], "null pointer"),
    ([view(data=4097)], "not aligned"),
    ([view(dtype=4)], "dtype code"),
    ([view(rows=7)], "number of samples"),
    ([view(cols=0)], "no features"),
    ([view(row_stride=-3)], "must not be negative"),
    ([view(tokens=0)], "no tokens"),
    ([view(), view(tokens=2)], "differ in tokens"),
    ([view(tokens=2**62), view(tokens=2**62)], "beyond the address space"),
]
DEVICE = [("device", -1, "device must not be negative")]
PRECISION = [("precision", code, "precision code") for code in (-1, 3)]
WORKSPACE = [
    ("workspace", 0, "workspace is a null pointer"),
    ("workspace", 4104, "workspace is not aligned"),
    ("workspace_bytes", -1, "workspace_bytes must not be negative"),
]
STACK = [
    ("grams", 0, "grams is a null pointer"),
    ("dtype", 2, "float32 or float64"),
    ("n", 0, "n must be positive"),
    ("stats", 0, "stats is a null pointer"),
    ("stats", 4100, "stats is not aligned"),
]
PAIRS = [
    ("matrices", 0, "at least one layer"),
    ("matrices", 2**60, "beyond the address space"),
    ("tokens", 0, "tokens must be positive"),
    ("tokens", 3, "as many tokens"),
    ("left", [0], "differ in length"),
    ("left", [0, 2], "a pair index is out of range"),
    ("right", [-1, 0], "a pair index is out of range"),
    ("values", 4100, "values is not aligned"),
    ("values", 0, "values is a null pointer"),
    ("degenerate", 0, "degenerate is a null pointer"),
]
BAD = {
    "gram": [
        *[("layers", layers, message) for layers, message in LAYERS],
        *STACK[:2],
        ("n", 7, "number of samples"),
        *STACK[3:],
        *(PRECISION + WORKSPACE + DEVICE),
        ("centering", 3, "centering code"),
    ],
    "gram_workspace": [
        *[("layers", layers, message) for layers, message in LAYERS],
        *(PRECISION + DEVICE),
    ],
    "alignment": STACK + PAIRS + WORKSPACE + DEVICE,
    "alignment_workspace": [
        ("pairs", -1, "pairs must not be negative"),
        ("tokens", 0, "tokens must be positive"),
        ("n", 0, "n must be positive"),
    ],
    "coefficients": [
        *(STACK + PAIRS + DEVICE),
        ("wanted", [0, 2], "a wanted layer is out of range"),
        ("grad", 0, "grad is a null pointer"),
        ("grad", 4098, "grad is not aligned"),
        ("grad_dtype", 2, "grad is float32 or float64"),
        ("out", 0, "out is a null pointer"),
        ("row_stride", 7, "rows of a stack overlap"),
        ("row_stride", 2**60, "beyond the address space"),
        ("bounds", 0, "bounds is a null pointer"),
        ("bounds", 4100, "bounds is not aligned"),
    ],
    "apply": [
        ("coefficients", 0, "coefficients is a null pointer"),
        ("dtype", 3, "float32 or float64"),
        ("n", 7, "number of samples"),
        ("row_stride", 7, "rows of a stack overlap"),
        ("bounds", 4100, "bounds is not aligned"),
        *[("layers", layers, message) for layers, message in LAYERS[1:-2]],
        ("layers", [view()], "differ in length"),
        ("layers", [view(cols=4), view(cols=5)], "differ in features"),
        ("outs", [view(row_stride=0), view(cols=5)], "elements of an output overlap"),
        *(PRECISION + DEVICE),
    ],
    "device_capability": DEVICE,
    "open_device": DEVICE,
    "stat_chunks": [("n", 0, "n must be positive")],
}


@pytest.mark.parametrize(
    ("function", "argument", "value", "message"),
    [(function, *bad) for function, cases in BAD.items() for bad in cases],
)
def test_bad_arguments_are_refused(calls, function, argument, value, message):
    with pytest.raises(ValueError, match=message):
        getattr(cuda, function)(**{**calls[function], argument: value})


def test_u_centring_needs_four_samples(calls):
    three = view(rows=3)
    with pytest.raises(ValueError, match="n >= 4"):
        cuda.gram(**{**calls["gram"], "layers": [three], "n": 3, "centering": 2})


@pytest.mark.parametrize(
    ("function", "nothing"),
    [
        ("alignment", {"left": [], "right": [], "values": 0}),
        ("coefficients", {"wanted": [], "out": 0, "bounds": 0}),
        ("apply", {"layers": [], "outs": []}),
    ],
)
def test_nothing_to_do_does_not_reach_the_library(calls, function, nothing):
    def reached(**changed) -> bool:
        try:
            getattr(cuda, function)(**{**calls[function], **changed})
        except RuntimeError as error:
            assert str(error) == f"{function} was reached"
            return True
        return False

    assert reached()
    assert not reached(**nothing)
