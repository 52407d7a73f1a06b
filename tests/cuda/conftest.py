"""Where the tests of the CUDA backend run."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Runs the test on a GPU, and on the CPU with the emulated kernels."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return torch.device("cpu")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # torch's default is True
    return torch.device("cuda", 0)


@pytest.fixture
def small(device) -> bool:
    """Whether the kernels are emulated: small shapes only."""
    return device.type == "cpu"
