"""Peak memory of guided steps of large batches, in one piece and in chunks, beside the formula.

Each step is the first of a fresh process, after one of a few samples that loads what libraries
load: what it adds to the process's resident memory at most, the gradients of the parameters
included. glibc gives freed memory back at once there, of which it otherwise keeps up to 64 MiB. A
chunk's forward passes and the unguided steps of two are measured alike; with them
:meth:`pyguide.guidance.LargeBatch.memory` tells the peak for every n.
"""

from __future__ import annotations

import argparse
import ctypes
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from guidance_cost import CASES
from torch import Tensor

import pyguide
from pyguide.bench import result as results
from pyguide.bench.arguments import add_options, parse
from pyguide.bench.device import CPU
from pyguide.bench.memory import in_own_process, memory_of
from pyguide.guidance import LargeBatch
from pyguide.memory import available_bytes

CHUNK = 256
SAMPLES = (512, 2048, 8192)
NETWORKS = ("deep-fcn", "mnist")
#: Largest relative difference between the measured peak and the formula that is as it should be.
TOLERANCE = 0.15
_FEW = 8
# In glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

Step = Callable[[Tensor, Tensor], object]


class Steps:
    """The steps that are measured, of one pair of networks."""

    def __init__(self, networks: str, chunk: int) -> None:
        torch.manual_seed(0)
        case = CASES[networks]
        self.shape = case.shape
        self.target = case.target()
        example = torch.randn(2, *case.shape)
        self.guidance = pyguide.Guidance(self.target, case.guide(), example=example)
        self.large_batch = LargeBatch(self.guidance, chunk)

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, *self.shape), torch.randint(10, (n,))

    def task(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.target(x), y)

    def accumulated(self, x: Tensor, y: Tensor) -> None:
        """Unguided, chunk by chunk."""
        chunk = self.large_batch.chunk_size
        for some, labels in zip(x.split(chunk), y.split(chunk), strict=True):
            self.task(some, labels).backward()

    def whole(self, x: Tensor, y: Tensor) -> None:
        with self.guidance.capture():
            loss = self.task(x, y)
        self.guidance.total_loss(loss, x).backward()

    def large(self, x: Tensor, y: Tensor) -> None:
        self.large_batch.backward(self.task, x, y)

    def forward(self, x: Tensor, y: Tensor) -> None:
        """The first of the two passes, and distances of a chunk, which take less."""
        with torch.no_grad():
            self.large(x, y)


def _give_back_at_once() -> None:
    """Keep glibc from raising its thresholds, and so from keeping what is freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(parameter, 1 << 17)


def peak(networks: str, step: str, n: int, chunk: int) -> dict[str, int] | str:
    """Of one step."""
    warnings.filterwarnings("ignore", "the target has BatchNorm|biased CKA of")
    _give_back_at_once()
    steps = Steps(networks, chunk)
    run: Step = getattr(steps, step)
    x, y = steps.batch(n)
    run(x[:_FEW].clone(), y[:_FEW].clone())
    steps.target.zero_grad()
    return memory_of(partial(run, x, y))


def chunk_bytes(networks: str, chunk: int) -> dict[str, int]:
    """What :meth:`pyguide.guidance.BatchMemory.peak` is given, measured."""
    forward = measured(networks, "forward", chunk, chunk)
    step = measured(networks, "accumulated", 2 * chunk, chunk)
    steps = Steps(networks, chunk)
    kept = steps.large_batch.memory(chunk, steps.batch(2)[0]).activations
    if isinstance(forward, str) or isinstance(step, str):
        raise SystemExit(f"peak memory cannot be measured here: {forward}; {step}")
    return {"forward": forward - kept, "step": step}


def measured(networks: str, step: str, n: int, chunk: int) -> int | str:
    """Peak bytes, or why there are none."""
    found = in_own_process(peak, networks, step, n, chunk, threads=torch.get_num_threads())
    return found if isinstance(found, str) else found["peak"]


def measure(networks: str, n: int, chunk: int, of_chunk: dict[str, int]) -> dict[str, Any]:
    """One row: the formula's parts, its peak, and what was measured."""
    steps = Steps(networks, chunk)
    memory = steps.large_batch.memory(n, steps.batch(2)[0])
    expected = memory.peak(**of_chunk)
    assert expected is not None  # linear CKA tells its memory
    large = measured(networks, "large", n, chunk)
    row: dict[str, Any] = {
        "n": n,
        "activations": memory.activations,
        "distances": memory.distances,
        "gradients": memory.gradients,
        "formula": expected,
        "large_batch": large,
    }
    if not isinstance(large, str):
        row["measured_to_formula"] = large / expected
        row["as_stated"] = abs(large / expected - 1) <= TOLERANCE
    return row


