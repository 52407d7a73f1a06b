"""``pyguide train EXPERIMENT``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from pyguide.device import check_device
from pyguide.errors import UserError
from pyguide.experiments.harness.config import Config, flag, option_fields
from pyguide.experiments.harness.experiment import Experiment, Setting
from pyguide.experiments.harness.folder import RunFolder, pictures
from pyguide.experiments.harness.packages import check_packages
from pyguide.experiments.harness.processes import worker_count
from pyguide.experiments.harness.run import Run
from pyguide.experiments.harness.together import in_processes

__all__ = ["add_experiment_parser", "configure", "run_folder", "train"]

_METAVARS = {int: "N", float: "X", str: "NAME"}

_FOLDER = """\
The run folder receives config.json, results.json, table.md, curves.png and other pictures, and a
file of records a job. Exit code: 0, 1 if a job failed, 2 for a mistake in the command, 130 after
Ctrl-C.
"""


def add_experiment_parser(subparsers: Any, experiment: Experiment) -> None:
    """Add an experiment to the sub-parsers of ``pyguide train``, with the options of its config."""
    parser = subparsers.add_parser(
        experiment.name,
        help=experiment.summary,
        description=f"{experiment.description}\n\n{_FOLDER}",
        epilog="\n  ".join(["examples:", *experiment.examples]) + "\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An option that is not given is absent, so that --resume can refuse what is given.
        argument_default=argparse.SUPPRESS,
    )
    scales = experiment.scales
    add = parser.add_argument
    add("--out", metavar="FOLDER", help=f"new run folder (default: runs/{experiment.name}-TIME)")
    add("--resume", metavar="FOLDER", help="continue the unfinished runs of this folder")
    add("--json", action="store_true", help="print results.json instead of the table")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes at a time (default: cores / threads, on a GPU 1)",
    )
    add(
        "--checkpoint-every",
        type=float,
        metavar="SECONDS",
        help="least time between a job's checkpoints, written after an epoch (default: 60)",
    )
    if len(scales) > 1:
        names = " or ".join(scales)
        add("--scale", choices=list(scales), help=f"{names} (default: {next(iter(scales))})")
    if any(setting.quick is not None for setting in scales.values()):
        add("--quick", action="store_true", help="a smoke run: less of everything")
    _add_grid_options(parser, scales)
    _add_config_options(parser, scales)
    parser.set_defaults(func=lambda args: _in_processes(experiment, args))


def _add_grid_options(parser: argparse.ArgumentParser, scales: Mapping[str, Setting[Any]]) -> None:
    setting = next(iter(scales.values()))
    shipped = setting.config
    arms = " ".join(arm.name for arm in setting.arms)

    def default(text: Callable[[Config], str]) -> str:
        return _defaults({k: text(own.config) for k, own in scales.items()}, len(scales))

    add = parser.add_argument_group("the grid").add_argument
    add("--arms", nargs="+", metavar="ARM", help=f"of: {arms} (default: all)")
    add(
        "--seeds",
        nargs="+",
        type=int,
        metavar="SEED",
        help="one run of each arm a seed" + default(lambda config: _spaced(config.seeds)),
    )
    add(
        "--lr",
        nargs="+",
        metavar="[ARM=]LR",
        help="learning rate, of all arms or by arm" + default(lambda config: _rates(config.lr)),
    )
    add(
        "--sweep",
        action="store_true",
        help="first pick each arm's learning rate: that of lowest validation loss, with a seed "
        "that is not one of the final runs'",
    )
    final = _spaced(setting.protocol_changes()["seeds"])
    swept = {scale: _spaced(own.protocol_changes()["lrs"]) for scale, own in scales.items()}
    add(
        "--protocol",
        action="store_true",
        help="as the results in docs/report: --sweep of these rates"
        f"{_defaults(swept, len(scales))}, --extend {setting.protocol_changes()['extend']}, "
        f"--seeds {final}, where not given",
    )
    add("--sweep-only", action="store_true", help="a sweep without the final runs")
    add(
        "--lrs",
        nargs="+",
        type=float,
        metavar="LR",
        help="rates to sweep" + default(lambda config: _spaced(config.lrs)),
    )
    add(
        "--extend",
        type=int,
        metavar="N",
        help="sweep an arm on while its best rate is the highest or lowest that it was tried with, "
        f"by up to N rates (default: {shipped.extend})",
    )
    add("--sweep-seed", type=int, metavar="SEED", help=f"(default: {shipped.sweep_seed})")
    add(
        "--vary",
        nargs="+",
        metavar="NAME=V,V",
        help="run every arm with each of these values of an option above, as depth=20,50",
    )


def _add_config_options(
    parser: argparse.ArgumentParser, scales: Mapping[str, Setting[Any]]
) -> None:
    """Add every option that a configuration of one of these scales has."""
    entries = {
        entry.name: entry for setting in scales.values() for entry in option_fields(setting.config)
    }
    for name, entry in entries.items():
        defaults = {
            scale: getattr(setting.config, name)
            for scale, setting in scales.items()
            if hasattr(setting.config, name)
        }
        parser.add_argument(
            flag(name),
            type=_absolute if entry.metadata["is_path"] else type(entry.default),
            metavar=_metavar(entry),
            help=argparse.SUPPRESS
            if all(name in setting.refused for setting in scales.values())
            else entry.metadata["help"] + _defaults(defaults, len(scales)),
        )


def _spaced(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def _rates(by_arm: Mapping[str, float]) -> str:
    """One rate if it is that of all arms."""
    if len(set(by_arm.values())) == 1:
        return f"{next(iter(by_arm.values())):g}"
    return " ".join(f"{arm}={lr:g}" for arm, lr in by_arm.items())


def _metavar(entry: Any) -> str:
    if entry.metadata["choices"]:
        return "{" + ",".join(entry.metadata["choices"]) + "}"
    return "PATH" if entry.metadata["is_path"] else _METAVARS[type(entry.default)]


def _defaults(by_scale: Mapping[str, Any], scales: int) -> str:
    """The part of an option's help in brackets."""
    shown = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in by_scale.items()}
    if len(shown) == scales and len(set(shown.values())) == 1:
        text = "" if None in by_scale.values() else f"default: {next(iter(shown.values()))}"
    else:
        values = (
            f"--scale {scale}" + ("" if by_scale[scale] is None else f": {value}")
            for scale, value in shown.items()
        )
        text = ", ".join(values)
    return f" ({text})" if text else ""


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _in_processes(experiment: Experiment, args: argparse.Namespace) -> int:
    given = vars(args)

    def device() -> str:
        if "resume" in given:
            return RunFolder.read_config(Path(given["resume"]), experiment)[1].device
        setting = experiment.scales[given.get("scale", next(iter(experiment.scales)))]
        name: str = given.get("device", setting.config.device)
        return name

    return in_processes(
        lambda: train(experiment, args), device=device, workers=given.get("workers")
    )


