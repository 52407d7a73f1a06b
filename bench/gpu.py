"""Build pyguide on a machine with a GPU, and verify or measure it there, offline.

  verify   pytest -m cuda, then compute-sanitizer's memcheck, racecheck, initcheck and synccheck
           on small cases; writes verify.json and verify.log, and fails if one of them did
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
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT / "tests" / "cuda" / "sanitizer_cases.py"
EMULATED = ROOT / "bench" / "emulated.py"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SIZES = (64, 128, 256, 1024, 4096)
SECONDS = 530.0  # of the nine minutes that each subcommand may take
TAIL = 30  # lines of a failed stage's log

DESCRIBE = """
import json, sys
from pyguide.bench.device import device_named
from pyguide.bench.machine import describe
print(json.dumps(describe(device_named(sys.argv[1], quick=True), sys.argv[2] or None)))
"""


@dataclass
class Stage:
    """What became of one step."""

    name: str
    passed: bool
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)
    output: str = ""

    def record(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["output"]  # which is in the log
        return fields


class Site:
    """The folder that pyguide is installed into, and what runs with it."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.device: str = args.device
        self.emulated = args.device == "emulated"
        self.python = (sys.executable, *((EMULATED,) if self.emulated else ()))
        self.folder = folder
        self.log: Path = args.out / f"{args.what}.log"
        self.log.unlink(missing_ok=True)
        self.deadline = time.monotonic() + args.seconds
        self.environment = dict(os.environ)
        if not self.emulated:
            paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
            self.environment["PYTHONPATH"] = os.pathsep.join(paths)

    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, name: str, *command: object, limit: float, **environment: str) -> Stage:
        """Run a command, its output into the log, for so many seconds at most."""
        words = [str(word) for word in command]
        start = time.monotonic()
        with self.log.open("a+") as log:
            print(f"== {name}:", *words, file=log, flush=True)
            output_starts = log.tell()
            code = self._wait(words, log, limit, self.environment | environment)
            log.seek(output_starts)
            output = log.read()
        detail = {} if code == 0 else {"exit code": code}
        return Stage(name, code == 0, time.monotonic() - start, detail, output)

    def _wait(
        self, words: list[str], log: TextIO, limit: float, environment: dict[str, str]
    ) -> int | str:
        """The exit code, or what became of the command instead."""
        try:
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,  # not the checkout, whose pyguide may have no native module
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            print(error, file=log, flush=True)
            return "not started"
        try:
            return process.wait(timeout=max(1.0, limit))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "stopped, too slow"

    def call(self, *command: object) -> int:
        """Run a command whose output is the user's; return its exit code."""
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=self.folder, env=self.environment).returncode


def build(site: Site, wheels: Path | None) -> Stage:
    """Install the wheels and then pyguide, or build the kernels for the emulator."""
    if site.emulated:
        return site.run("build", *site.python, "--build", limit=site.remaining())
    if (site.folder / "pyguide").is_dir():
        return Stage("build", True, detail={"already in": str(site.folder)})
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
    report = site.folder / "tests.xml"
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
    stage.detail |= sanitizer_counts(stage.output)
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
    stage = site.run("cases", *site.python, CASES, limit=site.remaining())
    stage.detail["cases"] = sanitizer_counts(stage.output)["cases"]
    stage.passed = stage.passed and stage.detail["cases"] > 0
    return stage


def describe(site: Site, commit: str | None) -> dict[str, Any]:
    """Machine, versions and commit, as the benchmarks record them."""
    stage = site.run(
        "describe", *site.python, "-c", DESCRIBE, site.device, commit or "", limit=60.0
    )
    last = stage.output.splitlines()[-1]
    return json.loads(last) if stage.passed else {"not described": last}


def verify(args: argparse.Namespace, site: Site) -> int:
    stages: list[Stage] = []
    record: dict[str, Any] = {"format": 1, "device": args.device}

    def note(stage: Stage) -> None:
        stages.append(stage)
        write_json(args.out / "verify.json", record | {"stages": [s.record() for s in stages]})
        show(stage)

    note(build(site, args.wheels))
    if stages[0].passed:
        record |= describe(site, args.commit)
        note(tests(site))
        if site.emulated:
            note(cases(site))
        for i, tool in enumerate(() if site.emulated else SANITIZERS):
            note(sanitize(site, tool, site.remaining() / (len(SANITIZERS) - i)))
    failed = [stage.name for stage in stages if not stage.passed]
    print(f"failed: {', '.join(failed)}" if failed else "all stages passed")
    return 1 if failed else 0


def bench(args: argparse.Namespace, site: Site) -> int:
    stage = build(site, args.wheels)
    show(stage)
    if not stage.passed:
        return 1
    result, picture = args.out / "bench.json", args.out / "bench.png"
    if args.resume is not None:
        shutil.copyfile(args.resume, result)
    options = ["--quick", "--n", "16"] if site.emulated else ["--budget", "3", "--n", *SIZES]
    command = [*site.python, "-m", "pyguide", "bench", "--device", args.device, *options]
    command += [
        "--out",
        result,
        "--seconds",
        site.remaining() - 40,
    ]  # for a long workload, and the plot
    command += ["--resume"] if args.resume is not None else []
    command += ["--commit", args.commit] if args.commit else []
    measured = site.call(*command, *args.options)
    if not result.exists():
        return measured
    drawn = site.call(
        *(*site.python, "-m", "pyguide", "bench", "--plot-from", result, "--plot", picture)
    )
    return measured or drawn


def show(stage: Stage) -> None:
    """One line, and the end of the log if the stage failed."""
    detail = ", ".join(f"{key} {value}" for key, value in stage.detail.items())
    result = "passed" if stage.passed else "FAILED"
    print(f"{stage.name:<12} {result}  {stage.seconds:6.1f} s  {detail}", flush=True)
    if not stage.passed:
        print(*stage.output.splitlines()[-TAIL:], sep="\n")


def write_json(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1))
    temporary.replace(path)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("verify", "bench"))
    add = parser.add_argument
    add("--device", choices=("cuda", "emulated"), default="cuda")
    add("--commit", metavar="ID", help="recorded; for a copy of the source without its history")
    add(
        "--out",
        type=Path,
        default=Path("gpu-results"),
        metavar="DIR",
        help="(default: %(default)s)",
    )
    add("--wheels", type=Path, metavar="DIR", help="wheels to install first: pytorch-cka, say")
    add("--site", type=Path, metavar="DIR", help="where to install; used again if it has pyguide")
    add("--resume", type=Path, metavar="FILE", help="an unfinished bench.json to go on with")
    add("--seconds", type=float, default=SECONDS, help="end within them (default: %(default)g)")
    options: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, options = arguments[:at], arguments[at + 1 :]
    args = parser.parse_args(arguments)
    args.options = options
    for path in (args.wheels, args.resume):
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    return args


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.site is None else args.site.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        site = Site(args, folder)
        return {"verify": verify, "bench": bench}[args.what](args, site)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
