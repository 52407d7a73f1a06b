"""Build pyguide on a machine with a GPU, and verify or measure it there, offline.

  verify   pytest -m cuda, then compute-sanitizer's memcheck, racecheck, initcheck and synccheck
           on small cases; writes verify.json and a log for each stage, and fails if a stage did
  bench    pyguide bench --device cuda; writes bench.json and bench.png; options after -- go to
           pyguide bench

Both end within --seconds. --device emulated runs both on a machine without a GPU, at tiny sizes,
on the kernels compiled for the CPU (tests/emulator), with the pyguide that is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests" / "cuda" / "sanitizer_cases.py"
EMULATED = ROOT / "bench" / "emulated.py"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SECONDS = 530.0  # of the nine minutes that each subcommand may take
TAIL = 30  # lines of a failed stage's log

DESCRIBE = """
import json, sys
from pyguide.bench.device import device_named
from pyguide.bench.machine import describe
print(json.dumps(describe(device_named("cuda", quick=False), sys.argv[1] or None)))
"""


@dataclass
class Stage:
    """What became of one step."""

    name: str
    passed: bool
    seconds: float
    detail: dict[str, Any] = field(default_factory=dict)


class Site:
    """The folder that pyguide is installed into, and what runs with it."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.emulated = args.device == "emulated"
        self.folder = folder
        self.out: Path = args.out
        self.deadline = time.monotonic() + args.seconds
        self.environment = dict(os.environ)
        if not self.emulated:
            paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
            self.environment["PYTHONPATH"] = os.pathsep.join(paths)

    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def log(self, stage: str) -> Path:
        return self.out / f"{stage}.log"

    def run(self, stage: str, *command: object, limit: float, **environment: str) -> Stage:
        """Run a command with its output in the stage's log, for so many seconds at most."""
        start = time.monotonic()
        with self.log(stage).open("w") as log:
            print("+", *command, file=log, flush=True)
            process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                # Not the checkout: its pyguide has no native module.
                cwd=self.folder,
                env=self.environment | environment,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(timeout=max(1.0, limit))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
        seconds = time.monotonic() - start
        detail = {"exit code": code} if code else {}
        if code is None:
            detail = {"stopped": f"after {seconds:.0f} s"}
        return Stage(stage, code == 0, seconds, detail)


def build(site: Site, wheels: Path | None) -> Stage:
    """Install the wheels and then pyguide, or build the kernels for the emulator."""
    if site.emulated:
        return site.run("build", sys.executable, EMULATED, "--build", limit=site.remaining())
    if (site.folder / "pyguide").is_dir():
        return Stage("build", True, 0.0, {"used": str(site.folder)})
    pip = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile")
    pip = (*pip, "--no-cache-dir", "--disable-pip-version-check", "--target", str(site.folder))
    if wheels is not None:
        stage = site.run("wheels", *pip, *sorted(wheels.glob("*.whl")), limit=site.remaining())
        if not stage.passed:
            return stage
    return site.run(
        "build",
        *(*pip, "--no-build-isolation", ROOT),
        limit=site.remaining(),
        PYGUIDE_CUDA="ON",
    )


def tests(site: Site) -> Stage:
    """The tests that need a GPU; in the emulated build those of the same bodies."""
    report = site.out / "tests.xml"
    report.unlink(missing_ok=True)
    chosen = [ROOT / "tests/cuda"] if site.emulated else [ROOT / "tests"]
    options = ["-k", "emulated"] if site.emulated else ["-m", "cuda"]
    # What is left is for the sanitizers.
    limit = 0.6 * site.remaining()
    stage = site.run(
        "tests",
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options),
        *("-c", ROOT / "pyproject.toml", "--rootdir", ROOT, f"--junitxml={report}", *chosen),
        f"--ignore={ROOT / 'tests/experiments'}",
        limit=limit,
    )
    if report.exists():
        stage.detail |= test_counts(report)
        stage.passed = stage.passed and stage.detail["tests"] > 0
    return stage


def test_counts(report: Path) -> dict[str, int]:
    """Tests, failures, errors and skips of a JUnit report."""
    suites = list(ElementTree.parse(report).iter("testsuite"))
    kinds = ("tests", "failures", "errors", "skipped")
    return {kind: sum(int(suite.get(kind, 0)) for suite in suites) for kind in kinds}


