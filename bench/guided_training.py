"""Step time and peak memory of guided training beside unguided: over samples, pairs, processes.

Every candidate is a training step (forward, backward, SGD) in one or more processes of its own. The
memory is what the first step adds to each process at most; then all candidates of a setting take
turns, round by round, each round in another order, and ratios are taken within the rounds.

Samples: steps of n samples, guided in one piece and in chunks (LargeBatch), against unguided.
Pairs: 1 to 100 of the hidden layers of two networks of 101 layers.
Processes: one batch of n samples, taken by one process with two threads, by one with one, or in
halves by two processes with one thread each (DistributedDataParallel over gloo), whose guidance
compares the whole batch, or each its own half ("local"). Each is compared with unguided training
in as many processes and threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from guidance_cost import CASES, Case
from torch import Tensor, nn

import pyguide
from pyguide.bench import result as results
from pyguide.bench.device import CPU
from pyguide.bench.machine import describe
from pyguide.bench.memory import memory_of
from pyguide.errors import UserError
from pyguide.experiments.networks import DeepFCN
from pyguide.files import atomic_write, writing
from pyguide.guidance import LargeBatch

CHUNK = 256
LAYERS = 100
_FEWEST_ROUNDS = 3
_FEW = 8  # samples of the step that loads what libraries load

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
    samples = (16, 48) if quick else tuple(2**k for k in range(6, 14))
    of_samples = [
        Setting("samples", name, n, (_UNGUIDED, _GUIDED, *[_CHUNKED] * (n > _chunk(quick))))
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


def _chunk(quick: bool) -> int:
    return 32 if quick else CHUNK


class Training:
    """A candidate's training in this process.

    Parameters
    ----------
    rank : int
        Of the candidate's processes; each takes an even part of the samples.
    """

    def __init__(self, setting: Setting, candidate: Candidate, rank: int, chunk: int) -> None:
        torch.manual_seed(0)
        case = NETWORKS[setting.networks]
        self.model = case.target()
        if candidate.processes > 1:
            self.model = nn.parallel.DistributedDataParallel(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.guidance = None
        if candidate.step != "unguided":
            self.guidance = pyguide.Guidance(
                self.model,
                case.guide(),
                "even" if setting.pairs is None else spread_pairs(setting.pairs),
                example=torch.randn(2, *case.shape),
                process_group="local" if candidate.step == "local" else None,
            )
            self.chunked = LargeBatch(self.guidance, chunk)
        self._step: Callable[[Tensor, Tensor], None]
        self._step = getattr(self, f"_{candidate.step}")
        torch.manual_seed(rank)
        n = setting.n // candidate.processes
        self.batch = torch.randn(n, *case.shape), torch.randint(10, (n,))

    def step(self, samples: int | None = None) -> None:
        """With so many of the samples, or all."""
        x, y = self.batch
        self._step(x[:samples], y[:samples])
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _task(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)

    def _unguided(self, x: Tensor, y: Tensor) -> None:
        self._task(x, y).backward()

    def _guided(self, x: Tensor, y: Tensor) -> None:
        assert self.guidance is not None
        with self.guidance.capture():
            task = self._task(x, y)
        self.guidance.total_loss(task, x).backward()
        self.guidance.step()

    _local = _guided

    def _chunked(self, x: Tensor, y: Tensor) -> None:
        assert self.guidance is not None
        self.chunked.backward(self._task, x, y)
        self.guidance.step()


def spread_pairs(count: int) -> list[tuple[str, str]]:
    """So many of the hidden layers of "two-fcns" with their twins, from the first to the last."""
    if count == 1:
        return [(f"{LAYERS - 1}.0", f"{LAYERS - 1}.0")]
    chosen = [round(i * (LAYERS - 1) / (count - 1)) for i in range(count)]
    return [(f"{i}.0", f"{i}.0") for i in chosen]


def work(
    setting: Setting,
    candidate: Candidate,
    rank: int,
    threads: int,
    chunk: int,
    store: str,
    pipe: Connection,
) -> None:
    """What a process does: send its memory, then take a step whenever it is told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, without its traceback
    warnings.filterwarnings("ignore", "the target has BatchNorm|biased CKA of")
    torch.set_num_threads(threads)
    if candidate.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=candidate.processes
        )
    training = Training(setting, candidate, rank, chunk)
    training.step(_FEW)
    pipe.send(memory_of(training.step))
    while pipe.recv():
        if candidate.processes > 1:
            dist.barrier()
        start = time.perf_counter()
        training.step()
        pipe.send(time.perf_counter() - start)


