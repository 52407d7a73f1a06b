"""The learning-rate and depth search of the deep-FCN experiment, decided beforehand.

Every arm at depths 20, 32 and 50 with five learning rates and seed 0, judged by its lowest
validation loss; the test set is not even given to the jobs. The shipped configuration in
:mod:`pyguide.experiments.config` comes from this search. To run it again::

    python -m pyguide.experiments.search --out deep_fcn_search.json

An interrupted search continues from its finished jobs when the same command is given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from pyguide.experiments.config import ARMS, Config, check_extra
from pyguide.experiments.deep_fcn import epoch_cost, versions
from pyguide.experiments.errors import UserError
from pyguide.experiments.files import read_json, write_json, writing
from pyguide.experiments.mnist1d import generate
from pyguide.experiments.runner import Progress, Task, run_tasks, worker_count
from pyguide.experiments.training import GuideJob, TargetJob

__all__ = ["DEPTHS", "LEARNING_RATES", "main", "search", "select"]

DEPTHS = (20, 32, 50)
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
#: Not among the seeds of the shipped configuration, which are fresh for this reason.
SEED = 0
_SHIPPED = Config()


def search(
    out: Path, *, epochs: int, depths: tuple[int, ...], workers: int | None, threads: int
) -> dict[str, str]:
    """Run the jobs that ``out`` lacks, rewriting it after each; return the failures by job.

    Raises
    ------
    UserError
        If a number is out of range, ``out`` holds anything but a search of this configuration,
        or it cannot be written.
    """
    for depth in depths:
        Config(depth=depth, epochs=epochs, threads=threads)  # Checks their ranges.
    workers = worker_count(workers, threads)
    config = {
        "depths": list(depths),
        "learning_rates": list(LEARNING_RATES),
        "arms": list(ARMS),
        "seed": SEED,
        "epochs": epochs,
        "threads": threads,
        "target": {k: getattr(_SHIPPED, k) for k in ("width", "dropout", "batch_size", "weight")},
        "guide": asdict(_SHIPPED.guide),
    }
    results: dict[str, Any] = {"config": config, "versions": versions(), "runs": [], "best": {}}
    if out.exists():
        results = _read(out, config)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, results)
    with tempfile.TemporaryDirectory() as folder:
        data, weights = Path(folder) / "data.npz", Path(folder) / "guide.pt"
        generate(with_test=False).save(data)
        tasks = _tasks(config, weights, done={r["key"] for r in results["runs"]})
        progress = Progress(tasks)

        def on_result(task: Task, result: dict[str, Any]) -> None:
            job = task.job
            if isinstance(job, TargetJob):
                setting = {"arm": job.arm, "lr": job.lr, "depth": job.depth}
                results["runs"].append({"key": task.key, **setting, **result})
                results["best"] = select(results["runs"])
            else:
                results["guide"] = result
            with writing(out):
                write_json(out, results)
            progress.message(
                f"{job.name}: validation loss {result['val_loss']:.3f}, accuracy "
                f"{100 * result['val_accuracy']:.1f} % at epoch {result['best_epoch']}"
            )

        try:
            failed = run_tasks(
                tasks,
                data,
                workers=workers,
                threads=threads,
                on_epoch=lambda task, record: None,
                on_result=on_result,
                progress=progress,
            )
        finally:
            progress.close()
    with writing(out):
        write_json(out, results | {"failed": failed})
    return failed


def _read(out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The results of an interrupted search."""
    try:
        results: dict[str, Any] = read_json(out)
        another = results["config"] != config
        if not all("key" in run for run in results["runs"]):
            raise ValueError("a run has no key")
        results["best"] = select(results["runs"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{out} holds no search ({error}); choose another --out") from error
    if another:
        raise UserError(f"{out} holds another configuration's search; choose another --out")
    return results


def _tasks(config: dict[str, Any], weights: Path, done: set[str]) -> list[Task]:
    """The jobs still to run, longest first; the trained guide first where it is needed."""
    tasks = []
    grid = product(sorted(config["depths"], reverse=True), ARMS, LEARNING_RATES)
    for depth, arm, lr in grid:
        job = TargetJob(
            arm=arm,
            seed=SEED,
            lr=lr,
            depth=depth,
            epochs=config["epochs"],
            weights=str(weights) if arm == "trained" else None,
            device="cpu",
            **config["target"],
        )
        key = f"{arm} depth {depth} lr {lr:g}"
        cost = epoch_cost(arm, depth)
        if key not in done:
            tasks.append(Task(key, job, needs="guide" if arm == "trained" else None, cost=cost))
    if any(task.needs for task in tasks):
        guide = GuideJob(SEED, device="cpu", weights=str(weights), **config["guide"])
        tasks.insert(0, Task("guide", guide))
    return tasks


def select(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The run of lowest validation loss of each depth and arm, by ``"<arm> depth <depth>"``."""
    best: dict[str, dict[str, Any]] = {}
    for run in runs:
        key = f"{run['arm']} depth {run['depth']}"
        if key not in best or run["val_loss"] < best[key]["val_loss"]:
            best[key] = run
    return dict(sorted(best.items()))


def main(argv: list[str] | None = None) -> int:
    """Command line of the search; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pyguide.experiments.search",
        description="Search the deep-FCN experiment's depth and learning rates.",
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file; continued if it exists")
    parser.add_argument(
        "--epochs", type=int, default=_SHIPPED.epochs, help="(default: %(default)s)"
    )
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--threads", type=int, default=1, help="per process (default: 1)")
    parser.add_argument("--workers", type=int, help="processes (default: cores / threads)")
    args = parser.parse_args(argv)
    try:
        check_extra()
        failed = search(
            args.out,
            epochs=args.epochs,
            depths=tuple(args.depths),
            workers=args.workers,
            threads=args.threads,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; the same command continues from {args.out}", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