def train(experiment: Experiment, args: argparse.Namespace) -> int:
    """Run an experiment with parsed arguments; return the exit code.

    Raises
    ------
    UserError
        For a user's mistake, before any work is done; or when the folder cannot be written.
    """
    given = {k: v for k, v in vars(args).items() if k not in ("func", "command", "experiment")}
    given.pop("list", None)
    workers, as_json = given.pop("workers", None), given.pop("json", False)
    seconds = given.pop("checkpoint_every", 60.0)
    if not seconds >= 0:
        raise UserError(f"--checkpoint-every: expected seconds of at least 0, got {seconds:g}")
    resume = given.pop("resume", None)
    if resume is not None:
        if given:
            names = ", ".join(map(flag, given))
            raise UserError(f"--resume takes its configuration from the folder: drop {names}")
        path = Path(resume)
        scale, config = RunFolder.read_config(path, experiment)
    else:
        path = Path(given.pop("out", f"runs/{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"))
        scale = given.pop("scale", next(iter(experiment.scales)))
        config = configure(experiment.scales[scale], scale, given)
    go_on = f"pyguide train {experiment.name} --resume {path}"
    try:
        folder, results = run_folder(
            path, experiment, scale, config, workers, seconds, resume=resume is not None
        )
    except KeyboardInterrupt:
        print(f"interrupted; to continue: {go_on}", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps(results, indent=1))
    else:
        _print(folder.table.read_text(encoding="utf-8"))
        if results["runs"]:
            print(f"pictures: {', '.join(map(str, pictures(path)))}")
    failed = len(results["failed"])
    if failed:
        print(
            f"{failed} of the runs failed and are missing above; to try them again: {go_on}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def run_folder(
    path: Path,
    experiment: Experiment,
    scale: str,
    config: Config,
    workers: int | None,
    seconds: float,
    *,
    resume: bool,
) -> tuple[RunFolder, dict[str, Any]]:
    """Make a run folder, or open one, and do what it lacks; return it with its results.

    Raises
    ------
    UserError
        For a user's mistake, before any work is done; or when the folder cannot be written.
    """
    check_packages(experiment.scales[scale].needed_packages(config))
    workers = worker_count(workers, config.threads, config.device)
    check_device(config.device)
    if resume:
        folder = RunFolder.open(path, experiment, seconds)
    else:
        folder = RunFolder.create(path, experiment, scale, config, seconds)
    try:
        return folder, Run(folder, experiment, scale, config, workers)()
    except UserError:
        if not resume:  # Of its data: the same command, mended, may have the folder.
            folder.discard()
        raise
    finally:
        folder.close()


def configure(setting: Setting[Any], scale: str, given: dict[str, Any]) -> Config:
    """The shipped configuration with the options of the command line."""
    config = setting.config
    known = {entry.name for entry in fields(config)} | {"sweep_only", "protocol", "quick"}
    for name in given:
        if name not in known:
            raise UserError(f"{flag(name)}: not an option of --scale {scale}")
    if given.pop("quick", False):
        if setting.quick is None:
            raise UserError(f"--quick: --scale {scale} has no smoke run")
        config = config.changed({**setting.quick, "quick": True})
    if given.pop("sweep_only", False):
        if "seeds" in given:
            raise UserError("--sweep-only has no final runs: drop --seeds")
        given |= {"sweep": True, "seeds": ()}
    if given.pop("protocol", False):
        given = {"sweep": True, **setting.protocol_changes(), **given}
    return setting.checked(config.changed(given))


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # One without "±" must not end in a traceback.
    print(text.encode(encoding, "replace").decode(encoding))
