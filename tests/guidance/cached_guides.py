"""Networks with a guide cache, and their losses, that tests share."""

from __future__ import annotations

import torch
from networks import mlp

from pyguide.guidance import Guidance, GuideCache

SAMPLES = 30
PAIRS = [("0", "0"), ("2", "2"), ("2", "0")]
FIRST, SECOND = torch.arange(18), torch.arange(18, SAMPLES)
KEPT = ["activations", "grams"]
ANY = torch.tensor([25, 3, 17, 18, 0, 29, 3])  # a sample twice, from both batches


def target_network():
    return mlp(6, 9, 8, 3, seed=1).double()


def guide_network(seed=2):
    return mlp(6, 11, 5, 3, seed=seed).double()


def guided(cache=None, guide=None, pairs=PAIRS, **options):
    guide = guide_network() if guide is None else guide
    return Guidance(target_network(), guide, pairs, guide_cache=cache, **options)


def loss(guidance, data, ids, **inputs):
    """The loss and its gradient, as one vector."""
    with guidance.capture():
        guidance.target(data[ids])
    value = guidance.loss(data[ids], sample_ids=ids, **inputs)
    parameters = list(guidance.target.parameters())
    gradient = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([value.detach()[None], *(g.flatten() for g in gradient if g is not None)])


def loss_of(guidance, data, ids):
    """The distances."""
    with guidance.capture():
        guidance.target(data[ids])
    guidance.loss(data[ids], sample_ids=ids)
    return guidance.last


def filled(data, *batches, **options):
    cache = GuideCache(samples=len(data), **options)
    guidance = guided(cache)
    for ids in batches or (FIRST, SECOND):
        loss(guidance, data, ids)
    return cache, guidance


def doubled(x):
    return 2 * x
