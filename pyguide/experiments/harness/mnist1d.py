"""What the experiments share at their default scale: MNIST-1D."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pyguide.data.mnist1d import mnist1d
from pyguide.data.splits import Splits
from pyguide.errors import UserError
from pyguide.experiments.harness.config import Config
from pyguide.experiments.harness.experiment import Setting

__all__ = ["Mnist1DSetting"]

C = TypeVar("C", bound=Config)


class Mnist1DSetting(Setting[C]):
    """Signals of 40 points in ten classes, generated on the user's machine."""

    data_name = "MNIST-1D"
    chance = 0.1
    packages = ("mnist1d",)

    def check(self, config: C) -> None:
        if config.pairs.startswith("paper"):
            raise UserError(
                f"--pairs {config.pairs}: the paper's rule knows no 1-D layers, which the guide "
                "has here; expected even, first:K or last:K"
            )

    def data(self, config: C, cache: Path) -> Splits:
        return mnist1d(cache, config.device)
