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

class cuda:
    """A submodule: the kernels of the CUDA library that was opened last."""

    not_built: str
    architectures: str
    min_capability: int

    @staticmethod
    def open(path: str) -> None: ...
    @staticmethod
    def device_count() -> int: ...
    @staticmethod
    def device_capability(device: int) -> int: ...
    @staticmethod
    def open_device(device: int) -> int: ...
    @staticmethod
    def stat_chunks(n: int) -> int: ...
    @staticmethod
    def gram_workspace(
        layers: Sequence[Sequence[int]], n: int, precision: int, device: int
    ) -> int: ...
    @staticmethod
    def gram(
        layers: Sequence[Sequence[int]],
        centering: int,
        precision: int,
        grams: int,
        dtype: int,
        n: int,
        stats: int,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def alignment_workspace(pairs: int, tokens: int, n: int) -> int: ...
    @staticmethod
    def alignment(
        grams: int,
        dtype: int,
        matrices: int,
        n: int,
        stats: int,
        left: Sequence[int],
        right: Sequence[int],
        tokens: int,
        values: int,
        degenerate: int,
        workspace: int,
        workspace_bytes: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def coefficients(
        grams: int,
        dtype: int,
        matrices: int,
        n: int,
        stats: int,
        left: Sequence[int],
        right: Sequence[int],
        tokens: int,
        values: int,
        degenerate: int,
        grad: int,
        grad_dtype: int,
        wanted: Sequence[int],
        out: int,
        row_stride: int,
        bounds: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def apply(
        coefficients: int,
        dtype: int,
        n: int,
        row_stride: int,
        bounds: int,
        layers: Sequence[Sequence[int]],
        outs: Sequence[Sequence[int]],
        shifted: bool,
        precision: int,
        device: int,
        stream: int,
    ) -> None: ...
