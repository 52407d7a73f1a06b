"""What the results of a run depend on, and the check of a user's changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from pyguide.distances import get_distance
from pyguide.errors import UserError, first_line
from pyguide.guidance.pairing import make_pairing

__all__ = ["LEARNING_RATES", "Config", "option"]

#: The five learning rates of a sweep.
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

#: Fields that choose runs from the grid; one run does not depend on them.
GRID_FIELDS = ("arms", "seeds", "lr", "lrs", "extend", "sweep", "sweep_seed", "vary")

C = TypeVar("C", bound="Config")


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    is_path: bool = False,
    choices: Sequence[str] = (),
    target_only: bool = False,
) -> Any:
    """A field of a :class:`Config` that is also a command-line option.

    Parameters
    ----------
    default : bool, int, float, str or None
        Its type is the option's; None stands for an optional string.
    help : str
        Text of ``--help``, without the default.
    least : float, optional
        The smallest value allowed.
    is_path : bool
        Whether it is a path; it is made absolute, so that a run can go on from anywhere.
    choices : sequence of str
        The values allowed; any if there are none.
    target_only : bool
        Whether the guide does not depend on it: arms that differ in it share trained guides.
    """
    metadata = {
        "help": help,
        "least": least,
        "is_path": is_path,
        "choices": tuple(choices),
        "target_only": target_only,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Everything that the results of a run depend on; an experiment adds fields.

    Attributes
    ----------
    arms : tuple of str
        The arms to run.
    seeds : tuple of int
        Seeds of the final runs; may be empty where there is a sweep.
    lr : dict of str to float
        Learning rate by arm, where no sweep picks it.
    sweep, lrs, sweep_seed
        Whether to pick each arm's rate from `lrs` by validation loss, with `sweep_seed`.
    extend : int
        How many rates beyond `lrs` an arm may be swept with, while its best is the highest or
        lowest that it was swept with.
    vary : dict of str to tuple
        Values of other fields; every arm is run with each.
    clip : float or None
        Norm to which the target's gradient is clipped; None or 0: it is not.
    quick : bool
        Whether this is a smoke run, whose numbers mean nothing.
    """

    arms: tuple[str, ...] = ("none", "trained", "untrained")
    seeds: tuple[int, ...] = (1, 2)
    lr: Mapping[str, float] = field(default_factory=dict)
    lrs: tuple[float, ...] = LEARNING_RATES
    extend: int = 0
    sweep: bool = False
    sweep_seed: int = 0
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    epochs: int = option(60, "epochs of the target", least=1, target_only=True)
    batch_size: int = option(256, "samples of a batch", least=2, target_only=True)
    weight: float = option(1.0, "factor of the guidance term", target_only=True)
    distance: str = option("cka", "distance between layers, by name", target_only=True)
    pairs: str = option(
        "even",
        "rule that pairs layers: even, first:K or last:K, and where no layer is 1-D paper or "
        "paper-sum",
        target_only=True,
    )
    release_at: int = option(
        0,
        "optimizer steps after which the target trains alone; 0: never",
        least=0,
        target_only=True,
    )
    guide_mode: str = option(
        "eval",
        "statistics of the guide's BatchNorm layers",
        choices=("eval", "batch_stats", "calibrated"),
        target_only=True,
    )
    guide_input: str = option(
        "data",
        "what the guide sees: what the target sees, or Gaussian noise",
        choices=("data", "noise"),
        target_only=True,
    )
    clip: float | None = field(default=None, metadata={"target_only": True})
    guide_epochs: int = option(20, "epochs of the trained guides", least=1)
    guide_lr: float = option(1e-2, "learning rate of the trained guides")
    guide_batch_size: int = option(256, "samples of a batch of the trained guides", least=2)
    guide_weights: str | None = option(
        None, "state dict of a guide trained elsewhere, for all seeds", is_path=True
    )
    device: str = option("cpu", "torch device")
    threads: int = option(1, "threads of each process", least=1)
    quick: bool = False

    def __post_init__(self) -> None:
        if self.seeds or not self.sweep:
            _check_list("--seeds", self.seeds)
        for name, seeds in [("--seeds", self.seeds), ("--sweep-seed", (self.sweep_seed,))]:
            for seed in seeds:
                if not 0 <= seed < 2**31:
                    raise UserError(f"{name}: expected numbers from 0 to 2**31 - 1, got {seed}")
        if self.sweep and self.sweep_seed in self.seeds:
            raise UserError(
                f"--sweep-seed: {self.sweep_seed} is among the final seeds, which must be fresh"
            )
        _check_list("--arms", self.arms)
        _check_list("--lrs", self.lrs)
        if self.extend < 0:
            raise UserError(f"--extend: expected at least 0, got {self.extend}")
        rates_of = [
            ("--lr", self.lr.values()),
            ("--lrs", self.lrs),
            ("--guide-lr", [self.guide_lr]),
        ]
        for name, rates in rates_of:
            for lr in rates:
                if not (math.isfinite(lr) and lr > 0):
                    raise UserError(f"{name}: expected a learning rate above 0, got {lr:g}")
        for entry in fields(self):
            value, least = getattr(self, entry.name), entry.metadata.get("least")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{flag(entry.name)}: expected a finite number, got {value}")
            if least is not None and value < least:
                raise UserError(f"{flag(entry.name)}: expected at least {least}, got {value}")
            choices = entry.metadata.get("choices")
            if choices and value not in choices:
                raise UserError(
                    f"{flag(entry.name)}: expected {' or '.join(choices)}, got {value!r}"
                )
        _check_as("--distance", lambda: get_distance(self.distance))
        _check_as("--pairs", lambda: make_pairing(self.pairs, {}, {}))

    def changed(self: C, options: Mapping[str, Any]) -> C:
        """A copy with command-line options in place of the shipped values.

        Raises
        ------
        UserError
            If a value is out of its range; the message names the option.
        """
        options = dict(options)
        if "sweep" in options or self.sweep:
            if "lr" in options:
                raise UserError("--lr: a sweep picks the learning rates; give --lrs")
        elif not options.keys().isdisjoint(("lrs", "extend", "sweep_seed")):
            raise UserError("--lrs, --extend and --sweep-seed belong to --sweep")
        if "lr" in options:
            options["lr"] = {
                **self.lr,
                **_learning_rates(options["lr"], options.get("arms", self.arms), self.lr),
            }
        if "vary" in options:
            options["vary"] = dict(self._varied(text) for text in options["vary"])
        for name in ("arms", "seeds", "lrs"):
            if name in options:
                options[name] = tuple(options[name])
        return replace(self, **options)

    def _varied(self, text: str) -> tuple[str, tuple[Any, ...]]:
        """Parse ``depth=20,32``."""
        name, _, values = text.partition("=")
        name = name.replace("-", "_")
        allowed = [
            entry.name
            for entry in option_fields(self)
            if entry.name not in ("device", "threads") and entry.default is not None
        ]
        if name not in allowed or not values:
            names = ", ".join(allowed)
            raise UserError(f"--vary: expected NAME=VALUE,VALUE..., NAME of {names}; got {text!r}")
        kind = type(getattr(self, name))
        try:
            parsed = tuple(kind(value) for value in values.split(","))
        except ValueError:
            raise UserError(f"--vary: {name} takes {kind.__name__} values, got {text!r}") from None
        _check_list("--vary", parsed)
        for value in parsed:
            replace(self, **{name: value})  # Checks its range.
        return name, parsed

    def to_json(self) -> dict[str, Any]:
        """As JSON types; :meth:`from_json` is its inverse."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls: type[C], value: Mapping[str, Any]) -> C:
        """Read what :meth:`to_json` gave."""
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        plain["vary"] = {name: tuple(values) for name, values in value["vary"].items()}
        return cls(**plain)


def option_fields(config: Config) -> list[Any]:
    """The fields that are command-line options."""
    return [entry for entry in fields(config) if "help" in entry.metadata]


def flag(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


def target_only_fields(config: Config) -> set[str]:
    """The fields on which a guide does not depend."""
    return {entry.name for entry in fields(config) if entry.metadata.get("target_only")}


def _check_as(name: str, make: Callable[[], Any]) -> None:
    try:
        make()
    except ValueError as error:
        raise UserError(f"{name}: {first_line(error)}") from None


def _check_list(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise UserError(f"{name}: expected at least one value")
    if len(set(values)) < len(values):
        raise UserError(f"{name}: a value is given twice: {' '.join(map(str, values))}")


def _learning_rates(
    values: Sequence[str], arms: Sequence[str], known: Mapping[str, float]
) -> dict[str, float]:
    """Parse ``["1e-3"]``, for all arms, or ``["none=1e-3", "trained=3e-3"]``."""
    rates: dict[str, float] = {}
    for value in values:
        arm, equals, number = value.rpartition("=")
        try:
            lr = float(number)
        except ValueError:
            raise UserError(
                f"--lr: expected a number for all arms or ARM=NUMBER, got {value!r}"
            ) from None
        if not equals and len(values) > 1:
            raise UserError(f"--lr: with several values each must be ARM=NUMBER, got {value!r}")
        if not equals:
            return dict.fromkeys([*known, *arms], lr)
        if arm not in known:
            raise UserError(f"--lr: unknown arm {arm!r}; the arms are {', '.join(known)}")
        if arm not in arms:
            raise UserError(f"--lr: arm {arm} is not run; the arms are {', '.join(arms)}")
        if arm in rates:
            raise UserError(f"--lr: arm {arm} is given twice: {' '.join(values)}")
        rates[arm] = lr
    return rates
