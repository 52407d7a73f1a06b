"""A Transformer that is to tell whether a string has an odd number of ones, guided by an RNN.

The paper's parity task (arXiv 2410.20035): a network with a state does it at any length, attention
does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pyguide.data.parity import PADDING, VOCABULARY, are_among, bit_strings, parity_splits
from pyguide.data.splits import Splits, TensorSplit
from pyguide.experiments.harness.config import option, target_only_fields
from pyguide.experiments.harness.curves import plot_bands
from pyguide.experiments.harness.experiment import Arm, Experiment, three_arms
from pyguide.experiments.harness.sequences import GeneratedConfig, SequenceSetting, check_heads
from pyguide.experiments.networks import RNNClassifier, TransformerClassifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT"]

#: Transformer encoder <- RNN, accuracy: mean and standard error of five seeds.
_ARMS = three_arms(none=(71.98, 3.16), trained=(78.49, 2.16), untrained=(70.38, 4.17))
# Strings of each length in the accuracies by length; how far these go, in longest lengths trained
# on; and their seed's offset from that of the data.
_STRINGS = 200
_REACH = 2
_SEED_OFFSET = 4_000_037


@dataclass(frozen=True)
class ParityConfig(GeneratedConfig):
    """Short strings; the paper's widths, and a narrower feed-forward layer."""

    lr: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("none", "trained", "untrained"), 1e-3)
    )
    epochs: int = option(10, "epochs of the target", least=1, target_only=True)
    guide_epochs: int = option(4, "epochs of the trained guides", least=1)
    guide_lr: float = option(1e-2, "learning rate of the trained guides")
    min_length: int = option(2, "tokens of the shortest sequence", least=1)
    max_length: int = option(20, "tokens of the longest sequence", least=1)
    train_size: int = option(80_000, "sequences to train on", least=1)
    width: int = option(64, "features of the target's layers", least=1, target_only=True)
    layers: int = option(1, "layers of the target", least=1, target_only=True)
    heads: int = option(4, "attention heads of the Transformer", least=1, target_only=True)
    feed_forward: int = option(
        256, "units of a block's feed-forward layer", least=1, target_only=True
    )
    guide_width: int = option(64, "features of the guide's layers", least=1)
    guide_layers: int = option(1, "layers of the guide", least=1)


class ParitySetting(SequenceSetting[ParityConfig]):
    """Bit strings, with a label each."""

    data_name = "bit strings"
    paper_name = "lengths 2 to 50, accuracy (%)"
    arms = _ARMS
    chance = 0.5
    padding = PADDING

    def check(self, config: ParityConfig) -> None:
        super().check(config)
        check_heads(config.width, config.heads)

    def data(self, config: ParityConfig, cache: Path) -> Splits:
        return parity_splits(
            config.min_length, config.max_length, config.sizes, config.data_seed, config.device
        )

    def target(self, config: ParityConfig, data: Splits) -> nn.Module:
        return TransformerClassifier(
            VOCABULARY,
            data.classes,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            feed_forward=config.feed_forward,
            padding=PADDING,
        )

    def guide(self, config: ParityConfig, data: Splits) -> nn.Module:
        return RNNClassifier(
            VOCABULARY,
            data.classes,
            width=config.guide_width,
            layers=config.guide_layers,
            padding=PADDING,
        )

    def describe(self, config: ParityConfig) -> str:
        return (
            f"Target: Transformer encoder of {config.layers} x {config.width}, {config.heads} "
            f"heads; guide: RNN of {config.guide_layers} x {config.guide_width} (tanh). Strings of "
            f"{config.min_length} to {config.max_length} bits, {config.train_size} to train on; "
            f"{self.training_text(config)}"
        )

    @torch.no_grad()
    def details(self, model: nn.Module, config: ParityConfig, data: Splits) -> dict[str, Any]:
        """Accuracies by length, also of strings up to twice as long as those trained on."""
        model.eval()
        lengths, accuracies = [], []
        for length, x, y in _strings(config):
            right = model(x.to(config.device)).argmax(dim=1).cpu() == y
            lengths.append(length)
            accuracies.append(right.double().mean().item())
        return {"lengths": lengths, "accuracy": accuracies}

    def draw(
        self, config: ParityConfig, arms: Sequence[Arm], runs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Figure]:
        lines = {}
        for arm in arms:
            own = [run["details"] for run in runs if run["arm"] == arm.name]
            if own:
                accuracies = [[100 * a for a in details["accuracy"]] for details in own]
                lines[arm.label] = own[0]["lengths"], accuracies
        figure = plot_bands(
            lines,
            "bits of a string",
            "accuracy (%)",
            chance=50,
            facts=_seen_shares(config, arms),
        )
        axes = figure.axes[0]
        # With --vary an arm has a longest length of its own.
        for longest in {arm.changes.get("max_length", config.max_length) for arm in arms}:
            axes.axvline(longest, color="black", lw=0.8)
        axes.set_title("left of the line: lengths trained on", fontsize="small")
        figure.suptitle(self.title + (" (a smoke run)" if config.quick else ""))
        return {"lengths": figure}


