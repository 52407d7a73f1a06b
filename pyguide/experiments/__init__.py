"""The paper's experiments, run by ``pyguide train``.

Importing this package is cheap: NumPy, matplotlib, mnist1d and tqdm are imported when an
experiment starts.
"""

from __future__ import annotations

import argparse
from typing import Any

from pyguide.experiments.config import ARMS, Config
from pyguide.experiments.errors import UserError

__all__ = ["UserError", "add_train_parser"]

_DESCRIPTION = """\
Train a deep fully connected network on MNIST-1D without a guide, with a trained and with an
untrained 1-D ResNet as its guide, and compare their test accuracies.

The test set is scored once a run, with the weights of the epoch of lowest validation loss.
The run folder receives config.json, metrics.jsonl, results.json, table.md, curves.png, the
data and the trained guides.
"""

_EXAMPLES = """\
examples:
  pyguide train deep-fcn                              about six minutes on two cores
  pyguide train deep-fcn --quick                      a smoke run of half a minute
  pyguide train deep-fcn --seeds 1 2 3 4 5 --out runs/five-seeds
  pyguide train deep-fcn --depth 20 --arms none trained --lr none=1e-3 trained=3e-3
  pyguide train deep-fcn --resume runs/five-seeds     continue an interrupted run
"""


def add_train_parser(subparsers: Any) -> None:
    """Add ``train`` to the sub-parsers of a command line.

    The parsed arguments carry ``func(args) -> int``, which runs the experiment and returns
    the exit code: 0, or 1 if a job failed. It raises :class:`UserError` for a user's mistake.

    Parameters
    ----------
    subparsers : the object that ``ArgumentParser.add_subparsers`` returns

    Examples
    --------
    >>> import argparse
    >>> from pyguide.experiments import add_train_parser
    >>> parser = argparse.ArgumentParser()
    >>> add_train_parser(parser.add_subparsers())
    >>> parser.parse_args(["train", "deep-fcn", "--depth", "20"]).depth
    20
    """
    train = subparsers.add_parser(
        "train", help="run one of the paper's experiments", description="Run an experiment."
    )
    parser = train.add_subparsers(
        dest="experiment", required=True, metavar="EXPERIMENT"
    ).add_parser(
        "deep-fcn",
        help="a deep fully connected network with and without a guide, on MNIST-1D",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An option that is not given is absent, so that --resume can refuse what is given.
        argument_default=argparse.SUPPRESS,
    )
    shipped = Config()
    rates = " ".join(f"{arm}={shipped.lr[arm]:g}" for arm in ARMS)
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke run: one seed, less depth and few epochs")
    add("--arms", nargs="+", metavar="ARM", help=f"of: {' '.join(ARMS)} (default: all)")
    add(
        "--seeds",
        nargs="+",
        type=int,
        metavar="SEED",
        help=f"one run of each arm a seed (default: {' '.join(map(str, shipped.seeds))})",
    )
    add(
        "--lr",
        nargs="+",
        metavar="[ARM=]LR",
        help=f"Adam's learning rate, of all arms or by arm (default: {rates})",
    )
    add("--epochs", type=int, help=f"epochs of the target (default: {shipped.epochs})")
    add("--depth", type=int, help=f"Linear layers, output included (default: {shipped.depth})")
    add("--out", metavar="FOLDER", help="new run folder (default: runs/deep-fcn-DATE-TIME)")
    add("--resume", metavar="FOLDER", help="continue the unfinished runs of this folder")
    add("--device", help=f"torch device (default: {shipped.device})")
    add("--threads", type=int, help=f"threads of each process (default: {shipped.threads})")
    add("--workers", type=int, help="processes at a time (default: cores / threads)")
    parser.set_defaults(func=_train_deep_fcn)


def _train_deep_fcn(args: argparse.Namespace) -> int:
    from pyguide.experiments.config import check_extra

    check_extra()
    from pyguide.experiments.deep_fcn import main

    return main(args)
