"""What ``pyguide bench`` does with its options."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, TextIO, overload

import torch

from pyguide.bench import result as results
from pyguide.bench.aims import aims_table
from pyguide.bench.arithmetic import ARITHMETIC
from pyguide.bench.candidates import CANDIDATES
from pyguide.bench.device import DEVICES, device_named
from pyguide.bench.options import Options
from pyguide.bench.plot import plot
from pyguide.bench.run import run
from pyguide.bench.table import table
from pyguide.bench.workloads import WORKLOADS
from pyguide.errors import UserError

__all__ = ["main"]

_QUICK = {"n": (32,), "rounds": 3, "budget": 2.0}


def main(args: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> int:
    """Run a benchmark, or list or draw; return the exit code.

    Raises
    ------
    UserError
        For a user's mistake.
    """
    if args.list:
        _list(stdout)
        return 0
    _check_files(args)
    if args.plot_from is not None:
        plot(results.load(args.plot_from), args.plot)
        return 0
    options = _options(args)
    threads = torch.get_num_threads()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        result = _run(options, args, stdout, stderr)
    finally:
        torch.set_num_threads(threads)
    if result.get("aims"):
        print(aims_table(result), file=stdout)
    if not result["finished"]:
        print("out of time: --resume runs the rest", file=stdout)
    if args.plot is not None:
        plot(result, args.plot)
    return 0


def _list(stdout: TextIO) -> None:
    print("workloads", file=stdout)
    for w in WORKLOADS:
        n = "any n" if w.n is None else f"n = {w.n}"
        print(f"  {w.name:<16} {w.description} ({n})", file=stdout)
    print("arithmetic", file=stdout)
    for a in ARITHMETIC.values():
        print(f"  {a.name:<16} {a.description}", file=stdout)
    print("candidates", file=stdout)
    for c in CANDIDATES:
        missing = c.missing()
        print(f"  {c.name:<16} {c.description}{f' ({missing})' if missing else ''}", file=stdout)


def _check_files(args: argparse.Namespace) -> None:
    if args.plot_from is not None and args.plot is None:
        raise UserError("--plot-from needs --plot FILE, the PNG to write")
    if args.resume and args.out is None:
        raise UserError("--resume needs --out FILE, the JSON of the interrupted run")
    if args.out is not None and args.out.exists() and not args.resume:
        raise UserError(f"{args.out} exists: add --resume or choose another --out")
    for path in (args.out, args.plot):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path.parent} is not a folder: create it first")


def _options(args: argparse.Namespace) -> Options:
    quick = _QUICK if args.quick else {}
    candidates = tuple(c.name for c in CANDIDATES if not (args.quick and c.compiles))
    given: dict[str, Any] = {
        "device": _known("--device", [args.device], list(DEVICES))[0],
        "arithmetic": _known("--arithmetic", args.arithmetic, list(ARITHMETIC)),
        "workloads": _known("--workloads", args.workloads, [w.name for w in WORKLOADS]),
        "candidates": _known("--candidates", args.candidates, [c.name for c in CANDIDATES]),
        "n": None if args.n is None else tuple(dict.fromkeys(args.n)),
        "rounds": args.rounds,
        "budget": args.budget,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, least in (("rounds", 3), ("budget", 0), ("n", 4)):
        smallest = min(given[name]) if name == "n" and name in given else given.get(name, least)
        if smallest < least:
            raise UserError(f"--{name}: expected at least {least}, got {smallest}")
    missing = device_named(given["device"], quick=args.quick).missing()
    if missing is not None:
        raise UserError(f"--device {given['device']}: {missing}")
    if args.plot is not None and "eager" not in given.get("candidates", ("eager",)):
        raise UserError("--plot draws speeds relative to eager: add it to --candidates")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads: expected at least 1, got {args.threads}")
    defaults = {"candidates": candidates, **quick}
    return Options(**{**defaults, **given}, seed=args.seed, quick=args.quick)


@overload
def _known(option: str, names: list[str], known: list[str]) -> tuple[str, ...]: ...
@overload
def _known(option: str, names: list[str] | None, known: list[str]) -> tuple[str, ...] | None: ...
def _known(option: str, names: list[str] | None, known: list[str]) -> tuple[str, ...] | None:
    """The names without repeats, in the order of ``known``."""
    for name in names or ():
        if name not in known:
            raise UserError(f"{option}: no {name!r}; there are {', '.join(known)}")
    return None if names is None else tuple(name for name in known if name in names)


def _run(
    options: Options, args: argparse.Namespace, stdout: TextIO, stderr: TextIO
) -> dict[str, Any]:
    from tqdm import tqdm

    out: Path | None = args.out
    with tqdm(
        total=1.0,
        file=stderr,
        disable=not stderr.isatty(),
        leave=False,
        bar_format="{percentage:3.0f} % |{bar:25}| {elapsed} elapsed  {desc}",
    ) as bar:

        def progress(done: float, what: str) -> None:
            bar.n = done
            bar.set_description_str(what)

        def show(result: dict[str, Any], entry: dict[str, Any]) -> None:
            bar.write(table(result, entry), file=stdout)

        return run(
            options,
            out=out,
            resume=args.resume,
            seconds=math.inf if args.seconds is None else args.seconds,
            commit=args.commit,
            progress=progress,
            on_workload=show,
        )
