"""What of guidance matters on sequences: ``copy-paste`` with one factor changed at a time.

The distance, which layers are paired, and one guide layer for all layers of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from pyguide.errors import UserError
from pyguide.experiments import copy_paste
from pyguide.experiments.harness.experiment import Arm, Experiment
from pyguide.experiments.harness.sequences import layer_pairs

__all__ = ["EXPERIMENT"]

_ONE_GUIDE_LAYER = "untrained-one-guide-layer"


def _distance_arms() -> list[Arm]:
    # The paper compares distances on images only.
    return [
        Arm(
            f"{guide}-{name.replace('_', '-')}",
            f"{guide}, {label}",
            guide,
            changes={"distance": name},
        )
        for name, label in [("debiased_cka", "debiased CKA"), ("rsa", "RSA"), ("ridge", "ridge")]
        for guide in ("trained", "untrained")
    ]


#: The paper's accuracies by the pairs that are compared, of four.
_SUBSETS = {
    ("first", 1): 27.59,
    ("first", 2): 28.15,
    ("first", 3): 33.93,
    ("last", 1): 38.19,
    ("last", 2): 41.55,
    ("last", 3): 42.33,
}


def _layer_arms(layers: int) -> list[Arm]:
    subsets = [
        Arm(
            f"untrained-{end}-{count}",
            f"untrained, {end} pair" if count == 1 else f"untrained, {end} {count} pairs",
            "untrained",
            changes={"pairs": f"{end}:{count}"},
            paper=(accuracy, None),
        )
        for (end, count), accuracy in _SUBSETS.items()
        if count < layers
    ]
    # Which guide layer is the paper's is not said.
    one = Arm(
        _ONE_GUIDE_LAYER,
        "untrained, the last guide layer for all",
        "untrained",
        paper=(36.11, None),
    )
    return [*subsets, one]


def _arms(layers: int) -> tuple[Arm, ...]:
    return (*copy_paste.CopyPasteSetting.arms, *_distance_arms(), *_layer_arms(layers))


_SMALL, _PAPER = (
    _arms(config.layers) for config in (copy_paste.CopyPasteConfig(), copy_paste.PAPER)
)


def _rates(arms: Sequence[Arm], shipped: Mapping[str, float]) -> Mapping[str, float]:
    return {arm.name: shipped[arm.guide] for arm in arms}


def _config(arms: Sequence[Arm], of: copy_paste.CopyPasteConfig) -> copy_paste.CopyPasteConfig:
    """As ``copy-paste``, with its learning rates where no sweep picks them."""
    names = tuple(arm.name for arm in arms)
    return replace(of, arms=names, seeds=(1, 2, 3), lr=_rates(arms, of.lr))


class _Ablations(copy_paste.CopyPasteSetting):
    """What both scales share."""

    def pairs(
        self, target: nn.Module, guide: nn.Module, config: copy_paste.CopyPasteConfig, arm: Arm
    ) -> Any:
        if arm.name.startswith(_ONE_GUIDE_LAYER):
            pairs = layer_pairs(target, guide, "even")
            return [(path, pairs[-1][1]) for path, _ in pairs]
        return super().pairs(target, guide, config, arm)

    def _check_varied(self, config: copy_paste.CopyPasteConfig) -> None:
        super()._check_varied(config)
        if "pairs" in config.vary and _ONE_GUIDE_LAYER in config.arms:
            raise UserError(
                f"--vary: arm {_ONE_GUIDE_LAYER} sets pairs itself; choose others with --arms"
            )

    def is_compared(self, arm: Arm) -> bool:
        return arm.name.partition(",")[0] in ("none", "trained", "untrained")


class Small(_Ablations):
    """Lengths 8 to 12."""

    title = "Ablations of guidance: copy-paste with short sequences"
    arms = _SMALL
    config = _config(_SMALL, copy_paste.CopyPasteConfig())
    quick: ClassVar = {
        **copy_paste.Small.quick,
        "epochs": 2,
        "arms": ("none", "untrained", "untrained-rsa", _ONE_GUIDE_LAYER),
    }
    protocol: ClassVar = {**copy_paste.Small.protocol, "seeds": (1, 2, 3)}


class Paper(_Ablations):
    """Lengths 20 to 40, four layers."""

    title = "Ablations of guidance: copy-paste at the paper's lengths"
    arms = _PAPER
    config = _config(_PAPER, copy_paste.PAPER)
    protocol: ClassVar = {**copy_paste.Paper.protocol, "seeds": (1, 2, 3)}


EXPERIMENT = Experiment(
    name="copy-paste-ablations",
    extends=copy_paste.EXPERIMENT,
    summary="copy-paste with one factor of guidance changed at a time",
    description="""\
Train the RNN of copy-paste with one factor of guidance changed at a time: the distance, the paired
layers, one guide layer for all layers of the target.""",
    scales={"default": Small(), "paper": Paper()},
    examples=(
        "pyguide train copy-paste-ablations --protocol    sweep every arm's rate, then 3 seeds",
        "pyguide train copy-paste-ablations --arms none untrained untrained-last-1",
        "pyguide train copy-paste-ablations --scale paper --device cuda",
    ),
)