def sanitize(site: Site, tool: str, limit: float) -> Stage:
    """Run the cases under one of compute-sanitizer's tools."""
    options = ["--tool", tool, "--error-exitcode", "86", "--report-api-errors", "no"]
    if tool != "initcheck":  # which must see what torch's kernels write
        options += ["--kernel-name", "kns=pyguide"]
    if tool == "memcheck":
        options += ["--padding", "256"]  # so that a row too many is not another tensor's
    stage = site.run(
        tool,
        *("compute-sanitizer", *options, sys.executable, CASES),
        limit=limit,
        # Each tensor an allocation of its own: the tools know only those.
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )
    stage.detail |= sanitizer_counts(site.log(tool).read_text(errors="replace"))
    if tool == "initcheck" and stage.detail.get("exit code") == 86:
        stage.passed = stage.detail["in pyguide"] == 0  # the others are torch's
    stage.passed = stage.passed and stage.detail["cases"] > 0
    return stage


def sanitizer_counts(log: str) -> dict[str, int]:
    """Errors in a sanitizer's log, those of them in pyguide's kernels, and cases that ended."""
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", log)
    ended = re.search(r"^(\d+) cases agree", log, re.M)
    return {
        "errors": int(summary[1]) if summary else 0,
        "in pyguide": len(re.findall(r"^=+ (?!.*Host Frame).*\bpyguide::cuda::", log, re.M)),
        "cases": int(ended[1]) if ended else 0,
    }


def cases(site: Site) -> Stage:
    """The sanitizers' cases without one, on the emulator."""
    stage = site.run(
        "cases", sys.executable, EMULATED, CASES, limit=site.remaining()
    )
    stage.detail["cases"] = sanitizer_counts(site.log("cases").read_text())["cases"]
    stage.passed = stage.passed and stage.detail["cases"] > 0
    return stage


def describe(site: Site, commit: str) -> dict[str, Any]:
    """Machine, versions and commit, as the benchmarks record them."""
    command = [sys.executable, *([EMULATED] if site.emulated else []), "-c", DESCRIBE, commit]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=site.folder,
        env=site.environment,
    )
    if done.returncode != 0:
        return {"commit": commit, "not described": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout)


def verify(args: argparse.Namespace, site: Site) -> int:
    stages: list[Stage] = []
    record = {"format": 1, "device": args.device, "finished": False}

    def note(stage: Stage) -> None:
        stages.append(stage)
        write_json(args.out / "verify.json", record | {"stages": [asdict(s) for s in stages]})
        print_stage(stage, site.log(stage.name))

    note(build(site, args.wheels))
    if stages[0].passed:
        record |= describe(site, args.commit)
        note(tests(site))
        if site.emulated:
            note(cases(site))
        else:
            for i, tool in enumerate(SANITIZERS):
                note(sanitize(site, tool, site.remaining() / (len(SANITIZERS) - i)))
        record["finished"] = True
        write_json(args.out / "verify.json", record | {"stages": [asdict(s) for s in stages]})
    failed = [stage.name for stage in stages if not stage.passed]
    print(f"failed: {', '.join(failed)}" if failed else "all stages passed")
    return 1 if failed else 0


def bench(args: argparse.Namespace, site: Site) -> int:
    stage = build(site, args.wheels)
    print_stage(stage, site.log(stage.name))
    if not stage.passed:
        return 1
    result, plot = args.out / "bench.json", args.out / "bench.png"
    if args.resume is not None:
        shutil.copyfile(args.resume, result)
    program = [EMULATED, "-m", "pyguide"] if site.emulated else ["-m", "pyguide"]
    options = ["--out", result, *(["--resume"] if result.exists() else [])]
    options += ["--commit", args.commit] if args.commit else []
    options += ["--quick", "--n", "16"] if site.emulated else [
        *("--n", "64", "128", "256", "1024", "4096", "--budget", "3"),
    ]
    environment = dict(site.environment)
    command = [sys.executable, *program, "bench", "--device", args.device, *options]
    command += ["--seconds", site.remaining() - 20, *args.options]
    done = subprocess.run(
        [str(word) for word in command], cwd=site.folder, env=site.environment
    )
