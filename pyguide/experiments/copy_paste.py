"""A recurrent network that is to copy a sequence, which it hardly learns, guided by a Transformer.

The paper's copy-paste task (arXiv 2410.20035), at its lengths and small.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import nn

from pyguide.data.copy_paste import CopyPaste
from pyguide.data.splits import Splits
from pyguide.errors import UserError
from pyguide.experiments.harness.config import option
from pyguide.experiments.harness.experiment import Experiment, three_arms
from pyguide.experiments.harness.sequences import (
    SequenceConfig,
    TokenSetting,
    check_heads,
    guide_outputs_option,
)
from pyguide.experiments.networks import RNN, CausalTransformer

__all__ = ["EXPERIMENT", "CopyPasteSetting", "Paper", "PaperConfig", "Small", "SmallConfig"]

#: RNN <- Transformer, accuracy: mean and standard error of five seeds. The first is chance: the
#: paper's code counts an end mark, which is always known, and not the symbol 0.
_ARMS = three_arms(none=(14.35, 0.01), trained=(23.27, 1.02), untrained=(42.56, 1.51))
_SYMBOLS = 10


@dataclass(frozen=True)
class SmallConfig(SequenceConfig):
    """Short sequences and narrow networks."""

    lr: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("none", "trained", "untrained"), 1e-3)
    )
    epochs: int = option(20, "epochs of the target", least=1, target_only=True)
    guide_epochs: int = option(15, "epochs of the trained guides", least=1)
    min_length: int = option(8, "symbols of the shortest sequence", least=1)
    max_length: int = option(12, "symbols of the longest sequence", least=1)
    train_size: int = option(20_000, "sequences to train on", least=1)
    held_out_size: int = option(2_000, "sequences to validate on, and to test on", least=1)
    width: int = option(128, "units of a layer of the RNN", least=1, target_only=True)
    layers: int = option(3, "layers of the RNN", least=1, target_only=True)
    guide_width: int = option(128, "features of the Transformer", least=2)
    guide_layers: int = option(3, "blocks of the Transformer", least=1)
    heads: int = option(4, "attention heads of the Transformer", least=1)


class CopyPasteSetting(TokenSetting[SmallConfig]):
    """Sequences of ten symbols."""

    data_name = "copied sequences"
    paper_name = "lengths 20 to 40, accuracy (%)"
    chance = 1 / _SYMBOLS
    padding = CopyPaste(1, 1, _SYMBOLS).padding
    arms = _ARMS

    def layer_counts(self, config: SmallConfig) -> tuple[int, int]:
        return config.layers, config.guide_layers

    def check(self, config: SmallConfig) -> None:
        super().check(config)
        if config.min_length > config.max_length:
            raise UserError(
                f"--min-length: {config.min_length} is above --max-length, {config.max_length}"
            )
        check_heads(config.guide_width, config.heads)

    def data(self, config: SmallConfig, cache: Path) -> Splits:
        task = CopyPaste(config.min_length, config.max_length, _SYMBOLS)
        sizes = (config.train_size, config.held_out_size, config.held_out_size)
        return task.splits(sizes, config.data_seed, config.device)

    def target(self, config: SmallConfig, data: Splits) -> nn.Module:
        vocabulary = CopyPaste(1, 1, _SYMBOLS).vocabulary
        return RNN(vocabulary, _SYMBOLS, width=config.width, layers=config.layers)

    def guide(self, config: SmallConfig, data: Splits) -> nn.Module:
        return CausalTransformer(
            CopyPaste(1, 1, _SYMBOLS).vocabulary,
            _SYMBOLS,
            width=config.guide_width,
            layers=config.guide_layers,
            heads=config.heads,
        )

    def describe(self, config: SmallConfig) -> str:
        return (
            f"Target: RNN of {config.layers} x {config.width} (tanh); guide: causal Transformer of "
            f"{config.guide_layers} x {config.guide_width}, {config.heads} heads. Sequences of "
            f"{config.min_length} to {config.max_length} symbols of {_SYMBOLS}, "
            f"{config.train_size} to train on; {self.training_text(config)} Chance is "
            f"{100 / _SYMBOLS:g} %."
        )


class Small(CopyPasteSetting):
    """Lengths 8 to 12."""

    title = "Copy-paste with short sequences"
    config = SmallConfig()
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


@dataclass(frozen=True)
class PaperConfig(SmallConfig):
    """The paper's lengths and networks."""

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    lr: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("none", "trained", "untrained"), 1e-4)
    )
    epochs: int = option(100, "epochs of the target", least=1, target_only=True)
    guide_epochs: int = option(100, "epochs of the trained guides", least=1)
    guide_lr: float = option(1e-4, "learning rate of the trained guides")
    guide_outputs: str = guide_outputs_option("computed")
    min_length: int = option(20, "symbols of the shortest sequence", least=1)
    max_length: int = option(40, "symbols of the longest sequence", least=1)
    train_size: int = option(80_000, "sequences to train on", least=1)
    held_out_size: int = option(10_000, "sequences to validate on, and to test on", least=1)
    width: int = option(768, "units of a layer of the RNN", least=1, target_only=True)
    layers: int = option(4, "layers of the RNN", least=1, target_only=True)
    guide_width: int = option(768, "features of the Transformer", least=2)
    guide_layers: int = option(4, "blocks of the Transformer", least=1)
    heads: int = option(12, "attention heads of the Transformer", least=1)


class Paper(CopyPasteSetting):
    """Lengths 20 to 40, RNN 4 x 768, Transformer 4 x 768."""

    title = "Copy-paste at the paper's lengths"
    config = PaperConfig()
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
