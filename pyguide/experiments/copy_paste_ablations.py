"""What of guidance matters on sequences: ``copy-paste`` with one factor changed at a time.

The distance, which layers are paired, and one guide layer for all layers of the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

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


def _layer_arms() -> list[Arm]:
    # The paper's networks have four layers, these have three.
    paper = {"first:1": 27.59, "first:2": 28.15, "last:1": 38.19, "last:2": 41.55}
    subsets = [
        Arm(
            f"untrained-{rule.replace(':', '-')}",
            f"untrained, {rule.replace(':', ' ')} of the pairs",
            "untrained",
            changes={"pairs": rule},
            paper=(accuracy, None),
        )
        for rule, accuracy in paper.items()
    ]
    # Which guide layer is the paper's is not said.
    one = Arm(
        _ONE_GUIDE_LAYER,
        "untrained, the last guide layer for all",
        "untrained",
        paper=(36.11, None),
    )
    return [*subsets, one]


_ARMS = (*copy_paste.Small.arms, *_distance_arms(), *_layer_arms())


def _rates() -> Mapping[str, float]:
    shipped = copy_paste.SmallConfig().lr
    return {arm.name: shipped[arm.guide] for arm in _ARMS}


@dataclass(frozen=True)
class SmallConfig(copy_paste.SmallConfig):
    """As ``copy-paste``, with its learning rates where no sweep picks them."""

    arms: tuple[str, ...] = tuple(arm.name for arm in _ARMS)
    seeds: tuple[int, ...] = (1, 2, 3)
    lr: Mapping[str, float] = field(default_factory=_rates)  # type: ignore[assignment]


class Small(copy_paste.Small):
    """Lengths 8 to 12."""

    title = "Ablations of guidance: copy-paste with short sequences"
    arms = _ARMS
    config = SmallConfig()
    quick: ClassVar = {
        **copy_paste.Small.quick,
        "epochs": 2,
        "arms": ("none", "untrained", "untrained-rsa", _ONE_GUIDE_LAYER),
    }
    protocol: ClassVar = {**copy_paste.Small.protocol, "seeds": (1, 2, 3)}

    def pairs(
        self, target: nn.Module, guide: nn.Module, config: copy_paste.SmallConfig, arm: Arm
    ) -> Any:
        if arm.name.startswith(_ONE_GUIDE_LAYER):
            pairs = layer_pairs(target, guide, "even")
            return [(path, pairs[-1][1]) for path, _ in pairs]
        return super().pairs(target, guide, config, arm)

    def is_compared(self, arm: Arm) -> bool:
        return arm.name.partition(",")[0] in ("none", "trained", "untrained")


EXPERIMENT = Experiment(
    name="copy-paste-ablations",
    summary="copy-paste with one factor of guidance changed at a time",
    description="""\
Train the RNN of copy-paste with one factor of guidance changed at a time: the distance, the paired
layers, one guide layer for all layers of the target.""",
    scales={"default": Small()},
    examples=(
        "pyguide train copy-paste-ablations --protocol    sweep every arm's rate, then 3 seeds",
        "pyguide train copy-paste-ablations --arms none untrained untrained-last-1",
    ),
)
