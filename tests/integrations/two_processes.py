"""Trains with a trainer in each process of torchrun; the processes share every batch."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

OPTIONS = {"align_only": 1, "release_at": 4}
RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
#: Samples of a process, of 32 in all.
BATCH = 32 // WORLD_SIZE


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (count,), generator=generator)
    return [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]


class Network(nn.Module):
    """With a loss, as models of transformers; `kwargs` has the number of items."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
        )
        self.double()

    def forward(self, x, labels=None, **kwargs):
        logits = self.layers(x)
        if labels is None:
            return {"logits": logits}
        items = kwargs.get("num_items_in_batch", len(labels))
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / items
        return {"loss": loss, "logits": logits}


def lightning(model: nn.Module, guide: nn.Module, folder: Path) -> int:
    import lightning.pytorch as pl

    from pyguide.integrations.lightning import GuidanceCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = GuidanceCallback(guide, target="model", inputs=lambda batch: batch["x"], **OPTIONS)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=WORLD_SIZE,
        strategy="ddp" if WORLD_SIZE > 1 else "auto",
        use_distributed_sampler=False,
        accumulate_grad_batches=2,
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    batches = torch.utils.data.DataLoader(samples(32 * 12), batch_size=BATCH)
    trainer.fit(Module(), torch.utils.data.DataLoader(list(batches)[RANK::WORLD_SIZE], None))
    return callback.guidance.steps


def transformers(model: nn.Module, guide: nn.Module, folder: Path) -> int:
    from transformers import TrainingArguments

    from pyguide import Guidance
    from pyguide.integrations.transformers import GuidedTrainer

    args = TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        num_train_epochs=1,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    guidance = Guidance(model, guide, **OPTIONS)
    trainer = GuidedTrainer(
        model=model,
        args=args,
        train_dataset=samples(32 * 12),
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
        guidance=guidance,
    )
    trainer.train()
    return guidance.steps


if __name__ == "__main__":
    train = {"lightning": lightning, "transformers": transformers}[sys.argv[1]]
    model, folder = Network(12, seed=0), Path(sys.argv[2])
    steps = train(model, Network(9, seed=1), folder)
    if RANK == 0:
        torch.save({"steps": steps, "state": model.state_dict()}, folder / f"{WORLD_SIZE}.pt")
    if dist.is_initialized():
        gc.collect()  # Of wrappers, which keep gloo's threads: a Python that ends aborts on these.
        dist.destroy_process_group()
