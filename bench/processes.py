"""What the comparison of a batch over W processes costs each of them, counted.

Bytes that a process sends in a guided step, by collective, multiply-adds and bytes held between
forward and backward, for linear CKA of the layers that guidance pairs in the experiments'
networks. Computed for W up to 1024: the way that pyguide takes, N x N Gram matrices alone,
d x d products alone, and all samples gathered on every process. Counted for small W by the
operators while gloo processes on this machine compare random layers of these shapes. Nothing is
timed::

    pip install -c constraints.txt '.[bench]' && python bench/processes.py --out processes.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from guidance_cost import CASES as NETWORKS
from torch import Tensor

import pyguide
from pyguide.bench import result as results
from pyguide.bench.arguments import add_options, parse
from pyguide.bench.device import CPU
from pyguide.distances import LinearCKA
from pyguide.distributed import GlobalBatch
from pyguide.distributed.costs import (
    ProcessCost,
    chosen_cost,
    feature_space_cost,
    gather_cost,
    routes,
    sample_space_cost,
)

CASES = ("deep-fcn", "wide-fcn", "image-64")
SAMPLES = (64, 256)  # of a process
COUNTED = (1, 2, 3, 4)
COMPUTED = sorted({*COUNTED, *(2**k for k in range(11))})
COLLECTIVES = ("all_to_all", "all_reduce", "all_gather")
WAYS: dict[str, Callable[[Sequence[Tensor], Sequence[tuple[int, int]], int], ProcessCost]] = {
    "pyguide": lambda layers, pairs, w: chosen_cost(layers, pairs, w, False),
    "sample space": sample_space_cost,
    "feature space": lambda layers, pairs, w: feature_space_cost(layers, pairs, w, False),
    "gathered": gather_cost,
}
LABELS = {
    "pyguide": "this package",
    "sample space": "Gram matrices alone",
    "feature space": "d × d products alone",
    "gathered": "all samples everywhere",
}


@dataclass(frozen=True)
class Shapes:
    """The layers that guidance compares: shapes of a sample, and pairs of indices into them."""

    targets: list[tuple[int, ...]]
    guides: list[tuple[int, ...]]
    pairs: list[tuple[int, int]]

    def layers(
        self, n: int, device: str, dtype: torch.dtype = torch.float32
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Targets, with gradient, and guides of n samples: random, or of the meta device."""
        targets = [torch.randn(n, *s, device=device, dtype=dtype) for s in self.targets]
        guides = [torch.randn(n, *s, device=device, dtype=dtype) for s in self.guides]
        return [x.requires_grad_() for x in targets], guides

    def numbered(self, n: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """All layers in one list, on the meta device, and the pairs in it."""
        targets, guides = self.layers(n, "meta")
        return targets + guides, [(i, len(targets) + j) for i, j in self.pairs]


def shapes_of(name: str) -> Shapes:
    """Those of one of the experiments' networks and its guide."""
    case = NETWORKS[name]
    guidance = pyguide.Guidance(case.target(), case.guide())
    rows = guidance.plan(torch.randn(2, *case.shape)).rows
    targets = {row.target: row.target_shape[1:] for row in rows}
    guides = {row.guide: row.guide_shape[1:] for row in rows}
    indices = [(list(targets).index(row.target), list(guides).index(row.guide)) for row in rows]
    return Shapes(list(targets.values()), list(guides.values()), indices)


def computed(shapes: Shapes, n: int) -> dict[str, Any]:
    """The costs of each way for each W, and how many pairs pyguide takes to feature space."""
    layers, pairs = shapes.numbered(n)
    found: dict[str, Any] = {}
    for w in COMPUTED:
        costs = {way: cost(layers, pairs, w) for way, cost in WAYS.items()}
        found[str(w)] = {way: {**asdict(c), "sent": c.sent} for way, c in costs.items()}
        chosen = routes(layers, pairs, w, False)
        found[str(w)]["pairs_in_feature_space"] = sum(len(p) for route, _, p in chosen if route)
    return found


def counted(shapes: Shapes, processes: int, samples: Sequence[int]) -> dict[str, list[Any]]:
    """Bytes that each process of a step sent, by collective, for each number of samples."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (processes, shapes, tuple(samples), folder)
        mp.spawn(_count, arguments, nprocs=processes)  # type: ignore[no-untyped-call]
        each = [json.loads(_file(folder, rank).read_text()) for rank in range(processes)]
    return {str(n): [sent[str(n)] for sent in each] for n in samples}


def _count(rank: int, processes: int, shapes: Shapes, samples: Sequence[int], folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    sent = {}
    for n in samples:
        distance = GlobalBatch(LinearCKA())
        distance(*shapes.layers(n, "cpu"), pairs=shapes.pairs).sum().backward()
        sent[n] = {name: distance.sent[name] for name in COLLECTIVES}
    _file(folder, rank).write_text(json.dumps(sent))
    dist.destroy_process_group()


def _file(folder: str, rank: int) -> Path:
    return Path(folder) / f"{rank}.json"


def table(entry: dict[str, Any], n: int) -> str:
    """Each way's costs over W for n samples a process, in Markdown."""
    heads = ["W"] + [f"{label}: sent, held" for label in LABELS.values()]
    heads += ["multiply-adds: this package", "all samples everywhere"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for w, ways in entry["computed"][str(n)].items():
        cells = [f"{_bytes(ways[way]['sent'])}, {_bytes(ways[way]['held'])}" for way in LABELS]
        cells += [f"{ways[way]['multiply_adds']:.2g}" for way in ("pyguide", "gathered")]
        lines.append(f"| {w} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _bytes(count: int) -> str:
    power = max(len(str(count)) - 1, 0) // 3
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compute, and count what is not yet in the file."""
    options = {"samples": [16] if args.quick else list(SAMPLES)}
    result = results.new(CPU(quick=args.quick), args.commit, options, cases={})
    if args.resume:
        result = results.resume(args.out, result)
    samples = result["options"]["samples"]
    for name in args.case:
        shapes = shapes_of(name)
        entry = result["cases"].setdefault(
            name,
            {
                "description": NETWORKS[name].description,
                **asdict(shapes),
                "computed": {str(n): computed(shapes, n) for n in samples},
                "counted": {},
            },
        )
        for w in COUNTED[:2] if args.quick else COUNTED:
            if str(w) not in entry["counted"]:
                entry["counted"][str(w)] = counted(shapes, w, samples)
                results.save(args.out, result)
        for n in samples:
            print(f"{entry['description']}, n = {n} a process\n\n{table(entry, n)}", flush=True)
    result["finished"] = True
    results.save(args.out, result)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    add_options(parser, "--out", "--resume", "--commit")
    parser.add_argument("--quick", action="store_true", help="16 samples and 2 processes at most")
    run(parse(parser, argv))


if __name__ == "__main__":
    main()
