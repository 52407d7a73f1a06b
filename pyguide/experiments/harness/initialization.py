"""A target aligned with a guide before its training: guidance as initialization."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyguide.data.splits import Share, Split
from pyguide.experiments.harness.shares import Processes
from pyguide.guidance import Guidance

__all__ = ["align"]

# Offset from the seed of a run, so that the training's batches are others.
_SEED_OFFSET = 2_000_003


def align(
    guidance: Guidance,
    split: Split,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    noise: bool,
) -> dict[str, float]:
    """Train the target on the guidance term alone, without labels; return the loss at both ends.

    Parameters
    ----------
    guidance : Guidance
        Not released.
    split : Split
        The training data.
    steps : int
        Steps of Adam with learning rate `lr`; at least 1.
    batch_size, seed : int
        Of the batches.
    noise : bool
        Whether both networks see Gaussian noise, of mean 0 and variance 1, in place of the data.

    Returns
    -------
    dict
        ``steps``, ``first_loss``, ``last_loss`` and ``seconds``.
    """
    start = time.perf_counter()
    processes = Processes()
    target = guidance.target.train()
    trained = processes.wrapped(target)
    optimizer = torch.optim.Adam(target.parameters(), lr=lr, fused=True)
    generator = torch.Generator().manual_seed(seed + _SEED_OFFSET)
    losses: list[Tensor] = []
    batches = _endless(split, batch_size, generator, processes.share)
    for _ in range(steps):
        x = next(batches)
        if noise:
            whole = torch.randn((batch_size, *x.shape[1:]), generator=generator, dtype=x.dtype)
            x = whole[processes.share.of(batch_size)].to(x.device)
        with guidance.capture():
            output = trained(x)
        loss = guidance.loss(x)
        if processes.size > 1:
            # DistributedDataParallel waits for the gradient of every parameter.
            loss = loss + 0.0 * output.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guidance.step()
        losses.append(loss.detach())
    ends = {"first_loss": losses[0].item(), "last_loss": losses[-1].item()}
    return {"steps": steps, **ends, "seconds": time.perf_counter() - start}


def _endless(
    split: Split, batch_size: int, generator: torch.Generator, share: Share
) -> Iterator[Any]:
    while True:
        for batch in split.shuffled(batch_size, generator, share):
            yield batch.x
