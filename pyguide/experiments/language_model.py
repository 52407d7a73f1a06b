"""A recurrent language model guided by a Transformer.

The paper's RNN guided by a Transformer on WikiText-103 (arXiv 2410.20035), and the same small on
Shakespeare's works. Every model here is causal: a later word changes nothing before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from torch import nn

from pyguide.data.splits import Splits
from pyguide.errors import UserError
from pyguide.experiments.harness.config import option
from pyguide.experiments.harness.experiment import Experiment, three_arms
from pyguide.experiments.harness.sequences import (
    PERPLEXITY,
    SequenceConfig,
    TokenSetting,
    check_heads,
    guide_outputs_option,
)
from pyguide.experiments.networks import RNN, CausalTransformer

__all__ = ["EXPERIMENT"]


@dataclass(frozen=True)
class SmallConfig(SequenceConfig):
    """Narrow networks on short windows of Shakespeare, or of the user's texts."""

    lr: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("none", "trained", "untrained"), 1e-3)
    )
    epochs: int = option(8, "epochs of the target", least=1, target_only=True)
    guide_epochs: int = option(8, "epochs of the trained guides", least=1)
    clip: float = option(0.25, "norm to which gradients are clipped")
    data: str | None = option(None, "folder of .txt files to read in their place", is_path=True)
    vocabulary: int = option(5_000, "most frequent words that are told apart", least=3)
    context: int = option(32, "words of a window", least=2)
    train_words: int = option(0, "words to train on, from the beginning; 0: all", least=0)
    width: int = option(128, "units of a layer of the RNN", least=1, target_only=True)
    layers: int = option(2, "layers of the RNN", least=1, target_only=True)
    guide_width: int = option(128, "features of the Transformer", least=2)
    guide_layers: int = option(2, "blocks of the Transformer", least=1)
    heads: int = option(4, "attention heads of the Transformer", least=1)


L = TypeVar("L", bound=SmallConfig)


class LanguageSetting(TokenSetting[L]):
    """Windows of text, each position predicting the next word."""

    metric = PERPLEXITY

    def layer_counts(self, config: L) -> tuple[int, int]:
        return config.layers, config.guide_layers

    def check(self, config: L) -> None:
        super().check(config)
        check_heads(config.guide_width, config.heads)

    def target(self, config: L, data: Splits) -> nn.Module:
        return RNN(data.classes, data.classes, width=config.width, layers=config.layers)

    def guide(self, config: L, data: Splits) -> nn.Module:
        return CausalTransformer(
            data.classes,
            data.classes,
            width=config.guide_width,
            layers=config.guide_layers,
            heads=config.heads,
        )

    def describe(self, config: L) -> str:
        return (
            f"Target: RNN of {config.layers} x {config.width} (tanh); guide: causal Transformer of "
            f"{config.guide_layers} x {config.guide_width}, {config.heads} heads. Windows of "
            f"{config.context} words of the {config.vocabulary} most frequent ones, all others "
            f"being one; {self.training_text(config)}"
        )


class Small(LanguageSetting[SmallConfig]):
    """Shakespeare's works."""

    title = "Language model of Shakespeare's works"
    data_name = "words"
    paper_name = "WikiText-103, perplexity"
    arms = three_arms(none=(69.19, 1.89), trained=(40.01, 1.54), untrained=(59.61, 2.33))
    config = SmallConfig()
    quick: ClassVar = {
        "seeds": (1,),
        "vocabulary": 500,
        "context": 16,
        "train_words": 50_000,
        "width": 32,
        "guide_width": 32,
        "epochs": 2,
        "guide_epochs": 2,
    }
    protocol: ClassVar = {"lrs": (3e-4, 1e-3, 3e-3)}
    packages = ("shakespeare",)

    def check(self, config: SmallConfig) -> None:
        super().check(config)
        if config.data is not None and not Path(config.data).is_dir():
            raise UserError(f"--data: {config.data} is no folder")

    def needed_packages(self, config: SmallConfig) -> tuple[str, ...]:
        return self.packages if config.data is None else ()

    def data(self, config: SmallConfig, cache: Path) -> Splits:
        from pyguide.data.corpora import numbered, shakespeare, text_folder
        from pyguide.data.text import text_splits

        folder = config.data
        corpus, words = numbered(
            cache / f"words-{config.vocabulary}.pt",
            shakespeare if folder is None else lambda: text_folder(Path(folder)),
            config.vocabulary,
        )
        return text_splits(
            corpus, words, config.context, config.device, train_words=config.train_words or None
        )


