"""``pyguide train all``: every experiment by the protocol, and one report of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyguide.errors import UserError
from pyguide.experiments.harness.command import configure, run_folder
from pyguide.experiments.harness.experiment import Experiment
from pyguide.experiments.harness.folder import RunFolder
from pyguide.experiments.harness.report import results_table, table
from pyguide.files import atomic_write, lock, read_json, writing

__all__ = ["add_all_parser", "train_all"]

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
        description="Run every experiment in its default scale, one after another: three learning "
        "rates with one seed, of which validation picks one an arm; then fresh seeds. FOLDER gets "
        "a run folder an experiment, and report.md with their tables and pictures.",
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
    parser.set_defaults(func=lambda args: train_all(experiments, args))


def train_all(experiments: Mapping[str, Experiment], args: argparse.Namespace) -> int:
    """Run what the folder lacks, and write its report; return the exit code.

    Raises
    ------
    UserError
        For a user's mistake, before any work is done; or when the folder cannot be written.
    """
    out: Path = args.out or args.resume
    chosen = _chosen(experiments, args, out)
    with writing(out):
        if args.out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"--out {out} exists: choose another, or continue it with --resume {out}"
            )
        out.mkdir(parents=True, exist_ok=True)
        locked = lock(out / ".lock")
    failed = 0
    try:
        for name, experiment in chosen.items():
            print(f"{name}:", file=sys.stderr)
            results = _run(experiment, out / name, args)
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


def _chosen(
    experiments: Mapping[str, Experiment], args: argparse.Namespace, out: Path
) -> dict[str, Experiment]:
    """The experiments to run: those asked for, or of a folder that goes on those that it began."""
    if args.resume is not None:
        if not out.is_dir():
            raise UserError(f"--resume {out}: there is no such folder")
        if args.quick or args.device is not None:
            raise UserError("--resume takes its configuration from the folder: drop other options")
    # The short ones first, so that there is something to read soon.
    names = sorted(args.only or experiments, key=lambda name: _arm_count(experiments[name]))
    return {name: experiments[name] for name in names}


def _arm_count(experiment: Experiment) -> int:
    return len(next(iter(experiment.scales.values())).arms)


def _run(experiment: Experiment, path: Path, args: argparse.Namespace) -> dict[str, Any]:
    scale, setting = next(iter(experiment.scales.items()))
    begun = (path / "config.json").exists()
    if begun:
        scale, config = RunFolder.read_config(path, experiment)
    else:
        given: dict[str, Any] = {} if args.device is None else {"device": args.device}
        given |= {"quick": True} if _is_quick(path.parent, args) else {"protocol": True}
        config = configure(setting, scale, given)
    return run_folder(path, experiment, scale, config, args.workers, 60.0, resume=begun)[1]


def _is_quick(out: Path, args: argparse.Namespace) -> bool:
    """Whether the other runs of the folder are smoke runs."""
    begun = [read_json(path)["config"]["quick"] for path in sorted(out.glob("*/config.json"))]
    return args.quick or any(begun)


def write_report(out: Path, experiments: Mapping[str, Experiment]) -> Path:
    """Write ``report.md`` of the run folders in `out`, and return its path.

    First a table of every arm that the paper judges, then the report of each experiment with
    its curves.
    """
    sections, summary = [], []
    for name, experiment in sorted(experiments.items(), key=lambda item: _arm_count(item[1])):
        path = out / name
        if not (path / "results.json").exists():
            continue
        scale, config = RunFolder.read_config(path, experiment)
        results = read_json(path / "results.json")
        setting = experiment.scales[scale]
        arms = setting.variants(config)
        summary.append((name, setting, arms, results))
        text = table(setting, config, arms, results).replace("# ", f"## {name}: ", 1)
        sections.append(f"{text}\n{_facts(path, results)}\n")
        if results["runs"] and (path / "curves.png").exists():
            sections.append(f"![Curves of {name}]({name}/curves.png)\n")
    lines = ["# Experiments", "", *results_table(summary), "", *sections]
    report = out / "report.md"
    with writing(out), atomic_write(report) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return report


def _facts(path: Path, results: Mapping[str, Any]) -> str:
    """Versions, and the time that the jobs took together."""
    used = read_json(path / "config.json")["versions"]
    versions = ", ".join(f"{name} {value}" for name, value in used.items() if value is not None)
    jobs: Sequence[Mapping[str, Any]] = [
        *results["sweep"],
        *results["guides"],
        *results["runs"],
    ]
    seconds = sum(job.get("seconds", 0.0) for job in jobs)
    return f"{len(jobs)} jobs of {seconds / 60:.0f} minutes in all; {versions}."
