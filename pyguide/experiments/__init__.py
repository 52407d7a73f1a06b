"""The paper's experiments, run by ``pyguide train``.

Every module of this package that defines ``EXPERIMENT`` is one. Importing them is cheap:
NumPy, matplotlib, tqdm and the packages with data are imported when an experiment starts.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyguide.experiments.harness.experiment import Experiment

__all__ = ["add_train_parser", "find_experiments"]

_EXAMPLES = """\
examples:
  pyguide train --list                    the experiments
  pyguide train deep-fcn --help           the options of one
  pyguide train deep-fcn --quick          a smoke run
  pyguide train all --out runs/all        all of them by the protocol, and one report
"""


def find_experiments() -> dict[str, Experiment]:
    """The experiments by name.

    Examples
    --------
    >>> from pyguide.experiments import find_experiments
    >>> find_experiments()["deep-fcn"].name
    'deep-fcn'
    """
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg:
            experiment = getattr(
                importlib.import_module(f"{__name__}.{module.name}"), "EXPERIMENT", None
            )
            if experiment is not None:
                found[experiment.name] = experiment
    return found


def add_train_parser(subparsers: Any) -> None:
    """Add ``train`` to the sub-parsers of a command line.

    The parsed arguments carry ``func(args) -> int``, which runs the experiment and returns
    the exit code: 0, or 1 if a job failed. It raises :class:`pyguide.errors.UserError` for a
    user's mistake.

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
    from pyguide.experiments.harness.command import add_experiment_parser
    from pyguide.experiments.harness.suite import add_all_parser

    parser = subparsers.add_parser(
        "train",
        help="run one of the paper's experiments",
        description="Run one of the paper's experiments.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiments = find_experiments()

    def without_experiment(args: argparse.Namespace) -> int:
        if not args.list:
            parser.error("the following arguments are required: EXPERIMENT")
        for experiment in experiments.values():
            scales = ", ".join(experiment.scales)
            print(f"{experiment.name:<16} {experiment.summary} (scales: {scales})")
        return 0

    parser.add_argument("--list", action="store_true", help="print the experiments and stop")
    parser.set_defaults(func=without_experiment)
    chosen = parser.add_subparsers(dest="experiment", metavar="EXPERIMENT")
    for experiment in experiments.values():
        add_experiment_parser(chosen, experiment)
    add_all_parser(chosen, experiments)
