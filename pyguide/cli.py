"""The ``pyguide`` command."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

import pyguide
from pyguide import _native, bench, experiments
from pyguide.analysis.parser import add_compare_parser
from pyguide.errors import UserError

__all__ = ["main"]

EXAMPLES = """examples:
  pyguide info                            what is installed and which backends work
  pyguide train deep-fcn                  the deep-FCN experiment, about six minutes
  pyguide train deep-fcn --quick          the same in half a minute
  pyguide train deep-fcn --help           every option of an experiment
  pyguide train --list                    the experiments
  pyguide compare --help                  the layers of two networks over a data set
  pyguide bench --quick                   does every benchmark work?
  pyguide bench --help                    benchmarks against other libraries
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code.

    A user's mistake gives one line on stderr and exit code 2; Ctrl-C gives 130.
    """
    args = build_parser().parse_args(argv)
    try:
        return args.func(args)
    except UserError as error:
        print(f"pyguide: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyguide: interrupted", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without the usage; takes no option that is cut short."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # "--data" would be "--data-seed" where there is no other.
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    parser = Parser(
        prog="pyguide",
        description="Guidance and representational alignment for PyTorch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyguide {pyguide.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = subparsers.add_parser(
        "info",
        help="print version, backends, instruction set, threads and torch",
        description="Print pyguide's version and what it found on this machine.",
    )
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(func=print_info)
    experiments.add_train_parser(subparsers)
    add_compare_parser(subparsers)
    bench.add_bench_parser(subparsers)
    return parser


def print_info(args: argparse.Namespace) -> int:
    backends = pyguide.backends()
    facts = {
        "pyguide": pyguide.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instruction_set": _native.instruction_sets()[0],
    }
    if args.json:
        as_json = {name: vars(backend) for name, backend in backends.items()}
        print(json.dumps({**facts, "backends": as_json}, indent=2))
        return 0
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<16} {value}")
    print("backends")
    for name, backend in backends.items():
        state = "available" if backend.available else "missing"
        print(f"  {name:<14} {state}: {backend.detail}")
    return 0
