"""A guide cache under torch.distributed: filled by one process, read by all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyguide.guidance import Guidance, GuideCache

N = 40
PAIRS = [("0", "0"), ("0", "2")]
IDS = torch.randperm(N, generator=torch.Generator().manual_seed(1))


def _networks() -> tuple[torch.Tensor, nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    data = torch.randn(N, 6).double()
    target = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    guide = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    return data, target, guide


def _fill(folder: str) -> None:
    data, target, guide = _networks()
    cache = GuideCache(folder, samples=N)
    guidance = Guidance(target, guide, PAIRS, guide_cache=cache)
    cache.fill(guidance, [(ids, data[ids]) for ids in torch.arange(N).split(16)])
    assert cache.complete


def _distances(rank: int, folder: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the whole batch, and the gradient of this process."""
    data, target, guide = _networks()
    cache = None if folder is None else GuideCache(folder, samples=N)
    calls = []
    guide.register_forward_pre_hook(lambda *_: calls.append(1))
    guidance = Guidance(target, guide, PAIRS, guide_cache=cache)
    ids = IDS.split([25, 15])[rank]
    with guidance.capture():
        target(data[ids])
    guidance.loss(data[ids], sample_ids=ids).backward()
    assert len(calls) == (folder is None)
    assert guidance.last is not None and target[0].weight.grad is not None
    return guidance.last, target[0].weight.grad


def _with_grams(rank: int, process_group: str | None) -> str:
    """The error, or nothing."""
    _, target, guide = _networks()
    cache = GuideCache(samples=N, keep="grams")
    try:
        Guidance(target, guide, PAIRS, guide_cache=cache, process_group=process_group)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("world", [2], indirect=True)
def test_all_processes_read_one_folder(world, tmp_path):
    _fill(str(tmp_path))
    expected = world.run(_distances, None)
    for own, (distances, gradient) in zip(
        world.run(_distances, str(tmp_path)), expected, strict=True
    ):
        torch.testing.assert_close(own[0], distances, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(own[1], gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("world", [2], indirect=True)
def test_gram_matrices_are_for_one_process_alone(world):
    assert world.run(_with_grams, "local") == ["", ""]
    for error in world.run(_with_grams, None):
        assert "compared as one, and each has the Gram matrices of" in error
