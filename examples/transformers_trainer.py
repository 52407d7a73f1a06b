"""transformers.Trainer: a guided GPT-2 on text, stopped, and resumed across the end of guidance."""

from pydoc_data.topics import topics

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import pyguide
from pyguide.integrations.transformers import GuidedTrainer

text = "".join(topics.values())  # Python's own help: 700,000 characters
characters = torch.tensor([min(ord(character), 127) for character in text])
data = [{"input_ids": ids, "labels": ids} for ids in characters.split(32)[:-1]]


class Guide(nn.Module):
    """An LSTM that nobody trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 64)
        self.lstm = nn.LSTM(64, 64, batch_first=True)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.embedding(input_ids))[0]


guide = Guide()  # made once: its weights are in no checkpoint
config = GPT2Config(vocab_size=128, n_positions=32, n_embd=64, n_layer=2, n_head=2)
fixed = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 2, "save_steps": 20}
fixed |= {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "logging_steps": 5}
for steps in (20, 60):
    model = GPT2LMHeadModel(config)
    guidance = pyguide.Guidance(model, guide, [("transformer.h.*", "lstm")], release_at=40)
    args = TrainingArguments("gpt2", max_steps=steps, **fixed)
    trainer = GuidedTrainer(model, args, None, data[:-256], data[-256:], guidance=guidance)
    trainer.train(resume_from_checkpoint=steps > 20)
print(f"loss of the last 256 texts: {trainer.evaluate()['eval_loss']:.2f}")
