"""A recurrent language model guided by a Transformer.

The paper's RNN guided by a Transformer on WikiText-103 (arXiv 2410.20035), and the same small on
Shakespeare's works. Every model here is causal: a later word changes nothing before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from pyguide.data.splits import Splits
from pyguide.errors import UserError
from pyguide.experiments.harness.config import option
from pyguide.experiments.harness.experiment import Experiment, three_arms
from pyguide.experiments.harness.sequences import PERPLEXITY, SequenceConfig, TokenSetting

__all__ = ["EXPERIMENT"]


def _rates(lr: float) -> dict[str, float]:
    return dict.fromkeys(("none", "trained", "untrained"), lr)


@dataclass(frozen=True)
class LanguageConfig(SequenceConfig):
    """Short windows; narrow networks of as many layers as the paper's."""

    lr: Mapping[str, float] = field(default_factory=lambda: _rates(1e-3))
    epochs: int = option(5, "epochs of the target", least=1, target_only=True)
    guide_epochs: int = option(5, "epochs of the trained guides", least=1)
    clip: float = option(0.25, "norm to which gradients are clipped; 0: they are not", least=0)
    data: str | None = option(
        None,
        "folder of .txt files to read in place of Shakespeare's works; with --scale paper, of "
        "wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens",
        is_path=True,
    )
    vocabulary: int = option(5_000, "most frequent words that are told apart", least=3)
    context: int = option(32, "words of a window", least=2)
    train_words: int = option(0, "words to train on, from the beginning; 0: all", least=0)
    layers: int = option(4, "layers of the target", least=1, target_only=True)
    guide_layers: int = option(4, "layers of the guide", least=1)


class LanguageSetting(TokenSetting[LanguageConfig]):
    """Windows of text, each position predicting the next word."""

    metric = PERPLEXITY

    def describe(self, config: LanguageConfig) -> str:
        return (
            f"{self.networks_text(config)} Windows of {config.context} words of the "
            f"{config.vocabulary} most frequent ones, all others being one; "
            f"{self.training_text(config)}"
        )


class Small(LanguageSetting):
    """Shakespeare's works."""

    title = "Language model of Shakespeare's works"
    data_name = "words"
    paper_name = "WikiText-103, perplexity"
    arms = three_arms(none=(69.19, 1.89), trained=(40.01, 1.54), untrained=(59.61, 2.33))
    config = LanguageConfig(batch_size=128, guide_batch_size=128)
    quick: ClassVar = {
        "seeds": (1,),
        "vocabulary": 500,
        "context": 16,
        "train_words": 50_000,
        "width": 32,
        "layers": 2,
        "guide_width": 32,
        "guide_layers": 2,
        "epochs": 2,
        "guide_epochs": 2,
    }
    protocol: ClassVar = {"lrs": (3e-4, 1e-3, 3e-3)}
    packages = ("shakespeare",)

    def check(self, config: LanguageConfig) -> None:
        from pyguide.data.corpora import text_files

        super().check(config)
        if config.data is not None:
            if not Path(config.data).is_dir():
                raise UserError(f"--data: {config.data} is no folder")
            text_files(Path(config.data))

    def needed_packages(self, config: LanguageConfig) -> tuple[str, ...]:
        return self.packages if config.data is None else ()

    def data(self, config: LanguageConfig, cache: Path) -> Splits:
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


class Paper(LanguageSetting):
    """WikiText-103; RNN 4 x 512, Transformer 4 x 512."""

    title = "Language model of WikiText"
    data_name = "WikiText"
    paper_name = "WikiText-103, perplexity"
    arms = Small.arms
    config = LanguageConfig(
        seeds=(1, 2, 3, 4, 5),
        lr=_rates(1e-4),
        epochs=100,
        guide_epochs=100,
        guide_lr=1e-4,
        guide_outputs="computed",
        vocabulary=50_257,
        context=256,
        width=512,
        guide_width=512,
        heads=16,
    )
    protocol: ClassVar = {"lrs": (3e-5, 1e-4, 3e-4)}

    def check(self, config: LanguageConfig) -> None:
        from pyguide.data.corpora import WIKITEXT_FILES

        super().check(config)
        for name in WIKITEXT_FILES.values():
            if config.data is None or not Path(config.data, name).is_file():
                raise UserError(
                    f"--data: expected a folder of {', '.join(WIKITEXT_FILES.values())}, the "
                    f"word-level files of WikiText-103; got {config.data}"
                )

    def data(self, config: LanguageConfig, cache: Path) -> Splits:
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
    config = replace(Paper.config, width=1024, layers=6, guide_width=1024)


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
