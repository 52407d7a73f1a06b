"""state_dict and load_state_dict: a resumed run is the uninterrupted one."""

from __future__ import annotations

import io
import json

import pytest
import torch
from guided_training import Calls, Net, batch, step, train

from pyguide.guidance import Guidance, gaussian_noise, schedules

STEPS = 6

RUNS = {
    "release": lambda: {"release_at": 2},
    "align": lambda: {"align_only": 2},
    "align, release": lambda: {"align_only": 2, "release_at": 4},
    "linear": lambda: {"weight": schedules.linear(2.0, 0.0, steps=4)},
    "cosine": lambda: {"weight": schedules.cosine(0.1, 3.0, steps=4), "release_at": 5},
    "callable": lambda: {"weight": lambda step: float(step % 2)},
    "noise": lambda: {"guide_transform": gaussian_noise(seed=3)},
    "batch_stats": lambda: {"guide_mode": "batch_stats"},
    "calibrated": lambda: {"guide_mode": "calibrated", "calibration_batches": 3},
}


class _Run:
    """A guided run with Adam, weight decay, BatchNorm and Dropout."""

    def __init__(self, options: dict):
        self.target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
        self.calls = Calls(guide)
        self.guidance = Guidance(self.target, guide, **options)
        self.optimizer = torch.optim.AdamW(self.target.parameters(), lr=0.01, weight_decay=0.1)
        torch.manual_seed(5)

    def train(self, start: int, stop: int) -> None:
        for seed in range(start, stop):
            step(self.target, self.guidance, *batch(seed=seed), self.optimizer)

    def checkpoint(self) -> io.BytesIO:
        file = io.BytesIO()
        parts = (self.target, self.optimizer, self.guidance)
        torch.save((torch.get_rng_state(), [part.state_dict() for part in parts]), file)
        file.seek(0)
        return file

    def resume(self, file: io.BytesIO) -> None:
        random, states = torch.load(file, weights_only=True)
        parts = (self.target, self.optimizer, self.guidance)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(random)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_same_to_the_bit(name, stop):
    """Stopped before, at and after the end of every phase."""
    straight, first, second = (_Run(RUNS[name]()) for _ in range(3))
    torch.manual_seed(5)
    straight.train(0, STEPS)
    torch.manual_seed(5)
    first.train(0, stop)
    second.resume(first.checkpoint())
    second.train(stop, STEPS)

    assert first.calls.count + second.calls.count == straight.calls.count
    assert second.guidance.steps == STEPS
    assert second.guidance.released == straight.guidance.released
    for value, expected in zip(
        second.target.state_dict().values(), straight.target.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("name", RUNS)
def test_the_state_is_small(name):
    run = _Run(RUNS[name]())
    run.train(0, 4)
    state = run.guidance.state_dict()
    statistics = state["guide"].pop("statistics", {})
    assert len(json.dumps(state)) < 250
    assert state["pairs"] == [("blocks.0.0", "blocks.0.0"), ("blocks.1.0", "blocks.1.0")]
    assert list(statistics) == (["blocks.0.1", "blocks.1.1"] if name == "calibrated" else [])
    # A mean and a variance for each of the 9 channels, and a count.
    assert all(sum(t.numel() for t in s.values()) == 19 for s in statistics.values())


def test_a_state_is_a_snapshot():
    run = _Run(RUNS["calibrated"]())
    run.train(0, 1)
    state = run.guidance.state_dict()
    before = state["guide"]["statistics"]["blocks.0.1"]["running_mean"].clone()
    run.train(1, 3)
    assert torch.equal(state["guide"]["statistics"]["blocks.0.1"]["running_mean"], before)


def test_loading_an_earlier_state_takes_guidance_up_again():
    target, _, guidance, calls = train(release_at=3, steps=1)
    state = guidance.state_dict()
    guidance.release()
    guidance.load_state_dict(state)
    step(target, guidance, *batch())
    assert calls.count == 2
    assert guidance.steps == 2


def _weight_up_to_4(step: int) -> float:
    return 1.0 if step <= 4 else float("nan")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pairs": [("blocks.0.0", "nowhere")]}, ValueError, "the guide has no layer 'nowhere'"),
        ({"released": ...}, KeyError, "released"),
        ({"rule": "last:1"}, ValueError, "the state is of pairs='last:1', this .* given 'even'"),
        ({"rule": None}, ValueError, "the state is of pairs=a list, this .* given 'even'"),
        ({"step": 5}, ValueError, "the weight at step 5 must be a finite number"),
        ({"guide": {"mode": "eval"}}, ValueError, "the state is of guide_mode='eval', this .*'cal"),
        (
            {"guide": {"mode": "calibrated", "statistics": {"x": {}}, "calibrated": 1}},
            ValueError,
            "BatchNorm statistics of 'x'",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, error, message):
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide, guide_mode="calibrated", weight=_weight_up_to_4)
    state = guidance.state_dict() | {"step": 4, "pairs": [("head", "head")]} | change
    state = {key: value for key, value in state.items() if value is not ...}
    with guidance.capture():
        target(x)
    with pytest.raises(error, match=message):
        guidance.load_state_dict(state)
    assert guidance.loss(x).requires_grad
    assert guidance.pairs == [("blocks.0.0", "blocks.0.0"), ("blocks.1.0", "blocks.1.0")]
    assert guidance.steps == 0
    step(target, guidance, x, y)
    assert guidance.steps == 1


def test_statistics_of_another_width_raise():
    states = []
    for width in (9, 8):
        target, guide = Net(2, 12, seed=0), Net(2, width, seed=1)
        guidance = Guidance(target, guide, guide_mode="calibrated")
        step(target, guidance, *batch())
        states.append(guidance.state_dict())
    with pytest.raises(ValueError, match=r"statistics of 'blocks\.0\.1' that do not fit"):
        guidance.load_state_dict(states[0])


def test_state_of_other_pairs_raises():
    guidance, other = (
        Guidance(Net(2, 12, seed=0), Net(2, 9, seed=1), pairs=[(path, "head")])
        for path in ("blocks.0.0", "head")
    )
    with pytest.raises(ValueError, match="the state has the pairs"):
        other.load_state_dict(guidance.state_dict())
