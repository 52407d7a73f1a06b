"""Every barrier and every wait of the CUDA kernels is needed: without it, the emulator's random
orders give a wrong result or a fault. With all of them the order changes no bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pyguide.ops import cpu, cuda
from pyguide.ops.contract import PRECISIONS

KERNELS = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
SITE = re.compile(r'(?:block_barrier|wait_for_copies<[^>]*>)\(\s*"([^"]+)"')
SITES = sorted(site for file in KERNELS.glob("*.*") for site in SITE.findall(file.read_text()))
CALL = re.compile(r"(?:block_barrier|wait_for_copies<[^>]*>)\(")
SEEDS = range(5)
MEDIUM = PRECISIONS.index("medium")

pytestmark = pytest.mark.usefixtures("emulated")


def gram_of_many_slabs(ops: ModuleType) -> list[Tensor]:
    # Long enough that a block's pipeline goes round several times.
    return [ops.gram([torch.randn(40, 8192).bfloat16()], center=True)]


def gram_off_the_diagonal(ops: ModuleType) -> list[Tensor]:
    return [ops.gram([torch.randn(70, 300, dtype=torch.float64)], center=True)]


def gram_of_many_samples(ops: ModuleType) -> list[Tensor]:
    # More squares than blocks of gram_finish: some of them centre two.
    return [ops.gram([torch.randn(512, 8)], center=True, precision=MEDIUM)]


def gradient_of_many_pairs(ops: ModuleType) -> list[Tensor]:
    # More pairs of one layer than the block that builds its coefficients takes at once, and more
    # samples than the stages of apply hold.
    layers = [torch.randn(130, 8), torch.randn(130, 5)]
    left, right = [0] * 300, [1] * 300
    forward = ops.alignment(layers, left, right, debiased=True, precision=MEDIUM)
    grad = torch.randn(300, dtype=torch.float64)
    gradients = ops.alignment_backward(grad, forward, layers, left, right, [0, 1], precision=MEDIUM)
    return [forward.values, *gradients]


Work = Callable[[ModuleType], list[Tensor]]
WORKLOAD: list[Work] = [
    gram_of_many_slabs,
    gram_off_the_diagonal,
    gram_of_many_samples,
    gradient_of_many_pairs,
]
EVERY_WORK = pytest.mark.parametrize("work", WORKLOAD, ids=lambda work: work.__name__)


def results(work: Work, ops: ModuleType = cuda) -> list[Tensor]:
    torch.manual_seed(1)
    return work(ops)


def sites_of(work: Work, emulator) -> set[str]:
    emulator.sites()
    results(work)
    return emulator.sites()


def differ(a: list[Tensor], b: list[Tensor]) -> bool:
    return any(x.numpy().tobytes() != y.numpy().tobytes() for x, y in zip(a, b, strict=True))


def shows(work: Work, emulator, site: str) -> bool:
    """Whether leaving out the site gives a fault or other bits in one of a few orders."""
    expected = results(work)
    for seed in SEEDS:
        emulator.seed(seed)
        try:
            with emulator.without(site):
                if differ(results(work), expected):
                    return True
        except RuntimeError as fault:
            assert "block" in str(fault) and "thread" in str(fault)
            return True
    return False


def test_every_barrier_and_wait_has_its_own_name() -> None:
    calls = [call for file in KERNELS.glob("*.*") for call in CALL.findall(file.read_text())]
    assert len(calls) == len(SITES) == len(set(SITES)) > 0


def test_the_workload_reaches_every_site(emulator) -> None:
    assert set().union(*(sites_of(work, emulator) for work in WORKLOAD)) == set(SITES)


@pytest.mark.parametrize("site", SITES)
def test_a_deleted_site_shows(emulator, site) -> None:
    reaching = [work for work in WORKLOAD if site in sites_of(work, emulator)]
    assert any(shows(work, emulator, site) for work in reaching)


@EVERY_WORK
def test_the_workload_is_right(relative_error, work) -> None:
    for result, expected in zip(results(work), results(work, cpu), strict=True):
        assert relative_error(result, expected) < 2**-6  # operands have 8 bits


@EVERY_WORK
def test_the_order_of_threads_changes_no_bit(emulator, work) -> None:
    emulator.seed(0)
    expected = results(work)
    for seed in SEEDS[1:]:
        emulator.seed(seed)
        assert not differ(results(work), expected)
