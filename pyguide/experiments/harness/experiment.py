"""What an experiment declares; everything else is shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from pyguide.data.splits import Split, Splits
from pyguide.errors import UserError
from pyguide.experiments.harness.config import Config
from pyguide.experiments.harness.shares import Processes
from pyguide.guidance import Guidance, GuideCache, gaussian_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyguide.experiments.harness.objectives import Losses

__all__ = ["Arm", "Experiment", "Metric", "Result", "Setting", "three_arms"]

C = TypeVar("C", bound=Config)

Optimization = tuple[Optimizer, "LRScheduler | None"]
# Mean and standard error.
Result = tuple[float, "float | None"]


@dataclass(frozen=True)
class Metric:
    """What a run is judged by.

    Attributes
    ----------
    key : str
        Its name in the records, after ``train_``, ``val_`` and ``test_``.
    label, unit : str
        For tables and axes.
    scale : float
        Factor from the records to the table.
    higher_is_better : bool
        False for a perplexity.
    """

    key: str = "accuracy"
    label: str = "accuracy"
    unit: str = "%"
    scale: float = 100.0
    higher_is_better: bool = True

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Arm:
    """One way to train the target, compared with its baseline.

    Attributes
    ----------
    name, label : str
        For options and files; for tables and curves.
    guide : str
        ``"none"``, ``"trained"`` or ``"untrained"``.
    options : dict
        Of the method: those of :class:`pyguide.Guidance` that differ from the configuration's,
        or ``alpha`` and ``temperature`` of
        :class:`~pyguide.experiments.harness.objectives.Distilled`.
    changes : dict
        Fields of the :class:`Config` that differ in this arm.
    baseline : str or None
        The arm whose results are subtracted, seed by seed.
    paper : (float, float or None) or None
        The paper's mean, and its standard error where there is one, in the metric's unit.
    expected : "better", "worse" or None
        Than the baseline, where the paper says so without a number.
    judged_by_loss : bool
        Whether the paper says it of the loss; the verdict is then on the test loss.
    method : "guidance", "distillation" or "initialization"
        What the guide is used for: guidance in training; as a teacher; or to align the target
        with it before training, see :meth:`Setting.initialize`.
    """

    name: str
    label: str
    guide: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = "none"
    paper: Result | None = None
    expected: str | None = None
    judged_by_loss: bool = False
    method: str = "guidance"


def three_arms(**paper: Result) -> tuple[Arm, ...]:
    """The paper's arms: no guide, a trained guide, an untrained guide."""
    return (
        Arm("none", "no guide", baseline=None, paper=paper.get("none")),
        Arm("trained", "trained guide", "trained", paper=paper.get("trained")),
        Arm("untrained", "untrained guide", "untrained", paper=paper.get("untrained")),
    )


