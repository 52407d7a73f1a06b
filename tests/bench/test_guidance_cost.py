"""The cost of the distances beside the guide's forward pass."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import torch
from torch import nn

import pyguide

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "bench" / "guidance_cost.py"))


def test_multiply_adds_are_those_counted_by_hand():
    target = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 3))
    guide = nn.Sequential(nn.Linear(8, 200), nn.ReLU(), nn.Linear(200, 3))
    x = torch.randn(64, 8)
    found = SCRIPT["counts"](pyguide.Guidance(target, guide, example=x), x)
    assert found["guide"] == 64 * (8 * 200 + 200 * 3)
    assert found["distances"] == 64 * 64 * (100 + 200) // 2
    assert found["backward"] == 64 * 64 * 100


def test_a_run_is_written_and_shown(tmp_path, capsys):
    out = tmp_path / "cost.json"
    SCRIPT["main"](["--case", "wide-fcn", "--rounds", "2", "--out", str(out)])
    entry = json.loads(out.read_text())["cases"]["wide-fcn"]
    assert entry["pairs"] == 3 and entry["n"] == 256
    assert all(len(entry["samples"][part]) == 2 for part in ("guide", "distances", "backward"))
    ratios = [
        d / g for d, g in zip(*(entry["samples"][p] for p in ("distances", "guide")), strict=True)
    ]
    assert entry["distances_to_guide"]["min"] == min(ratios)
    assert entry["aim_reached"] == (sum(ratios) / 2 < 1)
    assert "| 3 |" in capsys.readouterr().out
