"""What the experiments on sequences of tokens share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from pyguide.data.splits import Split, Splits, TensorSplit
from pyguide.data.tokens import IGNORED
from pyguide.errors import UserError
from pyguide.experiments.harness.config import Config, option
from pyguide.experiments.harness.experiment import Arm, Metric, Optimization, Setting
from pyguide.experiments.harness.objectives import Losses
from pyguide.experiments.harness.shares import Processes
from pyguide.experiments.networks import RNN, CausalTransformer
from pyguide.guidance import Guidance, GuideCache
from pyguide.guidance.rules import even_pairs

__all__ = [
    "PERPLEXITY",
    "GeneratedConfig",
    "SequenceConfig",
    "SequenceSetting",
    "TokenSetting",
    "check_heads",
    "layer_pairs",
]

#: exp of the mean cross-entropy of a word.
PERPLEXITY = Metric("perplexity", "perplexity", unit="", scale=1.0, higher_is_better=False)


@dataclass(frozen=True)
class SequenceConfig(Config):
    """Networks of layers that keep the positions of a sequence apart."""

    pairs: str = option(
        "even",
        "rule that pairs layers: even, first:K or last:K, of recurrent layers and Transformer "
        "blocks; or paper or paper-sum, of their parts too",
        target_only=True,
    )
    clip: float = option(1.0, "norm to which gradients are clipped; 0: they are not", least=0)
    guide_lr: float = option(1e-3, "learning rate of the trained guides")
    guide_outputs: str = option(
        "kept",
        "whether the guide's layers on the training data are computed once and kept in memory, or "
        "computed in every step",
        choices=("kept", "computed"),
        target_only=True,
    )
    width: int = option(128, "features of the target's layers", least=1, target_only=True)
    layers: int = option(3, "layers of the target", least=1, target_only=True)
    guide_width: int = option(128, "features of the guide's layers", least=1)
    guide_layers: int = option(3, "layers of the guide", least=1)
    heads: int = option(4, "attention heads of the Transformer", least=1)


@dataclass(frozen=True)
class GeneratedConfig(SequenceConfig):
    """Sequences of random lengths that are generated."""

    data_seed: int = option(0, "seed of the data", least=0)
    min_length: int = option(8, "tokens of the shortest sequence", least=1)
    max_length: int = option(12, "tokens of the longest sequence", least=1)
    train_size: int = option(20_000, "sequences to train on", least=1)
    held_out_size: int = option(2_000, "sequences to validate on, and to test on", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_seed >= _SEEDS:
            raise UserError(f"--data-seed: expected at most 2**31 - 1, got {self.data_seed}")
        if self.min_length > self.max_length:
            raise UserError(
                f"--min-length: {self.min_length} is above --max-length, {self.max_length}"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sequences to train, validate and test on."""
        return self.train_size, self.held_out_size, self.held_out_size


S = TypeVar("S", bound=SequenceConfig)
_SEEDS = 2**31  # that torch and Python take
_FLOAT32 = 4  # bytes


class SequenceSetting(Setting[S]):
    """Padded sequences (n, T) of tokens, and networks whose ``layers`` return (n, T, width).

    AdamW, as in the paper; padding counts in no distance.
    """

    clips_guide = True
    refused = ("guide_input", "guide_mode")
    #: The token after the end of a sequence; None where all are of one length.
    padding: int | None = None

    def check(self, config: S) -> None:
        if config.guide_input != "data":
            raise UserError("--guide-input: tokens have no noise; expected data")
        if config.guide_mode != "eval":
            raise UserError(
                "--guide-mode: guides of sequences have no BatchNorm layers; expected eval"
            )
        wanted = config.pairs.partition(":")[2]
        there = min(config.layers, config.guide_layers)
        if wanted and int(wanted) > there:
            raise UserError(f"--pairs {config.pairs}: there are {there} pairs of layers")

    def pairs(self, target: nn.Module, guide: nn.Module, config: S, arm: Arm) -> Any:
        # A rule of the paper's code stays what it is: pyguide.Guidance reads it.
        is_paper = config.pairs.startswith("paper")
        return config.pairs if is_paper else layer_pairs(target, guide, config.pairs)

    def target_optimizer(self, model: nn.Module, config: S, lr: float, steps: int) -> Optimization:
        return AdamW(model.parameters(), lr=lr, fused=True), None

    def training_text(self, config: S) -> str:
        """How it is trained, for the report."""
        clipped = f"clipped to {config.clip:g}" if config.clip else "not clipped"
        return f"{config.epochs} epochs of batch {config.batch_size}, AdamW, gradients {clipped}."

    def guide_cache(self, config: S, data: Splits) -> GuideCache | None:
        # The paper's rules look for layers in a first step, which filling the cache is not.
        if config.guide_outputs == "computed" or config.pairs.startswith("paper"):
            return None
        return GuideCache(samples=len(data.train))

    def kept_bytes(self, config: S, arm: Arm, data: Splits) -> int:
        if arm.guide == "none" or self.guide_cache(config, data) is None:
            return 0
        assert isinstance(data.train, TensorSplit)
        with torch.device("meta"):
            networks = self.target(config, data), self.guide(config, data)
        layers = {guide for _, guide in self.pairs(*networks, config, arm)}
        return data.train.x.numel() * config.guide_width * len(layers) * _FLOAT32

    def guidance_loss(
        self, guidance: Guidance, x: Any, y: Any, ids: Tensor | None = None
    ) -> Tensor:
        mask = None if self.padding is None else x != self.padding
        ids = None if guidance.guide_cache is None else ids
        return guidance.loss(x, mask=mask, sample_ids=ids)