class Setting(ABC, Generic[C]):
    """An experiment at one scale: its data, networks, metric and shipped configuration.

    Methods draw from torch's global generator, which is seeded before; they must not
    depend on anything else, so that a run can be repeated and resumed.
    """

    #: One line for reports, and the names of the data set and of the paper's measurement.
    title: str
    data_name: str
    paper_name = "ImageNet, top-5 accuracy (%)"
    #: Arms in the order of the report.
    arms: tuple[Arm, ...]
    #: The shipped configuration, and what a smoke run (``--quick``) changes in it.
    config: C
    quick: ClassVar[Mapping[str, Any] | None] = None
    #: What ``--protocol`` sweeps, as ``lrs``, and its final seeds where they are not 1 to 5.
    protocol: ClassVar[Mapping[str, Any]] = {}
    metric = Metric()
    #: The metric of guessing, drawn in the curves.
    chance: float | None = None
    #: Whether the gap between training and validation is what the experiment measures.
    judge_gap = False
    #: Whether guides are trained with the configuration's ``clip`` too.
    clips_guide = False
    #: A prediction counts as right if it is among the k largest logits.
    top_k = 1
    #: Options that :meth:`check` refuses, so that ``--help`` does not offer them.
    refused: ClassVar[Collection[str]] = ()
    #: Packages that the data come from or need, beside those of the report.
    packages: tuple[str, ...] = ()

    @abstractmethod
    def data(self, config: C, cache: Path) -> Splits:
        """The data on the configuration's device; `cache` is a folder for what is slow to make."""

    @abstractmethod
    def target(self, config: C, data: Splits) -> nn.Module:
        """A new target network."""

    @abstractmethod
    def guide(self, config: C, data: Splits) -> nn.Module:
        """A new guide network."""

    def check(self, config: C) -> None:
        """Raise UserError for what can be known to fail before any work."""

    def needed_packages(self, config: C) -> tuple[str, ...]:
        """Those of :attr:`packages` that a configuration needs."""
        return self.packages

    def describe(self, config: C) -> str:
        """One or two sentences for the report: the target, and what differs from the paper."""
        return f"{config.epochs} epochs of batch {config.batch_size}."

    def cost(self, config: C, arm: Arm) -> float:
        """Time of an epoch relative to other arms, for the order of jobs and the time left."""
        return 1.0 if arm.guide == "none" else 2.0

    def target_optimizer(self, model: nn.Module, config: C, lr: float, steps: int) -> Optimization:
        """The optimizer and a schedule that is stepped with it; `steps` are those of an epoch."""
        return torch.optim.Adam(model.parameters(), lr=lr, fused=True), None

    def guide_optimizer(self, model: nn.Module, config: C, steps: int) -> Optimization:
        """The same for training the guide."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.guide_lr, fused=True)
        total = config.guide_epochs * steps
        return optimizer, OneCycleLR(optimizer, config.guide_lr, total_steps=total)

    def pairs(self, target: nn.Module, guide: nn.Module, config: C, arm: Arm) -> Any:
        """Which layers are compared: what :class:`pyguide.Guidance` takes as its `pairs`."""
        return config.pairs

    def guide_cache(self, config: C, data: Splits) -> GuideCache | None:
        """What keeps the guide's activations on the training data; None: it runs in every step."""
        return None

    def kept_bytes(self, config: C, arm: Arm, data: Splits) -> int:
        """Memory of what :meth:`guide_cache` keeps in an arm."""
        return 0

    def guidance(
        self,
        target: nn.Module,
        guide: nn.Module,
        config: C,
        arm: Arm,
        cache: GuideCache | None = None,
    ) -> Guidance:
        """What guides the target in an arm."""
        options = {
            "pairs": self.pairs(target, guide, config, arm),
            "distance": config.distance,
            "weight": config.weight,
            "release_at": config.release_at or None,
            "guide_mode": config.guide_mode,
            "guide_cache": cache,
            "timed": True,
        }
        if config.guide_input == "noise":
            # Each process's samples have noise of their own.
            seed = int(torch.randint(2**31, ())) + Processes().rank
            options["guide_transform"] = gaussian_noise(seed)
        own = arm.options if arm.method == "guidance" else {}
        return Guidance(target, guide, **{**options, **own})

    def initialize(
        self, guidance: Guidance, config: C, arm: Arm, data: Splits, seed: int
    ) -> dict[str, float]:
        """Align a new target before its training, in an arm of that method; return a record."""
        raise NotImplementedError(f"{self.title}: no initialization")

    def guidance_loss(
        self, guidance: Guidance, x: Any, y: Any, ids: Tensor | None = None
    ) -> Tensor:
        """The guidance term of a batch."""
        return guidance.loss(x, sample_ids=ids if guidance.guide_cache is not None else None)

    def task_loss(self, output: Any, y: Any) -> Tensor:
        """The task's loss of a batch."""
        return F.cross_entropy(output, y)

    def train_metrics(self, losses: Losses, y: Any) -> dict[str, Tensor]:
        """Metrics of a training batch by name, as scalars on the device."""
        return {self.metric.key: self._right(losses.output, y).float().mean()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """The mean loss and the metric of a split, in evaluation mode.

        Where a prediction is right or wrong, also "right": a bool tensor of the samples, on the
        CPU.
        """
        model.eval()
        loss, right = 0.0, []
        for x, y in split.batches():
            output = model(x)
            loss += F.cross_entropy(output, y).item() * len(y)
            right.append(self._right(output, y).cpu())
        flags = torch.cat(right)
        share = flags.sum().item() / len(flags)
        return {"loss": loss / len(flags), self.metric.key: share, "right": flags}

    def details(self, model: nn.Module, config: C, data: Splits) -> dict[str, Any]:
        """What else is kept of a target's epoch of lowest validation loss, as JSON types.

        For :meth:`draw`; not asked for in a sweep.
        """
        return {}

    def draw(
        self, config: C, arms: Sequence[Arm], runs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Figure]:
        """Pictures beside the curves, by name: of the runs, with their ``details``."""
        return {}

    def _right(self, logits: Tensor, y: Tensor) -> Tensor:
        k = min(self.top_k, logits.shape[1])
        return (logits.topk(k, dim=1).indices == y.unsqueeze(1)).any(dim=1)

    def protocol_changes(self) -> dict[str, Any]:
        """Learning rates and seeds of the published results: a few rates, then five fresh seeds.

        Where an arm's best rate is an edge of these, up to two beyond it.
        """
        return {"lrs": self.config.lrs, "extend": 2, "seeds": (1, 2, 3, 4, 5), **self.protocol}

    def is_compared(self, arm: Arm) -> bool:
        """Whether the report has the arm's curves, and its error consistency with the others."""
        return True

    def checked(self, config: C) -> C:
        """The configuration, if its arms have what they need; else UserError."""
        known = [arm.name for arm in self.arms]
        for name in config.arms:
            if name not in known:
                raise UserError(f"--arms: unknown arm {name!r}; the arms are {', '.join(known)}")
            if not config.sweep and name not in config.lr:
                raise UserError(f"--lr: arm {name} has no learning rate")
        self._check_varied(config)
        for arm in self.variants(config):
            self.check(replace(config, vary={}, **arm.changes))
        weights = config.guide_weights
        if weights is not None and not Path(weights).is_file():
            raise UserError(f"--guide-weights: {weights} is no file")
        return config

    def _check_varied(self, config: C) -> None:
        """An arm that sets a field itself would not be what its name says where it is varied."""
        for arm in self.arms:
            for name in config.vary:
                if arm.name in config.arms and name in arm.changes:
                    raise UserError(
                        f"--vary: arm {arm.name} sets {name} itself; choose others with --arms"
                    )

    def variants(self, config: C) -> list[Arm]:
        """The arms of a configuration; with ``--vary``, each at every combination of values."""
        arms = [arm for name in config.arms for arm in self.arms if arm.name == name]
        if not config.vary:
            return arms
        combinations = [
            dict(zip(config.vary, values, strict=True)) for values in product(*config.vary.values())
        ]
        return [_variant(arm, changes) for changes in combinations for arm in arms]


def _variant(arm: Arm, changes: Mapping[str, Any]) -> Arm:
    suffix = "".join(f",{name}={value}" for name, value in changes.items())
    label = "".join(f", {name.replace('_', ' ')} {value}" for name, value in changes.items())
    return replace(
        arm,
        name=arm.name + suffix,
        label=arm.label + label,
        changes={**arm.changes, **changes},
        baseline=None if arm.baseline is None else arm.baseline + suffix,
        paper=None,
    )


@dataclass(frozen=True)
class Experiment:
    """A name for ``pyguide train``, and the settings by scale; the first is the default.

    A module of :mod:`pyguide.experiments` with one named ``EXPERIMENT`` is found by itself.
    """

    name: str
    summary: str
    description: str
    scales: Mapping[str, Setting[Any]]
    examples: Sequence[str] = ()
    #: One whose arms this one has too: ``train all`` does not repeat their jobs.
    extends: Experiment | None = None