class Workers:
    """The processes of one candidate."""

    def __init__(
        self, setting: Setting, candidate: Candidate, threads: int, chunk: int, folder: Path
    ) -> None:
        # Its server has torch loaded and never computes, so that its forks start at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pyguide.bench.memory"])
        self.processes, self._pipes = [], []
        store = str(folder / f"store-{candidate.name.replace(' ', '')}")
        threads = candidate.threads or threads
        for rank in range(candidate.processes):
            own, other = context.Pipe()
            arguments = setting, candidate, rank, threads, chunk, store, other
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            other.close()
            self.processes.append(process)
            self._pipes.append(own)

    def memory(self) -> dict[str, int] | str:
        """What the first step added to the process that it added most to, or why it is unknown."""
        found = [pipe.recv() for pipe in self._pipes]
        unknown = [each for each in found if isinstance(each, str)]
        return unknown[0] if unknown else max(found, key=lambda each: each["peak"])

    def step(self) -> float:
        """Seconds until the last process is ready."""
        for pipe in self._pipes:
            pipe.send(True)
        return max(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def workers(
    setting: Setting, threads: int, chunk: int
) -> Iterator[Iterable[tuple[Candidate, Workers]]]:
    """The candidates of a setting, started one after the other as they are asked for."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def started() -> Iterator[tuple[Candidate, Workers]]:
            for candidate in setting.candidates:
                each = Workers(setting, candidate, threads, chunk, folder)
                stack.callback(each.close)
                yield candidate, each

        yield started()


def measure(
    setting: Setting, threads: int, rounds: int, budget: float, chunk: int
) -> dict[str, Any]:
    """Rows of the candidates: memory, seconds of each round, ratios to unguided training.

    `budget` is about how many seconds the rounds take; there are at least three.
    """
    rows, running = [], []
    with workers(setting, threads, chunk) as started:
        for candidate, each in started:
            try:
                memory = each.memory()
            except EOFError:
                rows.append({**_described(candidate, threads), "failed": "the process ended early"})
                continue
            row = {**_described(candidate, threads), "memory": memory, "samples": []}
            rows.append(row)
            running.append((row, each))
        cost = sum(each.step() for _, each in running)  # the second step, which is not timed
        for r in range(min(rounds, max(_FEWEST_ROUNDS, int(budget / cost))) if running else 0):
            turn = r % len(running)
            for row, each in running[turn:] + running[:turn]:
                row["samples"].append(each.step())
    entry = {
        "group": setting.group,
        "networks": setting.networks,
        "description": NETWORKS[setting.networks].description,
        "n": setting.n,
        "pairs": setting.pairs,
        "rows": rows,
    }
    summarize(entry)
    return entry


def _described(candidate: Candidate, threads: int) -> dict[str, Any]:
    return {
        "candidate": candidate.name,
        "compared_with": candidate.base,
        "processes": candidate.processes,
        "threads": candidate.threads or threads,
    }


def summarize(entry: dict[str, Any]) -> None:
    """Spreads, and ratios of time, within the rounds, and of memory."""
    rows = {row["candidate"]: row for row in entry["rows"] if "samples" in row}
    for row in rows.values():
        row["seconds"] = results.spread(row["samples"])
        base = rows.get(row["compared_with"])
        if base is None:
            continue
        pairs = zip(row["samples"], base["samples"], strict=True)
        row["time_ratio"] = results.spread([own / other for own, other in pairs])
        if isinstance(row["memory"], dict) and isinstance(base["memory"], dict):
            row["memory_ratio"] = row["memory"]["peak"] / base["memory"]["peak"]


def table(entry: dict[str, Any], name: str) -> str:
    """Medians and quartiles, in Markdown."""
    lines = [
        f"{name}\n",
        "| | step (ms) | time / unguided | peak memory (MiB) | memory / unguided |",
        "|---|---|---|---|---|",
    ]
    for row in entry["rows"]:
        if "failed" in row:
            lines.append(f"| {row['candidate']} | {row['failed']} | | | |")
            continue
        memory, ratio = row["memory"], row.get("time_ratio")
        cells = [
            row["candidate"],
            f"{1e3 * row['seconds']['median']:.4g}",
            f"{ratio['median']:.2f} ({ratio['q1']:.2f}–{ratio['q3']:.2f})" if ratio else "",
            f"{memory['peak'] / 2**20:.0f}" if isinstance(memory, dict) else "n/a",
            f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def curves(
    result: dict[str, Any], group: str, over: str, key: str
) -> dict[str, list[tuple[int, Any]]]:
    """Points (n or pairs, value of `key`) of each guided candidate, by its label."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for entry in result["settings"].values():
        if entry["group"] != group:
            continue
        for row in entry["rows"]:
            if key in row and row["candidate"] != row["compared_with"]:
                label = f"{entry['networks']}, {row['candidate']}"
                found.setdefault(label, []).append((entry[over], row[key]))
    return {label: sorted(points, key=lambda point: point[0]) for label, points in found.items()}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw time and memory relative to unguided training, and steps in processes, as a PNG.

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    # The object interface: no display, and no state shared with a caller's pyplot.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    ((of_samples, of_memory), (of_pairs, of_processes)) = figure.subplots(2, 2)
    _draw_times(of_samples, curves(result, "samples", "n", "time_ratio"))
    _draw_times(of_pairs, curves(result, "pairs", "pairs", "time_ratio"))
    for label, points in curves(result, "samples", "n", "memory_ratio").items():
        of_memory.plot(*zip(*points, strict=True), marker="o", ms=4, label=label)
        _label_ticks(of_memory, [n for n, _ in points])
    _draw_processes(of_processes, result)
    of_samples.set(xlabel="n", ylabel="step time / unguided")
    of_memory.set(xlabel="n", ylabel="peak memory / unguided")
    of_pairs.set(xlabel="pairs", ylabel="step time / unguided")
    for axes in (of_samples, of_memory, of_pairs):
        axes.axhline(1, color="black", lw=0.9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(_title(result), fontsize=10)
    with writing(path), atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_times(axes: Any, found: dict[str, list[tuple[int, Any]]]) -> None:
    for label, points in found.items():
        xs = [x for x, _ in points]
        (line,) = axes.plot(xs, [t["median"] for _, t in points], marker="o", ms=4, label=label)
        low, high = ([t[q] for _, t in points] for q in ("q1", "q3"))
        axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.25)
        _label_ticks(axes, xs)


def _label_ticks(axes: Any, xs: Sequence[int]) -> None:
    """A logarithmic axis with the numbers that were measured, those of earlier lines too."""
    marked = set(axes.get_xticks()) if axes.get_xscale() == "log" else set()
    axes.set_xscale("log")
    ticks = sorted(marked | set(xs))
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xticks([], minor=True)


def _draw_processes(axes: Any, result: dict[str, Any]) -> None:
    """Bars of seconds a step, of the largest batch."""
    entries = [e for e in result["settings"].values() if e["group"] == "processes"]
    axes.set(xlabel="seconds a step, quartiles")
    if not entries:
        return
    entry = max(entries, key=lambda entry: entry["n"])
    rows = [row for row in entry["rows"] if "seconds" in row]
    for y, row in enumerate(rows):
        seconds = row["seconds"]
        error = [[seconds["median"] - seconds["q1"]], [seconds["q3"] - seconds["median"]]]
        color = "#8c8c8c" if row["candidate"] == row["compared_with"] else "#0b6e4f"
        axes.barh(y, seconds["median"], xerr=error, color=color, capsize=2)
    axes.set(yticks=range(len(rows)), yticklabels=[row["candidate"] for row in rows])
    axes.set_title(f"n = {entry['n']}, processes x threads", fontsize=9)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _title(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    quick = " (quick: not a result)" if result["quick"] else ""
    return (
        f"Guided against unguided training, medians and quartiles{quick}\n"
        f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}; "
        f"pyguide {versions['pyguide']}, torch {versions['torch']}; {result['date'][:10]}"
    )


def _new_result(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "format": results.FORMAT,
        "quick": args.quick,
        "finished": False,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": {"rounds": args.rounds, "budget": args.budget, "chunk": _chunk(args.quick)},
        **describe(CPU(quick=args.quick), args.commit),
        "settings": {},
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what is not yet in the file."""
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    result = _new_result(args)
    if args.resume:
        result = results.resume(args.out, result)
    save = partial(results.save, args.out, result) if args.out is not None else lambda: None
    for setting in settings(quick=args.quick):
        if setting.group not in args.only or setting.name in result["settings"]:
            continue
        start = time.perf_counter()
        entry = measure(setting, threads, args.rounds, args.budget, _chunk(args.quick))
        result["settings"][setting.name] = entry
        save()
        print(table(entry, setting.name), f"({time.perf_counter() - start:.0f} s)\n", flush=True)
    result["finished"] = {setting.group for setting in settings(quick=args.quick)} <= {
        entry["group"] for entry in result["settings"].values()
    }
    save()
    return result


def main(argv: Sequence[str] | None = None) -> None:
    groups = ("samples", "pairs", "processes")
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    parser.add_argument("--rounds", type=int, default=9, help="samples of each candidate, at most")
    parser.add_argument(
        "--budget", type=float, default=20.0, help="seconds of a setting's rounds; at least three"
    )
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--plot", type=Path, help="draw them there as a PNG")
    parser.add_argument("--plot-from", type=Path, help="draw the results of this JSON, run nothing")
    parser.add_argument("--commit", help="of a copy of the source without its history")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no result")
    args = parser.parse_args(argv)
    if args.resume and args.out is None:
        parser.error("--resume needs --out")
    if args.plot_from is not None and args.plot is None:
        parser.error("--plot-from needs --plot")
    try:
        result = run(args) if args.plot_from is None else results.load(args.plot_from)
        if args.plot is not None:
            plot(result, args.plot)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
