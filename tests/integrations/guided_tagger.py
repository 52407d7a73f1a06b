"""A network that labels tokens, and its guided training by GuidedTrainer and by hand."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import TrainingArguments

from pyguide import Guidance
from pyguide.integrations.transformers import GuidedTrainer

PAIRS = [("layers.0", "layers.0"), ("layers.2", "layers.2")]
LENGTH, BATCH = 6, 32


class Tagger(nn.Module):
    """Labels every token; its loss is the mean over a batch's tokens."""

    def __init__(self, width: int = 12, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, width)
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Dropout(dropout)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.head(self.layers(self.embedding(input_ids)))
        if labels is None:
            return {"logits": logits}
        return {"loss": self.task(logits, labels), "logits": logits}

    def task(self, logits, labels, num_items_in_batch=None):
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return losses / (
            labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        )


class TaggerByItems(Tagger):
    """The losses of an optimizer step add up to the mean over its tokens, as in transformers."""

    def forward(self, input_ids, labels=None, attention_mask=None, **kwargs):
        logits = self.head(self.layers(self.embedding(input_ids)))
        if labels is None:
            return {"logits": logits}
        return {"loss": self.task(logits, labels, **kwargs), "logits": logits}


class Guide(nn.Module):
    """Another architecture, which takes token ids only."""

    def __init__(self, width: int = 9):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Embedding(11, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 4)
        )

    def forward(self, input_ids):
        return self.layers(input_ids)


def data(batches: int, padded: bool = True) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    samples = []
    for _ in range(batches * BATCH):
        length = int(torch.randint(2, LENGTH + 1, (), generator=generator)) if padded else LENGTH
        ids = torch.randint(1, 11, (LENGTH,), generator=generator)
        valid = torch.arange(LENGTH) < length
        labels = torch.where(valid, ids % 4, -100)
        samples.append({"input_ids": ids * valid, "attention_mask": valid * 1, "labels": labels})
    return samples


def arguments(folder: Path, kind=TrainingArguments, **options):
    fixed = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "learning_rate": 0.01,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return kind(str(folder), **fixed | options)


def adam(model: nn.Module) -> tuple:
    return torch.optim.AdamW(model.parameters(), lr=0.01), None


def guided_trainer(folder, model, guidance, samples, *, guided=None, **options) -> GuidedTrainer:
    return GuidedTrainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=samples,
        optimizers=adam(model),
        guidance=guidance,
        **guided or {},
    )


def windows(samples, accumulate: int) -> list[list[dict[str, torch.Tensor]]]:
    """The batches of each optimizer step of an epoch."""
    batches = [
        {key: torch.stack([sample[key] for sample in samples[i : i + BATCH]]) for key in samples[0]}
        for i in range(0, len(samples), BATCH)
    ]
    return [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]


def plain_loop(model, guide, samples, *, epochs=1, accumulate=1, **options) -> Guidance:
    """What GuidedTrainer does, by hand, for a model with losses by batch or by items."""
    guidance = Guidance(model, guide, PAIRS, **options)
    optimizer, _ = adam(model)
    for window in windows(samples, accumulate) * epochs:
        items = sum(batch["labels"].ne(-100).sum() for batch in window)
        for batch in window:
            x = {"input_ids": batch["input_ids"]}
            with guidance.capture():
                logits = model(**x)["logits"]
            by_items = isinstance(model, TaggerByItems)
            task = model.task(logits, batch["labels"], items if by_items else None)
            mean = guidance.total_loss(
                task * (len(window) if by_items else 1), x, mask=batch["attention_mask"].bool()
            )
            (mean / len(window)).backward()
        optimizer.step()
        optimizer.zero_grad()
        guidance.step()
    return guidance
