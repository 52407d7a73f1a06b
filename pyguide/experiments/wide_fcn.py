"""A wide, shallow fully connected network, which overfits, guided by a convolutional network.

The paper's Wide FCN guided by a ResNet-18 on ImageNet (arXiv 2410.20035), and the same made
small: MNIST-1D, a 1-D ResNet as the guide. The gap between training and validation is the measure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from pyguide.data.splits import Splits
from pyguide.experiments.harness.config import Config, option
from pyguide.experiments.harness.experiment import Arm, Experiment, three_arms
from pyguide.experiments.harness.image_folder import ImageFolderConfig, ImageFolderSetting
from pyguide.experiments.harness.mnist1d import Mnist1DSetting
from pyguide.experiments.networks import ResNet1D, WideFCN, resnet18

__all__ = ["EXPERIMENT", "PaperConfig", "SmallConfig"]

#: Wide FCN <- ResNet-18 on ImageNet, top-5 accuracy.
_ARMS = three_arms(none=(34.09, 0.91), trained=(43.01, 0.92), untrained=(39.47, 0.31))


@dataclass(frozen=True)
class SmallConfig(Config):
    """The target on MNIST-1D: 4 Linear layers."""

    lr: dict[str, float] = field(
        default_factory=lambda: {"none": 1e-3, "trained": 1e-3, "untrained": 1e-3}
    )
    width: int = option(512, "units of a hidden layer", least=1, target_only=True)


class Small(Mnist1DSetting[SmallConfig]):
    """MNIST-1D, and a 1-D ResNet of 14 hidden layers as the guide."""

    title = "Wide FCN on MNIST-1D"
    arms = _ARMS
    config = SmallConfig()
    quick: ClassVar = {"seeds": (1,), "epochs": 8, "guide_epochs": 5}
    protocol: ClassVar = {"lrs": (1e-4, 3e-4, 1e-3, 3e-3)}
    judge_gap = True

    def target(self, config: SmallConfig, data: Splits) -> nn.Module:
        return WideFCN(in_features=40, width=config.width, classes=data.classes)

    def guide(self, config: SmallConfig, data: Splits) -> nn.Module:
        return ResNet1D(width=16)

    def describe(self, config: SmallConfig) -> str:
        return (
            f"Target: 3 hidden layers of {config.width} units (Linear, BatchNorm, ReLU), "
            f"{config.epochs} epochs of batch {config.batch_size}."
        )

    def cost(self, config: SmallConfig, arm: Arm) -> float:
        # Seconds an epoch at width 512, measured on one core of a Zen 5 CPU.
        return 0.14 if arm.guide == "none" else 0.25


@dataclass(frozen=True)
class PaperConfig(ImageFolderConfig):
    """The paper's target: 3 x 8192."""

    lr: dict[str, float] = field(
        default_factory=lambda: {"none": 1e-4, "trained": 1e-4, "untrained": 1e-4}
    )
    width: int = option(8192, "units of a hidden layer", least=1, target_only=True)


class Paper(ImageFolderSetting[PaperConfig]):
    """The paper's networks: 150528 pixels -> 3 x 8192 -> 1000, and ResNet-18."""

    title = "Wide FCN on an image folder"
    arms = _ARMS
    config = PaperConfig()
    protocol: ClassVar = {"lrs": (3e-5, 1e-4, 3e-4)}
    judge_gap = True

    def target(self, config: PaperConfig, data: Splits) -> nn.Module:
        return WideFCN(
            in_features=3 * config.image_size**2, width=config.width, classes=data.classes
        )

    def guide(self, config: PaperConfig, data: Splits) -> nn.Module:
        return resnet18(classes=data.classes)

    def describe(self, config: PaperConfig) -> str:
        return (
            f"Target: 3 hidden layers of {config.width} units (Linear, BatchNorm, ReLU); guide: "
            f"ResNet-18; {self.training_text(config)}"
        )


EXPERIMENT = Experiment(
    name="wide-fcn",
    summary="a wide, shallow network that overfits, with and without a guide",
    description="""\
Train a wide, shallow fully connected network, which overfits, without a guide and with a trained
and an untrained ResNet as its guide, and compare the gaps between training and validation: on
MNIST-1D, or with --scale paper on an image folder with the paper's networks.""",
    scales={"default": Small(), "paper": Paper()},
    examples=(
        "pyguide train wide-fcn",
        "pyguide train wide-fcn --protocol           sweep the learning rates, then five seeds",
        "pyguide train wide-fcn --width 2048 --weight 3 --out runs/wider",
        "pyguide train wide-fcn --scale paper --data imagenet --device cuda --guide-weights w.pt",
    ),
)
