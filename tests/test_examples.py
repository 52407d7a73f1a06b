"""The examples run, and train."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_the_plain_loop_is_short() -> None:
    assert len((EXAMPLES / "plain_loop.py").read_text().splitlines()) <= 40


@pytest.mark.slow
def test_the_plain_loop_trains_both_networks() -> None:
    command = [sys.executable, EXAMPLES / "plain_loop.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracies = re.findall(r"^(\w+): ([\d.]+) %$", done.stdout, re.M)
    assert [name for name, _ in accuracies] == ["alone", "guided"]
    # Chance is 10 %.
    assert all(float(accuracy) > 15 for _, accuracy in accuracies)
    distances = re.findall(r"^guidance/cka/\S+~\S+ +([\d.]+)$", done.stdout, re.M)
    assert len(distances) == 14
    assert all(0 <= float(distance) < 1 for distance in distances)
