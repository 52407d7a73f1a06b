"""``pyguide bench``: pyguide against its peers and against the machine's limits.

Importing this package is cheap; what measures is imported when a benchmark starts.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from pyguide.errors import UserError

__all__ = ["add_bench_parser"]

_DESCRIPTION = """\
Time pyguide, torch written with care, and other libraries on the same tensors.

Every round takes a sample of each candidate, starting with another one each time; the table
shows medians with quartiles, the ratio to pyguide within the rounds, the peak memory of one
call, and what fraction of the machine's measured limits is reached (multiply-adds, and copy
bandwidth). Every candidate's result is checked against float64 first; one that is further off
than the tolerance is marked with !. On CUDA every workload is run with a warm and with a cold
L2, and at the end the aims of the kernels stand beside what was reached.
"""

_EXAMPLES = """\
examples:
  pyguide bench --list                                  workloads and candidates
  pyguide bench --out cpu.json --plot cpu.png           everything at n = 256
  pyguide bench --out cpu.json --resume                 go on after an interruption
  pyguide bench --workloads gram apply --n 64 256 1024 --candidates pyguide eager
  pyguide bench --device cuda --out gpu.json --n 64 256 --seconds 480
  pyguide bench --plot-from cpu.json --plot cpu.png     draw a finished run
  pyguide bench --quick                                 tiny sizes: does everything work?
"""


def add_bench_parser(subparsers: Any) -> None:
    """Add ``bench`` to the sub-parsers of a command line.

    The parsed arguments carry ``func(args) -> int``, which raises :class:`UserError` for a
    user's mistake.

    Parameters
    ----------
    subparsers : the object that ``ArgumentParser.add_subparsers`` returns

    Examples
    --------
    >>> import argparse
    >>> from pyguide.bench import add_bench_parser
    >>> parser = argparse.ArgumentParser()
    >>> add_bench_parser(parser.add_subparsers())
    >>> parser.parse_args(["bench", "--n", "64", "256"]).n
    [64, 256]
    """
    parser = subparsers.add_parser(
        "bench",
        help="time pyguide against other implementations and the machine's limits",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print workloads and candidates and stop")
    add("--workloads", nargs="+", metavar="NAME", help="which to run (default: all)")
    add("--candidates", nargs="+", metavar="NAME", help="which to time (default: all)")
    add(
        "--n",
        nargs="+",
        type=int,
        metavar="N",
        help="batch sizes, of workloads where it is free (default: 256)",
    )
    add("--device", default="cpu", metavar="NAME", help="cpu or cuda (default: cpu)")
    add(
        "--arithmetic",
        nargs="+",
        metavar="NAME",
        help="float32 products at which precision, or bf16 (default: all on cuda, else highest)",
    )
    add("--rounds", type=int, help="samples of each candidate, if the budget allows (default: 15)")
    add(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="for the rounds of one workload; at least three are run, but a candidate of which "
        "one call takes longer is called once (default: 120)",
    )
    add(
        "--seconds",
        type=float,
        help="stop before a workload that might end later than this; --resume goes on",
    )
    add("--threads", type=int, help="threads of torch and pyguide (default: torch's)")
    add("--seed", type=int, default=0, help="of the tensors (default: 0)")
    add("--out", type=Path, metavar="FILE", help="JSON, written anew after every workload")
    add("--resume", action="store_true", help="continue the interrupted run in --out")
    add("--commit", metavar="ID", help="the source's, where git does not tell")
    add("--plot", type=Path, metavar="FILE", help="PNG of speeds relative to eager torch")
    add("--plot-from", type=Path, metavar="FILE", help="draw this JSON instead of running")
    add(
        "--quick",
        action="store_true",
        help="tiny sizes, few rounds and, unless named, no compile: a test, not a result",
    )
    parser.set_defaults(func=_bench)


def _bench(args: argparse.Namespace) -> int:
    missing = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
    if missing and not args.list:
        raise UserError(f"this needs {', '.join(missing)}: run pip install 'pyguide[bench]'")
    from pyguide.bench.command import main

    return main(args, sys.stdout, sys.stderr)
