"""state_dict and load_state_dict: a resumed run is the uninterrupted one."""

from __future__ import annotations

import pytest
import torch
from guided_training import Calls, Net, batch, step, train

from pyguide.guidance import Guidance


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_across_the_release_step(stop):
    """Stopped before, at and after release, a run goes on as if it had not stopped."""
    straight, *_ = train(release_at=2, steps=5)
    target, _, guidance, _ = train(release_at=2, steps=stop)
    state, random = guidance.state_dict(), torch.get_rng_state()
    assert state["pairs"] == [("blocks.0.0", "blocks.0.0"), ("blocks.1.0", "blocks.1.0")]

    resumed, guide = Net(2, 12, seed=9), Net(2, 9, seed=1)
    resumed.load_state_dict(target.state_dict())
    calls = Calls(guide)
    continued = Guidance(resumed, guide, release_at=2)
    continued.load_state_dict(state)
    assert (continued.steps, continued.released) == (stop, stop >= 2)
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.1)
    torch.set_rng_state(random)
    x, y = batch()
    for _ in range(5 - stop):
        step(resumed, continued, x, y, optimizer)
    assert calls.count == max(0, 2 - stop)
    for p, q in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(p, q)


def test_loading_an_earlier_state_takes_guidance_up_again():
    target, _, guidance, calls = train(release_at=3, steps=1)
    state = guidance.state_dict()
    guidance.release()
    guidance.load_state_dict(state)
    step(target, guidance, *batch())
    assert calls.count == 2
    assert guidance.steps == 2


def test_a_state_that_does_not_fit_changes_nothing():
    x, y = batch()
    target, guide = Net(2, 12, seed=0), Net(2, 9, seed=1)
    guidance = Guidance(target, guide)
    with guidance.capture():
        target(x)
    bad = {"step": 4, "released": False, "pairs": [("blocks.0.0", "nowhere")]}
    with pytest.raises(ValueError, match="the guide has no layer 'nowhere'"):
        guidance.load_state_dict(bad)
    with pytest.raises(KeyError, match="released"):
        guidance.load_state_dict({"step": 4, "pairs": [("head", "head")]})
    assert guidance.loss(x).requires_grad
    assert guidance.pairs == [("blocks.0.0", "blocks.0.0"), ("blocks.1.0", "blocks.1.0")]
    assert guidance.steps == 0
    step(target, guidance, x, y)
    assert guidance.steps == 1


def test_state_of_other_pairs_raises():
    *_, guidance, _ = train(release_at=None, steps=1)
    other = Guidance(Net(2, 12, seed=0), Net(2, 9, seed=1), pairs=[("head", "head")])
    with pytest.raises(ValueError, match="the state has the pairs"):
        other.load_state_dict(guidance.state_dict())
