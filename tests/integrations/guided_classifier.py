"""A LightningModule that classifies, and its guided training by Lightning and by hand."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from pyguide import Guidance

#: Marks: what Lightning says of small data and of fits that end early.
IGNORED_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers",
        ".*`isinstance.treespec, LeafSpec.` is deprecated",
        "The number of training batches",
        "You defined a `validation_step` but have no `val_dataloader`",
        "You're resuming from a checkpoint that ended before the epoch ended",
    )
]


class Classifier(pl.LightningModule):
    """Task loss and validation; both networks are in `model`."""

    def __init__(self, width: int = 12, fused: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.model = network(width)
        self.fused = fused

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, fused=self.fused)


class DictBatches(Classifier):
    """Batches, and what training_step returns, are dicts."""

    def training_step(self, batch):
        if batch["y"] is None:
            return None
        return {"loss": F.cross_entropy(self(batch["x"]), batch["y"]), "size": len(batch["x"])}


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 4)
    )


def untrained_guide(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    return network(9).to(dtype)


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(32, 10, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(4, (32,), generator=generator),
        )
        for _ in range(count)
    ]


def loader(data: list) -> DataLoader:
    return DataLoader(data, batch_size=None)


def trainer(*callbacks: pl.Callback, library=pl, **options) -> pl.Trainer:
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    if "plugins" not in options:
        options = {"precision": "64-true"} | options
    return library.Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet | options)


def plain_loop(module, guide, data, *, epochs=1, accumulate=1, context=None, **options) -> Guidance:
    """What Lightning and the callback do, by hand."""
    guidance = Guidance(module, guide, **options)
    optimizer = module.configure_optimizers()
    for _ in range(epochs):
        for i, (x, y) in enumerate(data):
            with context or torch.autocast("cpu", enabled=False):
                with guidance.capture():
                    logits = module(x)
                loss = guidance.total_loss(F.cross_entropy(logits, y), x)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0 or i + 1 == len(data):
                optimizer.step()
                optimizer.zero_grad()
                guidance.step()
    return guidance
