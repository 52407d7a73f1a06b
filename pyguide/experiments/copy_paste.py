"""A recurrent network that is to copy a sequence, which it hardly learns, guided by a Transformer.

The paper's copy-paste task (arXiv 2410.20035), at its lengths and small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pyguide.data.copy_paste import CopyPaste
from pyguide.data.splits import Splits
from pyguide.experiments.harness.config import option
from pyguide.experiments.harness.experiment import Experiment, three_arms
from pyguide.experiments.harness.sequences import GeneratedConfig, TokenSetting

__all__ = ["EXPERIMENT", "PAPER", "CopyPasteConfig", "CopyPasteSetting", "Paper", "Small"]

#: RNN <- Transformer, accuracy: mean and standard error of five seeds. The first is chance: the
#: paper's code counts an end mark, which is always known, and not the symbol 0.
_ARMS = three_arms(none=(14.35, 0.01), trained=(23.27, 1.02), untrained=(42.56, 1.51))
_SYMBOLS = 10


def _rates(lr: float) -> dict[str, float]:
    return {arm.name: lr for arm in _ARMS}


@dataclass(frozen=True)
class CopyPasteConfig(GeneratedConfig):
    """Short sequences and narrow networks."""

    lr: Mapping[str, float] = field(default_factory=lambda: _rates(1e-3))
    epochs: int = option(20, "epochs of the target", least=1, target_only=True)
    guide_epochs: int = option(15, "epochs of the trained guides", least=1)


#: The paper's lengths and networks.
PAPER = CopyPasteConfig(
    seeds=(1, 2, 3, 4, 5),
    lr=_rates(1e-4),
    epochs=100,
    guide_epochs=100,
    guide_lr=1e-4,
    clip=0.0,
    guide_outputs="computed",
    min_length=20,
    max_length=40,
    train_size=80_000,
    held_out_size=10_000,
    width=768,
    layers=4,
    guide_width=768,
    guide_layers=4,
    heads=12,
)


class CopyPasteSetting(TokenSetting[CopyPasteConfig]):
    """Sequences of ten symbols."""

    data_name = "copied symbols"
    paper_name = "lengths 20 to 40, accuracy (%)"
    chance = 1 / _SYMBOLS
    padding = CopyPaste(1, 1, _SYMBOLS).padding
    arms = _ARMS

    def vocabulary(self, data: Splits) -> int:
        return CopyPaste(1, 1, _SYMBOLS).vocabulary

    def data(self, config: CopyPasteConfig, cache: Path) -> Splits:
        task = CopyPaste(config.min_length, config.max_length, _SYMBOLS)
        return task.splits(config.sizes, config.data_seed, config.device)

    def describe(self, config: CopyPasteConfig) -> str:
        return (
            f"{self.networks_text(config)} Sequences of {config.min_length} to {config.max_length} "
            f"symbols of {_SYMBOLS}, {config.train_size} to train on; "
            f"{self.training_text(config)} Chance is {100 / _SYMBOLS:g} %."
        )


class Small(CopyPasteSetting):
    """Lengths 8 to 12."""

    title = "Copy-paste with short sequences"
    config = CopyPasteConfig()
    quick: ClassVar = {
        "seeds": (1,),
        "max_length": 8,
        "min_length": 4,
        "train_size": 2_048,
        "held_out_size": 512,
        "epochs": 4,
        "guide_epochs": 4,
        "width": 32,
        "guide_width": 32,
    }
    protocol: ClassVar = {"lrs": (3e-4, 1e-3, 3e-3)}


class Paper(CopyPasteSetting):
    """Lengths 20 to 40, RNN 4 x 768, Transformer 4 x 768."""

    title = "Copy-paste at the paper's lengths"
    config = PAPER
    protocol: ClassVar = {"lrs": (3e-5, 1e-4, 3e-4)}


EXPERIMENT = Experiment(
    name="copy-paste",
    summary="an RNN that copies sequences, with and without a Transformer as its guide",
    description="""\
Train a recurrent network to write a sequence of symbols again that it has read, alone and with a
causal Transformer as its guide, trained or untrained: short sequences, or with --scale paper the
paper's lengths and networks.""",
    scales={"default": Small(), "paper": Paper()},
    examples=(
        "pyguide train copy-paste",
        "pyguide train copy-paste --protocol         sweep the learning rates, then five seeds",
        "pyguide train copy-paste --vary pairs=first:1,last:1 --seeds 1 --out runs/pairs",
        "pyguide train copy-paste --scale paper --device cuda",
    ),
)