class TokenSetting(SequenceSetting[S]):
    """An RNN guided by a causal Transformer, with a label a position.

    Or :data:`~pyguide.data.tokens.IGNORED`; every label counts the same.
    """

    def vocabulary(self, data: Splits) -> int:
        """Number of different tokens."""
        return data.classes

    def check(self, config: S) -> None:
        super().check(config)
        check_heads(config.guide_width, config.heads)

    def target(self, config: S, data: Splits) -> nn.Module:
        vocabulary = self.vocabulary(data)
        return RNN(vocabulary, data.classes, width=config.width, layers=config.layers)

    def guide(self, config: S, data: Splits) -> nn.Module:
        return CausalTransformer(
            self.vocabulary(data),
            data.classes,
            width=config.guide_width,
            layers=config.guide_layers,
            heads=config.heads,
        )

    def networks_text(self, config: S) -> str:
        """The networks, for the report."""
        return (
            f"Target: RNN of {config.layers} x {config.width} (tanh); guide: causal Transformer of "
            f"{config.guide_layers} x {config.guide_width}, {config.heads} heads."
        )

    def task_loss(self, output: Any, y: Any) -> Tensor:
        count = (y != IGNORED).sum(dtype=torch.float32)
        # The processes' shares of a batch may have different numbers of labels.
        Processes().mean_([count])
        return _summed(output, y) / count

    def train_metrics(self, losses: Losses, y: Any) -> dict[str, Tensor]:
        if self.metric is PERPLEXITY:
            return {"perplexity": losses.parts["task"].detach().exp()}
        known = y != IGNORED
        right = (losses.output.argmax(dim=2) == y) & known
        return {self.metric.key: right.sum() / known.sum()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """As :meth:`Setting.evaluate`, of every label; the perplexity has no "right"."""
        model.eval()
        loss, count, right = 0.0, 0, []
        for x, y in split.batches():
            output, known = model(x), y != IGNORED
            loss += _summed(output, y).item()
            count += int(known.sum())
            if self.metric is not PERPLEXITY:
                right.append((output.argmax(dim=2) == y)[known].cpu())
        loss /= count
        if self.metric is PERPLEXITY:
            # Infinite where it is too large: what diverged is told by that.
            perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()
            return {"loss": loss, "perplexity": perplexity}
        flags = torch.cat(right)
        share = flags.sum().item() / len(flags)
        return {"loss": loss, self.metric.key: share, "right": flags}


def check_heads(width: int, heads: int) -> None:
    """Raise UserError unless a Transformer's features are even and shared by its heads."""
    if width % 2 or width % heads:
        raise UserError(
            f"--heads: a width of {width} is not even, or not shared evenly by {heads} heads"
        )


def layer_pairs(target: nn.Module, guide: nn.Module, rule: str) -> list[tuple[str, str]]:
    """Pairs of the networks' ``layers``, spread evenly; all, or the first or last of them."""
    kind, _, count = rule.partition(":")
    pairs = even_pairs(_layers(target), _layers(guide))
    if kind == "first":
        return pairs[: int(count)]
    return pairs[-int(count) :] if kind == "last" else pairs


def _layers(network: nn.Module) -> list[str]:
    return [f"layers.{i}" for i, _ in enumerate(network.get_submodule("layers").children())]


def _summed(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum")
