"""The shipped configuration of the deep-FCN experiment, and the check of a user's changes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pyguide.experiments.errors import UserError

__all__ = ["ARMS", "Config", "GuideConfig", "check_device", "check_extra"]

#: No guide, a trained guide, an untrained guide.
ARMS = ("none", "trained", "untrained")


@dataclass(frozen=True)
class GuideConfig:
    """How the ResNet1D guide is trained: AdamW under a one-cycle learning rate."""

    epochs: int = 20
    lr: float = 1e-2
    batch_size: int = 256


@dataclass(frozen=True)
class Config:
    """Everything that the results of a run depend on.

    Attributes
    ----------
    depth : int
        Linear layers of the target, output included.
    lr : dict of str to float
        Learning rate of each arm.
    quick : bool
        Whether this is a smoke run, whose numbers mean nothing.
    """

    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = (1, 2)
    lr: Mapping[str, float] = field(
        default_factory=lambda: {"none": 1e-2, "trained": 3e-3, "untrained": 3e-3}
    )
    depth: int = 50
    epochs: int = 60
    width: int = 128
    dropout: float = 0.1
    batch_size: int = 256
    weight: float = 1.0
    guide: GuideConfig = GuideConfig()
    device: str = "cpu"
    threads: int = 1
    quick: bool = False

    def __post_init__(self) -> None:
        _check_list("--arms", self.arms)
        for arm in self.arms:
            _check_arm("--arms", arm)
        _check_list("--seeds", self.seeds)
        for seed in self.seeds:
            if not 0 <= seed < 2**31:
                raise UserError(f"--seeds: expected numbers from 0 to 2**31 - 1, got {seed}")
        for arm, lr in self.lr.items():
            _check_arm("--lr", arm)
            if not (math.isfinite(lr) and lr > 0):
                raise UserError(f"--lr: expected a learning rate above 0, got {lr:g}")
        for arm in self.arms:
            if arm not in self.lr:
                raise UserError(f"--lr: arm {arm} has no learning rate")
        for name, least in [("depth", 2), ("epochs", 1), ("threads", 1)]:
            if getattr(self, name) < least:
                raise UserError(f"--{name}: expected at least {least}, got {getattr(self, name)}")

    def changed(self, options: Mapping[str, Any]) -> Config:
        """A copy with command-line options in place of the shipped values.

        Raises
        ------
        UserError
            If a value is out of its range; the message names the option.
        """
        options = dict(options)
        if "lr" in options:
            arms = options.get("arms", self.arms)
            options["lr"] = {**self.lr, **_learning_rates(options["lr"], arms)}
        for name in ("arms", "seeds"):
            if name in options:
                options[name] = tuple(options[name])
        return replace(self, **options)

    def to_json(self) -> dict[str, Any]:
        """As JSON types; :meth:`from_json` is its inverse."""
        return asdict(self) | {"arms": list(self.arms), "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Config:
        """Read what :meth:`to_json` gave."""
        special = {
            "arms": tuple(value["arms"]),
            "seeds": tuple(value["seeds"]),
            "guide": GuideConfig(**value["guide"]),
        }
        return cls(**{**value, **special})


def _check_list(option: str, values: Sequence[Any]) -> None:
    if not values:
        raise UserError(f"{option}: expected at least one value")
    if len(set(values)) < len(values):
        raise UserError(f"{option}: a value is given twice: {' '.join(map(str, values))}")


def _check_arm(option: str, arm: str) -> None:
    if arm not in ARMS:
        raise UserError(f"{option}: unknown arm {arm!r}; the arms are {', '.join(ARMS)}")


def _learning_rates(values: Sequence[str], arms: Sequence[str]) -> dict[str, float]:
    """Parse ``["1e-3"]``, for all arms, or ``["none=1e-3", "trained=3e-3"]``."""
    rates: dict[str, float] = {}
    for value in values:
        arm, equals, number = value.rpartition("=")
        try:
            lr = float(number)
        except ValueError:
            raise UserError(
                f"--lr: expected a number for all arms or ARM=NUMBER, got {value!r}"
            ) from None
        if not equals and len(values) > 1:
            raise UserError(f"--lr: with several values each must be ARM=NUMBER, got {value!r}")
        if not equals:
            return dict.fromkeys(ARMS, lr)
        _check_arm("--lr", arm)
        if arm not in arms:
            raise UserError(f"--lr: arm {arm} is not run; the arms are {', '.join(arms)}")
        if arm in rates:
            raise UserError(f"--lr: arm {arm} is given twice: {' '.join(values)}")
        rates[arm] = lr
    return rates


def check_device(device: str) -> None:
    """Raise UserError unless torch can compute on the device."""
    import torch

    try:
        torch.ones(1, device=device).sum().item()
    except Exception as error:
        # torch raises RuntimeError, AssertionError and NotImplementedError here.
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {device}: torch cannot use it: {reason}") from error


def check_extra() -> None:
    """Raise UserError unless the packages of the extra ``experiments`` are installed."""
    packages = ("matplotlib", "mnist1d", "numpy", "tqdm")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"this needs {', '.join(missing)}: run pip install 'pyguide[experiments]'")


#: Less of everything: it shows that the parts work together, not an effect.
QUICK = Config(seeds=(1,), depth=12, epochs=8, guide=GuideConfig(epochs=5), quick=True)
