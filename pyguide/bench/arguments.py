"""Options that the scripts of ``bench/`` share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["add_options", "parse"]

_OPTIONS: dict[str, dict[str, Any]] = {
    "--threads": {"type": int, "help": "default: as torch chooses"},
    "--out": {"type": Path, "help": "write the results there as JSON"},
    "--resume": {"action": "store_true", "help": "continue the run in --out"},
    "--commit": {"help": "of a copy of the source without its history"},
    "--quick": {"action": "store_true", "help": "tiny sizes, no result"},
}


def add_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add some of them.

    Examples
    --------
    >>> import argparse
    >>> from pyguide.bench.arguments import add_options
    >>> parser = argparse.ArgumentParser()
    >>> add_options(parser, "--threads", "--quick")
    >>> parser.parse_args(["--threads", "2"])
    Namespace(threads=2, quick=False)
    """
    for name in names:
        parser.add_argument(name, **_OPTIONS[name])


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, of which ``--resume`` goes with ``--out`` only."""
    args = parser.parse_args(argv)
    if args.resume and args.out is None:
        parser.error("--resume needs --out")
    return args
