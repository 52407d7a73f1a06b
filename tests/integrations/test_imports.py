"""Trainers are imported by their adapters alone."""

from __future__ import annotations

import subprocess
import sys


def test_importing_pyguide_imports_no_trainer():
    code = "import sys, pyguide.integrations; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pyguide" in done.stdout.split()
    assert not {"lightning", "pytorch_lightning", "transformers"} & {*done.stdout.split()}
