"""What the paper's experiments share at its scale: an image folder, Adam, top-5 accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from pyguide.data.splits import Splits
from pyguide.errors import UserError
from pyguide.experiments.harness.config import Config, option
from pyguide.experiments.harness.experiment import Metric, Optimization, Setting

__all__ = ["ImageFolderConfig", "ImageFolderSetting"]


@dataclass(frozen=True)
class ImageFolderConfig(Config):
    """The paper's training, on the user's images."""

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    epochs: int = option(100, "epochs of the target", least=1, target_only=True)
    guide_epochs: int = option(100, "epochs of the trained guides", least=1)
    guide_lr: float = option(1e-3, "learning rate of the trained guides")
    data: str | None = option(None, "image folder with train/CLASS/* and val/CLASS/*", is_path=True)
    image_size: int = option(224, "height and width of the images", least=32)
    loaders: int = option(4, "processes of each job that read images", least=0)


C = TypeVar("C", bound=ImageFolderConfig)


class ImageFolderSetting(Setting[C]):
    """Images of the user's folder in ImageNet's layout."""

    data_name = "image folder"
    metric = Metric("top5_accuracy", "top-5 accuracy")
    top_k = 5
    packages = ("pillow",)

    def check(self, config: C) -> None:
        if config.data is None:
            raise UserError(
                "--data: --scale paper needs an image folder, train/CLASS/* and val/CLASS/*"
            )
        for path in (Path(config.data, "train"), Path(config.data, "val")):
            if not path.is_dir():
                raise UserError(
                    f"--data: {path} is missing; expected train/CLASS/* and val/CLASS/*"
                )

    def data(self, config: C, cache: Path) -> Splits:
        # Imports NumPy and Pillow, which a listing of the experiments does without.
        from pyguide.data.image_splits import image_splits

        assert config.data is not None
        return image_splits(Path(config.data), config.image_size, config.device, config.loaders)

    def target_optimizer(self, model: nn.Module, config: C, lr: float, steps: int) -> Optimization:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
        return optimizer, StepLR(optimizer, step_size=30 * steps, gamma=0.1)

    def guide_optimizer(self, model: nn.Module, config: C, steps: int) -> Optimization:
        return self.target_optimizer(model, config, config.guide_lr, steps)

    def training_text(self, config: C) -> str:
        """How it is trained and judged, for the report."""
        return (
            f"{config.epochs} epochs of batch {config.batch_size} on images of "
            f"{config.image_size} x {config.image_size}, Adam, learning rate x 0.1 every 30 "
            "epochs. Tested on val/; validated on one in 20 images of each class of train/, which "
            "are not trained on."
        )
