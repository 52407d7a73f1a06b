"""The ``pyguide`` command: what it prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import pyguide
from pyguide import experiments
from pyguide.cli import main
from pyguide.errors import UserError


def test_info_names_versions_and_every_backend(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert pyguide.__version__ in out
    assert torch.__version__ in out
    for name, backend in pyguide.backends().items():
        state = "available" if backend.available else "missing"
        assert f"{name:<14} {state}: {backend.detail}" in out


def test_info_json(capsys):
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["threads"] == torch.get_num_threads()
    assert info["instruction_set"] in info["backends"]["cpu"]["detail"]
    assert info["backends"] == {name: vars(b) for name, b in pyguide.backends().items()}


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_options_that_print_and_stop(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main([option])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert (pyguide.__version__ if option == "--version" else "pyguide train deep-fcn") in out


@pytest.mark.parametrize(
    "argv",
    [[], ["trian"], ["info", "--jsn"], ["train"], ["train", "no-such-experiment"]],
    ids=" ".join,
)
def test_mistakes_are_one_line_and_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("pyguide")
    assert "--help" in captured.err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("runs/a exists: choose another --out"), 2, "choose another --out"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["user error", "ctrl-c"],
)
def test_a_command_that_stops_leaves_one_line(raised, code, message, monkeypatch, capsys):
    def add_train_parser(subparsers):
        def run(args):
            raise raised

        subparsers.add_parser("train").set_defaults(func=run)

    monkeypatch.setattr(experiments, "add_train_parser", add_train_parser)
    assert main(["train"]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_info_needs_no_extra(tmp_path):
    program = (
        "import sys\n"
        "for name in ('numpy', 'mnist1d', 'matplotlib', 'tqdm', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "from pyguide.cli import main\n"
        "raise SystemExit(main(['info']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stdout
