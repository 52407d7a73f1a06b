"""The documentation: its code runs, its messages and numbers are real, and it builds."""

from __future__ import annotations

import ast
import doctest
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pyguide
import pyguide.analysis
import pyguide.distributed
from pyguide.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```", re.M | re.S)


def pages_with_code() -> list[str]:
    return [page.stem for page in sorted(DOCS.glob("*.md")) if BLOCK.search(page.read_text())]


def wrong_outputs(path: Path) -> list[str]:
    """Run a page's blocks from top to bottom, as one program; what they print otherwise."""
    failed: list[str] = []
    names: dict[str, object] = {"__name__": path.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    text = path.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        language, code = block.groups()
        line = text.count("\n", 0, block.start()) + 1
        if language == "python":
            exec(compile("\n" * line + code, str(path), "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, path.name, str(path), line)
        runner.run(test, out=failed.append, clear_globs=False)
        names |= test.globs
    return failed


@pytest.mark.parametrize("page", pages_with_code())
@pytest.mark.filterwarnings("error")
def test_the_code_runs_as_it_stands(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrong_outputs(DOCS / f"{page}.md") == []


def test_a_wrong_output_or_a_failing_block_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n```pycon\n>>> x + 1\n2\n```\n")
    assert wrong_outputs(page) == []
    page.write_text("```python\nx = 1\n```\n```pycon\n>>> x + 1\n3\n```\n")
    assert "Expected" in "".join(wrong_outputs(page))
    page.write_text("```python\nx = y\n```\n")
    with pytest.raises(NameError):
        wrong_outputs(page)


def message(node: ast.AST) -> str | None:
    """The text of a string in the source, with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def source_nodes() -> Iterator[ast.AST]:
    for path in Path(pyguide.__file__).parent.rglob("*.py"):
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def quoted_messages() -> list[str]:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^### `(.*)`$", page, re.M)


def test_every_message_that_is_explained_is_in_the_source() -> None:
    texts = [text for node in source_nodes() if (text := message(node))]
    quoted = quoted_messages()
    assert len(quoted) > 20
    assert [q for q in quoted if not any(q in text for text in texts)] == []


def test_every_warning_is_explained() -> None:
    quoted = quoted_messages()
    warned = [
        text
        for node in source_nodes()
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "warnings.warn"
        and (text := message(node.args[0]))
    ]
    assert warned
    assert [text for text in warned if not any(q in text for q in quoted)] == []


def test_every_public_name_has_its_place_in_the_api() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\w+", page))
    public = {*pyguide.__all__, *pyguide.analysis.__all__, *pyguide.guidance.__all__}
    public |= {*pyguide.distributed.__all__}
    assert public - {"__version__"} <= listed


def test_the_policy_states_what_the_package_declares() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    page = (DOCS / "versions.md").read_text(encoding="utf-8")
    python = re.search(r'requires-python = ">=([\d.]+)"', project)
    declared = re.search(r'"torch>=([\d.]+)"', project)
    pinned = re.search(r"^torch==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert python and declared and pinned
    assert f"≥ {python[1]} |" in page
    assert f"torch | {pinned[1]}, CPU build | ≥ {declared[1]} |" in page


def test_the_estimators_table_is_what_its_script_computes() -> None:
    script = runpy.run_path(str(DOCS / "figures" / "estimators.py"))
    row = (DOCS / "figures" / "estimators.md").read_text(encoding="utf-8").splitlines()[2]
    numbers = [float(number) for number in re.findall(r"-?\d\.\d\d", row)]
    n = script["SAMPLES"][0]
    computed = []
    for d in script["WIDTHS"]:
        biased, debiased = script["independent_estimates"](n, d)
        computed += [biased.mean(), debiased.mean(), debiased.std()]
    # Half a unit of the last printed digit.
    torch.testing.assert_close(torch.tensor(numbers), torch.stack(computed), atol=0.006, rtol=0)


def test_the_search_table_is_what_its_script_reads() -> None:
    script = runpy.run_path(str(DOCS / "figures" / "depth_search.py"))
    expected = script["table"](json.loads(script["RESULTS"].read_text()))
    assert (DOCS / "figures" / "depth_search.md").read_text(encoding="utf-8") == expected


def test_the_processes_table_is_what_its_script_reads() -> None:
    script = runpy.run_path(str(DOCS / "figures" / "processes.py"))
    expected = script["tables"](json.loads(script["RESULTS"].read_text()))
    assert (DOCS / "figures" / "processes.md").read_text(encoding="utf-8") == expected


def test_the_offsets_table_is_what_its_script_computes() -> None:
    script = runpy.run_path(str(DOCS / "figures" / "offsets.py"))
    lines = (DOCS / "figures" / "offsets.md").read_text(encoding="utf-8").splitlines()[2:]
    for line, (offset, exact, values) in zip(lines, script["rows"](), strict=True):
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", line)]
        # What the others lose depends on the machine.
        expected = [offset, exact, values["pyguide"]]
        assert numbers[:3] == pytest.approx(expected, abs=1e-5)
        assert abs(numbers[1] - numbers[2]) <= 1e-5


def test_the_commands_of_a_comparison_can_be_given() -> None:
    page = (DOCS / "comparing.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = [shlex.split(line)[1:] for line in re.findall(r"^pyguide compare .*$", page, re.M)]
    assert [build_parser().parse_args(command).command for command in commands] == ["compare"] * 2


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in DOCS.rglob("*.png")}
    assert sizes
    assert {name: size for name, size in sizes.items() if size > 100_000} == {}


@pytest.mark.slow
def test_it_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run([*command, DOCS, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert all(f'id="pyguide.{name}"' in api for name in ("cka", "Guidance", "Pair"))
