"""A deep convolutional network without shortcuts, guided by its residual twin.

The paper's Deep ConvNet, ResNet-50 without shortcuts, guided by a ResNet-50 on ImageNet (arXiv
2410.20035), and the same made small: MNIST-1D, 73 convolutions of a 1-D ResNet.
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
from pyguide.experiments.networks import ResNet1D, deep_convnet, resnet50

__all__ = ["EXPERIMENT"]

#: Deep ConvNet <- ResNet-50 on ImageNet, top-5 accuracy.
_ARMS = three_arms(none=(70.02, 1.52), trained=(78.91, 2.16), untrained=(68.17, 2.54))


@dataclass(frozen=True)
class SmallConfig(Config):
    """The target on MNIST-1D.

    Tried with seed 0 and learning rate 1e-3, 15 epochs: validation accuracy 56 % without and 90 %
    with shortcuts at 8 blocks a stage; 24 and 91 % at 12; 19 and 92 % at 16.
    """

    lr: dict[str, float] = field(
        default_factory=lambda: {"none": 3e-3, "trained": 3e-3, "untrained": 3e-3}
    )
    epochs: int = option(40, "epochs of the target", least=1, target_only=True)
    guide_lr: float = option(3e-3, "learning rate of the trained guides")
    blocks: int = option(12, "blocks of two convolutions in each of the three stages", least=1)
    width: int = option(16, "channels of the first stage", least=1)


class Small(Mnist1DSetting[SmallConfig]):
    """MNIST-1D; the guide is the target with its shortcuts."""

    title = "Plain CNN on MNIST-1D"
    arms = _ARMS
    config = SmallConfig()
    quick: ClassVar = {"seeds": (1,), "blocks": 2, "epochs": 4, "guide_epochs": 3}
    protocol: ClassVar = {"lrs": (3e-4, 1e-3, 3e-3, 1e-2)}

    def target(self, config: SmallConfig, data: Splits) -> nn.Module:
        return self._network(config, skips=False)

    def guide(self, config: SmallConfig, data: Splits) -> nn.Module:
        return self._network(config, skips=True)

    def _network(self, config: SmallConfig, *, skips: bool) -> nn.Module:
        return ResNet1D(width=config.width, stages=(config.blocks,) * 3, skips=skips)

    def describe(self, config: SmallConfig) -> str:
        return (
            f"Target: {6 * config.blocks + 1} convolutions in three stages of {config.width} to "
            f"{4 * config.width} channels, without shortcuts; guide: the same network with them; "
            f"{config.epochs} epochs of batch {config.batch_size}."
        )

    def cost(self, config: SmallConfig, arm: Arm) -> float:
        # Seconds an epoch, measured on one core of a Zen 5 CPU.
        return (1.5 if arm.guide == "none" else 3.0) * config.blocks / 12


@dataclass(frozen=True)
class PaperConfig(ImageFolderConfig):
    """The paper's training."""

    lr: dict[str, float] = field(
        default_factory=lambda: {"none": 1e-3, "trained": 1e-3, "untrained": 1e-3}
    )


class Paper(ImageFolderSetting[PaperConfig]):
    """The paper's networks: ResNet-50 without and with shortcuts."""

    title = "Deep ConvNet on an image folder"
    arms = _ARMS
    config = PaperConfig()
    protocol: ClassVar = {"lrs": (3e-4, 1e-3, 3e-3)}

    def target(self, config: PaperConfig, data: Splits) -> nn.Module:
        return deep_convnet(classes=data.classes)

    def guide(self, config: PaperConfig, data: Splits) -> nn.Module:
        return resnet50(classes=data.classes)

    def describe(self, config: PaperConfig) -> str:
        return (
            f"Target: ResNet-50 without shortcuts; guide: ResNet-50; {self.training_text(config)}"
        )


EXPERIMENT = Experiment(
    name="plain-cnn",
    summary="a deep CNN without shortcuts, with and without its residual twin as a guide",
    description="""\
Train a deep convolutional network without shortcuts, alone and with its residual twin as a guide,
trained or untrained: on MNIST-1D, or with --scale paper on an image folder with the paper's
networks.""",
    scales={"default": Small(), "paper": Paper()},
    examples=(
        "pyguide train plain-cnn",
        "pyguide train plain-cnn --protocol          sweep the learning rates, then five seeds",
        "pyguide train plain-cnn --vary blocks=8,16 --seeds 1 --out runs/depths",
        "pyguide train plain-cnn --scale paper --data imagenet --device cuda",
    ),
)