def _strings(config: ParityConfig) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Lengths up to twice those trained on, and the same strings of each in every run."""
    generator = torch.Generator().manual_seed(config.data_seed + _SEED_OFFSET)
    for length in (
        *range(config.min_length, config.max_length + 1),
        *range(config.max_length + 2, _REACH * config.max_length + 1, 2),
    ):
        yield length, *bit_strings(torch.full((_STRINGS,), length), generator)


def _seen_shares(
    config: ParityConfig, arms: Sequence[Arm]
) -> dict[str, tuple[list[int], list[float]]]:
    """How many per cent of the strings of each length are among those that were trained on.

    Short strings are few: that these are told says nothing of what was learnt. Nothing where
    arms have data of their own.
    """
    if any(not arm.changes.keys() <= target_only_fields(config) for arm in arms):
        return {}
    train = parity_splits(
        config.min_length, config.max_length, config.sizes, config.data_seed
    ).train
    assert isinstance(train, TensorSplit)
    lengths, shares = [], []
    for length, x, _ in _strings(config):
        lengths.append(length)
        shares.append(100 * are_among(x, train.x).double().mean().item())
    return {"strings that were trained on (%)": (lengths, shares)}


class Small(ParitySetting):
    """Lengths 2 to 20, and few epochs: in as many 2 to 50 are hardly learnt."""

    title = "Parity of short bit strings"
    config = ParityConfig()
    quick: ClassVar = {
        "seeds": (1,),
        "max_length": 12,
        "train_size": 2_048,
        "held_out_size": 512,
        "epochs": 4,
        "guide_epochs": 4,
        "feed_forward": 64,
    }
    protocol: ClassVar = {"lrs": (3e-4, 1e-3, 3e-3)}


class Paper(ParitySetting):
    """The paper's networks, lengths, strings and epochs."""

    title = "Parity of bit strings at the paper's scale"
    config = ParityConfig(
        seeds=(1, 2, 3, 4, 5),
        epochs=100,
        guide_epochs=100,
        clip=0.0,
        max_length=50,
        held_out_size=10_000,
        feed_forward=2048,
    )
    protocol: ClassVar = Small.protocol


EXPERIMENT = Experiment(
    name="parity",
    summary="a Transformer that tells the parity of bits, with and without an RNN as its guide",
    description="""\
Train a Transformer encoder to tell whether a string of bits has an odd number of ones, alone and
with a recurrent network as its guide, trained or untrained; their widths are the paper's. A picture
has the accuracy by length, up to twice the lengths trained on.""",
    scales={"default": Small(), "paper": Paper()},
    examples=(
        "pyguide train parity",
        "pyguide train parity --protocol             sweep the learning rates, then five seeds",
        "pyguide train parity --max-length 50 --epochs 100 --seeds 1 --out runs/longer",
        "pyguide train parity --scale paper --device cuda",
    ),
)
