"""Guidance as initialization: a network aligned with an untrained guide, then trained alone.

In the paper (arXiv 2410.20035, Figure 4), a fully connected network that was first aligned with a
randomly initialised ResNet-18 on noise for 300 steps no longer overfits in plain training. The
same with the Wide FCN of ``wide-fcn``, on data and on noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pyguide.data.splits import Splits
from pyguide.errors import UserError
from pyguide.experiments import wide_fcn
from pyguide.experiments.harness.config import Config, option
from pyguide.experiments.harness.experiment import Arm, Experiment
from pyguide.experiments.harness.initialization import align
from pyguide.guidance import Guidance

__all__ = ["EXPERIMENT"]

_ARMS = (
    Arm("none", "as torch initialises", baseline=None),
    Arm("data", "aligned on data", "untrained", {"noise": False}, method="initialization"),
    Arm("noise", "aligned on noise", "untrained", {"noise": True}, method="initialization"),
)
_NAMES = tuple(arm.name for arm in _ARMS)
_STEPS = "steps of alignment before the training"


@dataclass(frozen=True)
class SmallConfig(wide_fcn.SmallConfig):
    """Wide FCN on MNIST-1D."""

    arms: tuple[str, ...] = _NAMES
    lr: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_NAMES, 1e-3))
    align_steps: int = option(300, _STEPS, least=1, target_only=True)
    align_lr: float = option(1e-3, "learning rate of the alignment", target_only=True)


@dataclass(frozen=True)
class PaperConfig(wide_fcn.PaperConfig):
    """Wide FCN on an image folder."""

    arms: tuple[str, ...] = _NAMES
    lr: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_NAMES, 1e-4))
    align_steps: int = option(300, _STEPS, least=1, target_only=True)
    align_lr: float = option(1e-4, "learning rate of the alignment", target_only=True)


def _check_alignment(config: SmallConfig | PaperConfig) -> None:
    """Raise UserError for an alignment that would have no loss."""
    if config.release_at:
        raise UserError("--release-at: fcn-init aligns for --align-steps, and then releases")
    if config.weight == 0:
        raise UserError("--weight: fcn-init aligns by the guidance term alone; it cannot be 0")
    if not config.align_lr > 0:
        raise UserError(f"--align-lr: expected a learning rate above 0, got {config.align_lr:g}")


def _aligned(
    guidance: Guidance, config: SmallConfig | PaperConfig, arm: Arm, data: Splits, seed: int
) -> dict[str, float]:
    return align(
        guidance,
        data.train,
        steps=config.align_steps,
        lr=config.align_lr,
        batch_size=config.batch_size,
        seed=seed,
        **arm.options,
    )


class Small(wide_fcn.Small):
    """MNIST-1D, and an untrained 1-D ResNet."""

    title = "Wide FCN aligned before its training, on MNIST-1D"
    arms = _ARMS
    config = SmallConfig()
    refused = ("release_at",)
    quick: ClassVar = {"seeds": (1,), "epochs": 8, "align_steps": 30}

    def check(self, config: Config) -> None:
        assert isinstance(config, SmallConfig)
        super().check(config)
        _check_alignment(config)

    def initialize(
        self, guidance: Guidance, config: Config, arm: Arm, data: Splits, seed: int
    ) -> dict[str, float]:
        assert isinstance(config, SmallConfig)
        return _aligned(guidance, config, arm, data, seed)

    def describe(self, config: Config) -> str:
        assert isinstance(config, SmallConfig)
        return f"{super().describe(config)} {_alignment_text(config)}"

    def cost(self, config: Config, arm: Arm) -> float:
        return 1.0


class Paper(wide_fcn.Paper):
    """The paper's Wide FCN and ResNet-18."""

    title = "Wide FCN aligned before its training, on an image folder"
    arms = _ARMS
    config = PaperConfig()
    refused = ("release_at",)

    def check(self, config: Config) -> None:
        assert isinstance(config, PaperConfig)
        super().check(config)
        _check_alignment(config)

    def initialize(
        self, guidance: Guidance, config: Config, arm: Arm, data: Splits, seed: int
    ) -> dict[str, float]:
        assert isinstance(config, PaperConfig)
        return _aligned(guidance, config, arm, data, seed)

    def describe(self, config: Config) -> str:
        assert isinstance(config, PaperConfig)
        return f"{super().describe(config)} {_alignment_text(config)}"

    def cost(self, config: Config, arm: Arm) -> float:
        return 1.0


def _alignment_text(config: SmallConfig | PaperConfig) -> str:
    return (
        f"Aligned arms: {config.align_steps} steps of the guidance term alone with an untrained "
        f"ResNet, Adam with learning rate {config.align_lr:g}, then plain training with a new "
        "optimizer; *on noise*, both networks see Gaussian noise during the alignment."
    )


EXPERIMENT = Experiment(
    name="fcn-init",
    summary="a network that overfits, aligned with an untrained guide before plain training",
    description="""\
Align a wide fully connected network with an untrained ResNet, on the data without their labels
or on noise; then train it alone, and see whether the gap between training and validation stays
away.""",
    scales={"default": Small(), "paper": Paper()},
    examples=(
        "pyguide train fcn-init",
        "pyguide train fcn-init --protocol           sweep the learning rates, then five seeds",
        "pyguide train fcn-init --vary align_steps=30,300,3000 --seeds 1 --out runs/steps",
        "pyguide train fcn-init --scale paper --data imagenet --device cuda",
    ),
)
