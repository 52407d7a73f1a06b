"""bench/gpu.sh: builds, verifies and measures on a GPU or on the emulator."""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "bench" / "gpu.py"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in (ROOT / "bench" / "gpu.sh", *arguments)]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.slow
def test_verify_on_the_emulator(tmp_path):
    done = run("verify", "--device", "emulated", "--out", tmp_path, "--commit", "abc")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "verify.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["build", "tests", "cases"]
    assert all(stage["passed"] for stage in record["stages"])
    _, tests, cases = (stage["detail"] for stage in record["stages"])
    assert tests["tests"] >= 20 and tests["failures"] == tests["errors"] == tests["skipped"] == 0
    assert cases["cases"] >= 60
    assert record["source"]["commit"] == "abc"
    assert record["machine"]["gpu"] == "none (emulated)"


@pytest.mark.slow
def test_bench_on_the_emulator(tmp_path):
    def measure(*workloads: str, resume: tuple[object, ...] = ()) -> dict:
        done = run(
            *("bench", "--device", "emulated", "--out", tmp_path, "--commit", "abc", *resume),
            *("--", "--arithmetic", "highest", "bf16", "--workloads", *workloads),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Gram, of copy bandwidth            >= 80 %" in done.stdout
        return json.loads((tmp_path / "bench.json").read_text())

    workloads = "gram-large", "apply-large", "small-pairs"
    result = measure(*workloads)
    found = [(e["workload"], e["arithmetic"], e["cache"]) for e in result["workloads"]]
    assert found == [
        (load, arithmetic, cache)
        for load in workloads
        for arithmetic in ("highest", "bf16")
        for cache in ("warm", "cold")
    ]
    for entry in result["workloads"]:
        rows = {row["candidate"]: row for row in entry["rows"]}
        assert rows["pyguide"]["status"] == "timed" and not rows["pyguide"]["wrong"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    # The finished half of a run is not measured again.
    result["workloads"] = result["workloads"][:6]
    half = tmp_path / "half.json"
    half.write_text(json.dumps(result | {"finished": False}))
    resumed = measure(*workloads, resume=("--resume", half))
    assert resumed["finished"]
    for old, new in zip(result["workloads"], resumed["workloads"], strict=False):
        assert [row["samples"] for row in old["rows"]] == [row["samples"] for row in new["rows"]]
    assert len(resumed["workloads"]) == len(found)


def test_a_stage_that_fails_hides_none_after_it(tmp_path):
    """With a broken package in the place of a build, and no compute-sanitizer."""
    package = tmp_path / "site" / "pyguide"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('broken')")
    done = run("verify", "--site", tmp_path / "site", "--out", tmp_path / "out")
    assert done.returncode == 1
    names = ["tests", "memcheck", "racecheck", "initcheck", "synccheck"]
    assert done.stdout.splitlines()[-1] == f"failed: {', '.join(names)}"
    record = json.loads((tmp_path / "out" / "verify.json").read_text())
    passed = {stage["name"]: stage["passed"] for stage in record["stages"]}
    assert passed == {"build": True, **dict.fromkeys(names, False)}
    log = (tmp_path / "out" / "verify.log").read_text()
    assert all(f"== {name}:" in log for name in names)


def test_a_build_that_fails_ends_verify(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "broken-1-py3-none-any.whl").write_text("")
    done = run("verify", "--wheels", tmp_path / "wheels", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "failed: wheels"


def test_a_stage_that_takes_too_long_is_stopped(tmp_path):
    args = SCRIPT["parse"](["verify", "--device", "emulated", "--out", str(tmp_path)])
    site = SCRIPT["Site"](args, tmp_path)
    stage = site.run("slow", "sh", "-c", "echo begun; sleep 60", limit=0.5)
    assert not stage.passed
    assert stage.detail == {"exit code": "stopped, too slow"}
    assert stage.output == "begun\n"
    assert stage.seconds < 30


KERNEL = "pyguide::cuda::kernel<pyguide::cuda::GramFinish<float>>"
SANITIZED = """\
========= COMPUTE-SANITIZER
========= Invalid __shared__ read of size 16 bytes
=========     at void pyguide::cuda::kernel<pyguide::cuda::GramFinish<float>>(T1::Params)+0x4a0
=========     by thread (0,0,0) in block (0,0,0)
=========         Host Frame: pyguide::cuda::gram(...) [0x1] in _cuda.so
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<...>(...)+0x90
61 cases agree with float64
========= ERROR SUMMARY: 2 errors
"""


def test_errors_of_a_sanitizer_are_counted():
    counts = SCRIPT["sanitizer_counts"]
    assert counts(SANITIZED) == {"errors": 2, "in pyguide": 1, "cases": 61}
    race = (
        "========= Error: Race reported between Write access at void pyguide::cuda::kernel<...>"
        "(...)+0x10 in a.h:3\n=========     and Read access at ...\n"
        "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    )
    assert counts(race) == {"errors": 1, "in pyguide": 1, "cases": 0}
    assert counts("3 cases agree with float64\n") == {"errors": 0, "in pyguide": 0, "cases": 3}


@pytest.mark.parametrize(
    ("code", "text", "passed"),
    [
        (86, SANITIZED, False),
        (86, SANITIZED.replace("kernel<pyguide::cuda::GramFinish<float>>", "x"), False),
        (86, SANITIZED.replace(KERNEL, "at::native::kernel"), True),
        (0, SANITIZED, True),
        (0, "killed", False),
    ],
)
def test_initcheck_is_about_pyguides_kernels(tmp_path, monkeypatch, code, text, passed):
    args = SCRIPT["parse"](["verify", "--out", str(tmp_path)])
    site = SCRIPT["Site"](args, tmp_path)
    stage = SCRIPT["Stage"]("initcheck", code == 0, detail={"exit code": code}, output=text)
    monkeypatch.setattr(site, "run", lambda *command, **options: stage)
    assert SCRIPT["sanitize"](site, "initcheck", 1.0).passed is passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: what"),
        (["verify", "--device", "cpu"], "invalid choice: 'cpu'"),
        (["bench", "--resume", "missing.json"], "missing.json does not exist"),
        (["bench", "--wheels", "missing"], "missing does not exist"),
    ],
)
def test_mistakes_end_with_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_help_names_both_stages():
    done = run("--help")
    assert done.returncode == 0
    assert "compute-sanitizer" in done.stdout and "pyguide bench" in done.stdout
