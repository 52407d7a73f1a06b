"""Noise in place of the guide's inputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["gaussian_noise"]


def gaussian_noise(seed: int = 0) -> Callable[[Any], Any]:
    """A `guide_transform` that replaces inputs by standard normal noise of their shape.

    The noise comes from a generator of its own, is new in every call, and goes on where
    it was when a :class:`pyguide.Guidance` that uses it loads its state.

    Parameters
    ----------
    seed : int
        Seed of the noise. Give each process of a distributed run another one.

    Returns
    -------
    callable
        From an input (a tensor, or a tuple or dict of arguments) to noise of the same
        shape, dtype and device. Of several arguments, those that are not floating-point
        tensors (masks, lengths) stay. It raises TypeError if there is none that is.

    Examples
    --------
    >>> import torch
    >>> from pyguide.guidance import gaussian_noise
    >>> x = torch.full((1000, 8), 7.0)
    >>> noise = gaussian_noise(seed=0)(x)
    >>> noise.shape, bool(noise.mean().abs() < 0.1), bool((noise.std() - 1).abs() < 0.1)
    (torch.Size([1000, 8]), True, True)
    """
    return _GaussianNoise(seed)


class _GaussianNoise:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calls = 0

    def __repr__(self) -> str:
        return f"gaussian_noise(seed={self.seed})"

    def __call__(self, inputs: Any) -> Any:
        arguments = inputs.values() if isinstance(inputs, dict) else inputs
        arguments = [inputs] if isinstance(inputs, Tensor) else list(arguments)
        # Seeded anew in each call, so that the number of calls is all the state there is.
        # torch's CPU generator takes 32 bits of a seed: draw them from both numbers.
        bits = random.Random(f"{self.seed} {self.calls}").getrandbits(32)
        generators = {
            device: torch.Generator(device).manual_seed(bits)
            for device in {argument.device for argument in arguments if _is_floating(argument)}
        }
        if not generators:
            raise TypeError(
                "gaussian_noise needs a floating-point input to replace, such as images; "
                "give other inputs to Guidance.loss as guide_inputs"
            )
        self.calls += 1
        noise = [_noise_like(a, generators) if _is_floating(a) else a for a in arguments]
        if isinstance(inputs, dict):
            return dict(zip(inputs, noise, strict=True))
        return noise[0] if isinstance(inputs, Tensor) else tuple(noise)

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = int(state["calls"])


def _is_floating(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def _noise_like(x: Tensor, generators: dict[torch.device, torch.Generator]) -> Tensor:
    generator = generators[x.device]
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
