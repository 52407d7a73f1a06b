"""What guidance adds to a training step of the deep FCN: writes guided_step.md.

Steps without a guide, guided, and guided with a weight of 0 take turns, on one thread.
Run as: python docs/figures/guided_step.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyguide
from pyguide.experiments.networks import DeepFCN, ResNet1D

FOLDER = Path(__file__).parent
DEPTHS = [20, 50]
BATCH, STEPS, WARM_UP = 256, 30, 5


def guided_step(guidance: pyguide.Guidance) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.Adam(guidance.target.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        with guidance.capture():
            logits = guidance.target(x)
        guidance.total_loss(F.cross_entropy(logits, y), x).backward()
        optimizer.step()
        optimizer.zero_grad()
        guidance.step()

    return step


def plain_step(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.Adam(model.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(depth: int) -> list[str]:
    """One row of the table: medians over the steps."""
    x, y = torch.randn(BATCH, 40), torch.randint(10, (BATCH,))
    guidance = pyguide.Guidance(DeepFCN(depth=depth), ResNet1D(), example=x, timed=True)
    idle = pyguide.Guidance(DeepFCN(depth=depth), ResNet1D(), example=x, weight=0.0)
    steps = [plain_step(DeepFCN(depth=depth)), guided_step(guidance), guided_step(idle)]
    seconds: list[list[float]] = [[] for _ in steps]
    parts: dict[str, list[float]] = {"guide": [], "distances": [], "backward": []}
    for _ in range(WARM_UP + STEPS):
        for step, taken in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step(x, y)
            taken.append(time.perf_counter() - start)
        times = guidance.times()
        for part, values in parts.items():
            values.append(times[f"guidance/seconds/{part}"])
    pairs = len(guidance.pairs or ())
    columns = [*seconds, *parts.values()]
    return [
        str(depth),
        str(pairs),
        *(f"{1e3 * statistics.median(c[WARM_UP:]):.1f}" for c in columns),
    ]


def table() -> str:
    heads = ["layers", "pairs", "no guide", "guided", "weight 0"]
    heads += ["guide's forward pass", "distances", "their gradient"]
    rows = [heads, ["---"] * len(heads), *(measure(depth) for depth in DEPTHS)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    (FOLDER / "guided_step.md").write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
