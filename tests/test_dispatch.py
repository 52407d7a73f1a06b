"""Which tensors go to native kernels, and why others do not."""

from __future__ import annotations

import warnings

import pytest
import torch

import pyguide
from pyguide import cuda_library
from pyguide.ops import cpu, cuda, dispatch

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _warns_again() -> None:
    dispatch._warn_no_backend.cache_clear()


def _library(monkeypatch, missing: str | None, capability: int) -> None:
    monkeypatch.setattr(cuda_library, "why_missing", lambda: missing)
    monkeypatch.setattr(cuda_library, "capability", lambda index: capability)


@pytest.mark.parametrize("capability", [80, 86, 90, 120])
def test_new_gpus_have_kernels(monkeypatch, capability) -> None:
    _library(monkeypatch, None, capability)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.has_native_backend(GPU)
    assert dispatch.backend_of(GPU) is cuda
    assert dispatch.backend_of(torch.device("cpu")) is cpu


def test_old_gpus_use_the_reference(monkeypatch) -> None:
    _library(monkeypatch, None, 75)
    with pytest.warns(UserWarning, match=r"'cuda' tensors \(.*8\.0, this GPU has 7\.5\)"):
        assert not dispatch.has_native_backend(GPU)


def test_a_missing_library_says_why(monkeypatch) -> None:
    _library(monkeypatch, "the driver is too old", 90)
    with pytest.warns(UserWarning, match=r"\(the driver is too old\); using the slower"):
        assert not dispatch.has_native_backend(GPU)


def test_rocm_uses_the_reference(monkeypatch) -> None:
    _library(monkeypatch, None, 90)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.warns(UserWarning, match="only CPUs and NVIDIA GPUs"):
        assert not dispatch.has_native_backend(GPU)


def test_other_devices_use_the_reference_and_warn_once() -> None:
    # The meta device stands for any device without a native backend.
    x = torch.empty(8, 3, device="meta")
    with pytest.warns(UserWarning, match="no native backend for these 'meta'"):
        assert pyguide.cka(x, x).device.type == "meta"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pyguide.cka(x, x)
        assert pyguide.gram([x]).shape == (1, 8, 8)


def test_other_devices_compile(monkeypatch) -> None:
    x = torch.empty(8, 3, device="meta")
    compiled = torch.compile(pyguide.cka, fullgraph=True, backend="eager")
    assert compiled(x, x).device.type == "meta"
    torch._dynamo.reset()