def whole_step(networks: str, n: int, chunk: int, before: dict[str, Any] | None) -> int | str:
    """Peak of the step of the whole batch, if it fits by that of a smaller one, `before`."""
    known = before["whole_batch"] if before else 0
    free = available_bytes()
    if isinstance(known, str):
        return known
    # Activations grow with n, matrices with its square.
    most = known * (n // before["n"]) ** 2 if before else 0
    if free is not None and most > 0.8 * free:
        return "skipped: may not fit"
    return measured(networks, "whole", n, chunk)


def table(result: dict[str, Any]) -> str:
    """MiB of each row, in Markdown."""
    heads = ["networks", "n", "in one piece", "LargeBatch", "formula", "measured / formula"]
    heads += ["activations", "comparing", "gradients"]
    lines = [heads, ["---"] * len(heads)]
    for name, entry in result["cases"].items():
        for row in entry["rows"]:
            parts = (row[part] for part in ("activations", "distances", "gradients"))
            lines.append(
                [
                    name,
                    str(row["n"]),
                    *(_mib(row[key]) for key in ("whole_batch", "large_batch", "formula")),
                    f"{row['measured_to_formula']:.2f}" if "measured_to_formula" in row else "–",
                    *map(_mib, parts),
                ]
            )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mib(size: int | str) -> str:
    return "–" if isinstance(size, str) else f"{size / 2**20:.0f}"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not yet in the file."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    options = {"chunk": args.chunk}  # a run may go on with more networks or sizes
    result = results.new(CPU(quick=args.quick), args.commit, options, cases={})
    if args.resume:
        result = results.resume(args.out, result)
    for name in args.networks:
        entry = result["cases"].setdefault(name, {"description": CASES[name].description})
        if "chunk" not in entry:
            entry |= {"chunk": chunk_bytes(name, args.chunk), "rows": []}
        rows = entry["rows"]
        for n in sorted(args.n):
            if all(row["n"] != n for row in rows):
                row = measure(name, n, args.chunk, entry["chunk"])
                smaller = [other for other in rows if other["n"] < n]
                row["whole_batch"] = whole_step(
                    name, n, args.chunk, smaller[-1] if smaller else None
                )
                rows.append(row)
                rows.sort(key=lambda row: row["n"])
                results.save(args.out, result)
                print(f"{name}, n = {n}: {_mib(row['large_batch'])} MiB", flush=True)
    result["finished"] = True
    results.save(args.out, result)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(NETWORKS))
    parser.add_argument("--n", nargs="+", type=int, help=f"default: {SAMPLES}")
    parser.add_argument("--chunk", type=int, help=f"default: {CHUNK}")
    add_options(parser, "--threads", "--out", "--resume")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--table-from", type=Path, help="the table of this JSON, measure nothing")
    add_options(parser, "--commit")
    parser.add_argument("--quick", action="store_true", help="small sizes, no result")
    args = parse(parser, argv)
    args.n = args.n or ((64, 128) if args.quick else SAMPLES)
    args.chunk = args.chunk or (32 if args.quick else CHUNK)
    result = run(args) if args.table_from is None else results.load(args.table_from)
    if args.markdown is not None:
        args.markdown.write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
