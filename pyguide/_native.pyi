from collections.abc import Sequence

def instruction_sets() -> list[str]: ...
def compiler() -> str: ...
def gram(
    layers: Sequence[Sequence[int]],
    centering: int,
    grams: int,
    dtype: int,
    n: int,
    stats: int,
    threads: int,
    instruction_set: str = "",
) -> None: ...
def alignment(
    grams: int,
    dtype: int,
    layers: int,
    n: int,
    stats: int,
    left: Sequence[int],
    right: Sequence[int],
    tokens: int,
    values: int,
    degenerate: int,
    threads: int,
    instruction_set: str = "",
) -> None: ...
def coefficients(
    grams: int,
    dtype: int,
    layers: int,
    n: int,
    stats: int,
    left: Sequence[int],
    right: Sequence[int],
    tokens: int,
    values: int,
    degenerate: int,
    grad: int,
    wanted: Sequence[int],
    out: int,
    threads: int,
    instruction_set: str = "",
) -> None: ...
def symmetrize(
    grads: int,
    dtype: int,
    layers: int,
    n: int,
    center: bool,
    out: int,
    threads: int,
    instruction_set: str = "",
) -> None: ...
def apply(
    coefficients: int,
    dtype: int,
    n: int,
    layers: Sequence[Sequence[int]],
    outs: Sequence[Sequence[int]],
    shifted: bool,
    threads: int,
    instruction_set: str = "",
) -> None: ...
def fma_peak(steps: int, threads: int, instruction_set: str = "") -> float: ...