@dataclass(frozen=True)
class PaperConfig(SmallConfig):
    """The paper's smaller networks."""

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    lr: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("none", "trained", "untrained"), 1e-4)
    )
    epochs: int = option(100, "epochs of the target", least=1, target_only=True)
    guide_epochs: int = option(100, "epochs of the trained guides", least=1)
    guide_lr: float = option(1e-4, "learning rate of the trained guides")
    guide_outputs: str = guide_outputs_option("computed")
    data: str | None = option(
        None, "folder of wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens", is_path=True
    )
    vocabulary: int = option(50_257, "most frequent words that are told apart", least=3)
    context: int = option(256, "words of a window", least=2)
    width: int = option(512, "units of a layer of the RNN", least=1, target_only=True)
    layers: int = option(4, "layers of the RNN", least=1, target_only=True)
    guide_width: int = option(512, "features of the Transformer", least=2)
    guide_layers: int = option(4, "blocks of the Transformer", least=1)
    heads: int = option(16, "attention heads of the Transformer", least=1)


@dataclass(frozen=True)
class LargeConfig(PaperConfig):
    """The paper's larger networks."""

    width: int = option(1024, "units of a layer of the RNN", least=1, target_only=True)
    layers: int = option(6, "layers of the RNN", least=1, target_only=True)
    guide_width: int = option(1024, "features of the Transformer", least=2)


class Paper(LanguageSetting[PaperConfig]):
    """WikiText-103; RNN 4 x 512, Transformer 4 x 512."""

    title = "Language model of WikiText"
    data_name = "WikiText"
    paper_name = "WikiText-103, perplexity"
    arms = Small.arms
    config = PaperConfig()
    protocol: ClassVar = {"lrs": (3e-5, 1e-4, 3e-4)}

    def check(self, config: PaperConfig) -> None:
        from pyguide.data.corpora import WIKITEXT_FILES

        super().check(config)
        for name in WIKITEXT_FILES.values():
            if config.data is None or not Path(config.data, name).is_file():
                raise UserError(
                    f"--data: expected a folder of {', '.join(WIKITEXT_FILES.values())}, the "
                    f"word-level files of WikiText-103; got {config.data}"
                )

    def data(self, config: PaperConfig, cache: Path) -> Splits:
        from pyguide.data.corpora import numbered, wikitext
        from pyguide.data.text import text_splits

        folder = Path(config.data or "")
        corpus, words = numbered(
            cache / f"words-{config.vocabulary}.pt", lambda: wikitext(folder), config.vocabulary
        )
        return text_splits(
            corpus, words, config.context, config.device, train_words=config.train_words or None
        )


class PaperLarge(Paper):
    """WikiText-103; RNN 6 x 1024, Transformer 4 x 1024."""

    title = "Language model of WikiText, large"
    arms = three_arms(none=(89.13, 2.00), trained=(36.91, 1.04), untrained=(47.17, 2.50))
    config = LargeConfig()


EXPERIMENT = Experiment(
    name="language-model",
    summary="a recurrent language model, with and without a Transformer as its guide",
    description="""\
Train a recurrent network to predict the next word, alone and with a causal Transformer as its
guide, trained or untrained, and compare the perplexities: on Shakespeare's works (from the package
shakespeare) or a folder of texts, or with --scale paper or paper-large on WikiText-103 with the
paper's networks.""",
    scales={"default": Small(), "paper": Paper(), "paper-large": PaperLarge()},
    examples=(
        "pyguide train language-model",
        "pyguide train language-model --data texts   your own .txt files",
        "pyguide train language-model --protocol     sweep the learning rates, then five seeds",
        "pyguide train language-model --scale paper --data wikitext-103 --device cuda",
    ),
)
