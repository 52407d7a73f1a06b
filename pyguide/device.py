"""The device that a command is asked to use."""

from __future__ import annotations

import torch

from pyguide.errors import UserError, first_line

__all__ = ["check_device"]


def check_device(device: str) -> None:
    """Raise UserError unless torch can compute on the device."""
    try:
        torch.ones(1, device=device).sum().item()
    except Exception as error:
        # torch raises RuntimeError, AssertionError and NotImplementedError here.
        raise UserError(f"--device {device}: torch cannot use it: {first_line(error)}") from error
