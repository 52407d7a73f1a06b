"""What is compared with what: networks, batches, pairs and processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from guidance_cost import CASES, Case

from pyguide.experiments.networks import DeepFCN

GROUPS = ("samples", "pairs", "processes")
LAYERS = 100

NETWORKS = {
    **{name: CASES[name] for name in ("deep-fcn", "mnist")},
    "two-fcns": Case(
        f"two networks of {LAYERS} hidden layers of 128",
        lambda: DeepFCN(LAYERS + 1),
        lambda: DeepFCN(LAYERS + 1),
        (40,),
    ),
}


@dataclass(frozen=True)
class Candidate:
    """A way to take the step, and the one that it is compared with."""

    name: str
    step: str
    base: str
    processes: int = 1
    #: Of each process; None: as the user says.
    threads: int | None = None


@dataclass(frozen=True)
class Setting:
    """What the candidates of one comparison share."""

    group: str
    networks: str
    #: Samples of the step, all processes together.
    n: int
    candidates: tuple[Candidate, ...]
    #: So many of the hidden layers, evenly spread; None: "even".
    pairs: int | None = None

    @property
    def name(self) -> str:
        pairs = "" if self.pairs is None else f", {self.pairs} pairs"
        return f"{self.group}: {self.networks}, n = {self.n}{pairs}"


_UNGUIDED = Candidate("unguided", "unguided", "unguided")
_GUIDED = Candidate("guided", "guided", "unguided")
_CHUNKED = Candidate("guided in chunks", "chunked", "unguided")


def _in_processes() -> Iterator[Candidate]:
    for processes, threads in ((1, 2), (1, 1), (2, 1)):
        where = f"{processes} x {threads}"
        for step in ("unguided", "guided", "local") if processes > 1 else ("unguided", "guided"):
            yield Candidate(f"{step}, {where}", step, f"unguided, {where}", processes, threads)


def settings(*, quick: bool) -> list[Setting]:
    """All that is measured, the least first."""
    chunk = chunk_size(quick=quick)
    samples = (16, 48) if quick else tuple(2**k for k in range(6, 14))
    of_samples = [
        Setting("samples", name, n, (_UNGUIDED, _GUIDED, *[_CHUNKED] * (n > chunk)))
        for name, sizes in (("deep-fcn", samples), ("mnist", () if quick else (64, 256, 1024)))
        for n in sizes
    ]
    of_pairs = [
        Setting("pairs", "two-fcns", 16 if quick else 256, (_UNGUIDED, _GUIDED), count)
        for count in ((1, 4) if quick else (1, 3, 10, 30, 100))
    ]
    of_processes = [
        Setting("processes", "deep-fcn", n, tuple(_in_processes()))
        for n in ((32,) if quick else (256, 2048))
    ]
    return [*of_pairs, *of_processes, *of_samples]


def chunk_size(*, quick: bool) -> int:
    """Samples of a chunk."""
    return 32 if quick else 256


def spread_pairs(count: int) -> list[tuple[str, str]]:
    """So many of the hidden layers of "two-fcns" with their twins, from the first to the last."""
    if count == 1:
        return [(f"{LAYERS - 1}.0", f"{LAYERS - 1}.0")]
    chosen = [round(i * (LAYERS - 1) / (count - 1)) for i in range(count)]
    return [(f"{i}.0", f"{i}.0") for i in chosen]
