"""``pyguide train all``: every experiment by the protocol, and one report of them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyguide.device import check_device
from pyguide.errors import UserError
from pyguide.experiments.harness.command import configure, run_folder
from pyguide.experiments.harness.experiment import Experiment, Setting
from pyguide.experiments.harness.folder import RunFolder, pictures
from pyguide.experiments.harness.packages import check_packages
from pyguide.experiments.harness.processes import worker_count
from pyguide.experiments.harness.report import results_table, table
from pyguide.experiments.harness.shared_jobs import begin_with_shared_jobs, shared_jobs
from pyguide.experiments.harness.together import in_processes
from pyguide.files import atomic_write, lock, read_json, write_json, writing

__all__ = ["add_all_parser", "train_all"]

#: The file of a folder's plan.
_PLAN = "all.json"

_EXAMPLES = """\
examples:
  pyguide train all --out runs/all                 hours on two cores; prints what is left
  pyguide train all --resume runs/all              continue an interrupted run
  pyguide train all --only wide-fcn plain-cnn --out runs/two
  pyguide train all --quick --out runs/smoke       a smoke run of a minute or two
"""


def add_all_parser(subparsers: Any, experiments: Mapping[str, Experiment]) -> None:
    """Add ``all`` to the sub-parsers of ``pyguide train``."""
    parser = subparsers.add_parser(
        "all",
        help="every experiment by the protocol of the published results, and one report",
        description="Run every experiment in its default scale, one after another: three or "
        "four learning rates with one seed, and up to two beyond an edge, of which validation "
        "picks one an arm; then fresh seeds. FOLDER gets a run folder an experiment, and "
        "report.md with their tables and pictures.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder")
    where.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="do what this folder lacks: an unfinished run"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=list(experiments), help="these experiments"
    )
    parser.add_argument("--quick", action="store_true", help="smoke runs: less of everything")
    parser.add_argument("--device", help="torch device (default: cpu)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes at a time (default: cores / threads, on a GPU 1)",
    )
    parser.set_defaults(
        func=lambda args: in_processes(
            lambda: train_all(experiments, args), device=lambda: _device(args), workers=args.workers
        )
    )


def _device(args: argparse.Namespace) -> str:
    if args.resume is None:
        return args.device or "cpu"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        return str(read_json(args.resume / _PLAN)["options"].get("device", "cpu"))
    return "cpu"  # What is wrong with the folder is said later.


def train_all(experiments: Mapping[str, Experiment], args: argparse.Namespace) -> int:
    """Run what the folder lacks, and write its report; return the exit code.

    Raises
    ------
    UserError
        For a user's mistake, before any work is done; or when the folder cannot be written.
    """
    out: Path = args.out or args.resume
    plan = _plan(experiments, args) if args.resume is None else _begun(experiments, args, out)
    for name in plan.names:
        check_packages(_default(experiments[name])[1].packages)
    check_device(plan.options.get("device", "cpu"))
    worker_count(args.workers, 1, plan.options.get("device", "cpu"))
    with writing(out):
        if args.out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"--out {out} exists: choose another, or continue it with --resume {out}"
            )
        out.mkdir(parents=True, exist_ok=True)
        locked = lock(out / ".lock")
    failed = 0
    try:
        with writing(out):
            write_json(out / _PLAN, plan._asdict())
        for name in plan.names:
            print(f"{name}:", file=sys.stderr)
            results = _run(experiments[name], out, plan.options, args.workers)
            failed += len(results["failed"])
            write_report(out, experiments)
    except KeyboardInterrupt:
        print(f"interrupted; to continue: pyguide train all --resume {out}", file=sys.stderr)
        return 130
    finally:
        locked.close()
    print(f"report: {out / 'report.md'}")
    if failed:
        print(
            f"{failed} of the runs failed and are missing in it; to try them again: "
            f"pyguide train all --resume {out}",
            file=sys.stderr,
        )
    return 1 if failed else 0


class _Plan(NamedTuple):
    """What a folder is for: written into it, so that it goes on as it began."""

    names: list[str]
    options: dict[str, Any]


def _plan(experiments: Mapping[str, Experiment], args: argparse.Namespace) -> _Plan:
    options: dict[str, Any] = {"quick": True} if args.quick else {"protocol": True}
    if args.device is not None:
        options["device"] = args.device
    return _Plan(_in_order(experiments, args.only or experiments), options)


def _begun(experiments: Mapping[str, Experiment], args: argparse.Namespace, out: Path) -> _Plan:
    """The plan of a folder, with what ``--only`` adds to it."""
    if not out.is_dir():
        raise UserError(f"--resume {out}: there is no such folder")
    if args.quick or args.device is not None:
        raise UserError("--resume takes its configuration from the folder: drop other options")
    try:
        names, options = _Plan(**read_json(out / _PLAN))
        return _Plan(_in_order(experiments, {*names, *(args.only or ())}), dict(options))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"--resume {out}: not a folder of pyguide train all: {error}") from error


def _in_order(experiments: Mapping[str, Experiment], names: Iterable[str]) -> list[str]:
    """The short ones first, so that there is something to read soon."""
    return sorted(dict.fromkeys(names), key=lambda name: (_arm_count(experiments[name]), name))


def _default(experiment: Experiment) -> tuple[str, Setting[Any]]:
    """The scale that is run, and its setting."""
    return next(iter(experiment.scales.items()))


def _arm_count(experiment: Experiment) -> int:
    return len(_default(experiment)[1].arms)


def _run(
    experiment: Experiment, out: Path, options: Mapping[str, Any], workers: int | None
) -> dict[str, Any]:
    scale, setting = _default(experiment)
    path = out / experiment.name
    begun = (path / "config.json").exists()
    if begun:
        scale, config = RunFolder.read_config(path, experiment)
    else:
        config = configure(setting, scale, dict(options))
        begun = begin_with_shared_jobs(experiment, scale, config, out)
    return run_folder(path, experiment, scale, config, workers, 60.0, resume=begun)[1]


def write_report(out: Path, experiments: Mapping[str, Experiment]) -> Path:
    """Write ``report.md`` of the run folders in `out`, and return its path.

    First a table of every arm that the paper judges, then the report of each experiment with
    its curves.
    """
    sections, summary, quick = [], [], False
    for name in _in_order(experiments, experiments):
        experiment, path = experiments[name], out / name
        if not (path / "results.json").exists():
            continue
        scale, config = RunFolder.read_config(path, experiment)
        quick = quick or config.quick
        results = read_json(path / "results.json")
        setting = experiment.scales[scale]
        arms = setting.variants(config)
        summary.append((name, setting, arms, results))
        text = table(setting, config, arms, results).replace("# ", f"## {name}: ", 1)
        sections.append(f"{text}\n{_facts(experiment, path, scale, results)}\n")
        for picture in pictures(path) if results["runs"] else ():
            sections.append(f"![{name}: {picture.stem}]({name}/{picture.name})\n")
    smoke = ["**Smoke runs (`--quick`): these numbers say nothing.**", ""] if quick else []
    lines = ["# Experiments", "", *smoke, *results_table(summary), "", *sections]
    report = out / "report.md"
    with writing(out), atomic_write(report) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return report


def _facts(experiment: Experiment, path: Path, scale: str, results: Mapping[str, Any]) -> str:
    """Scale, the time that the jobs took together, and versions."""
    used = read_json(path / "config.json")["versions"]
    versions = ", ".join(f"{name} {value}" for name, value in used.items() if value is not None)
    jobs: Sequence[Mapping[str, Any]] = [
        *results["sweep"],
        *results["guides"],
        *results["runs"],
    ]
    seconds = sum(job.get("seconds", 0.0) for job in jobs)
    shared = shared_jobs(experiment, path)
    those = (
        f", {shared} of them those of {experiment.extends.name}"
        if experiment.extends and shared
        else ""
    )
    return (
        f"Scale {scale}; {len(jobs)} jobs of {seconds / 60:.0f} minutes in all{those}; {versions}."
    )
