"""Guided training of a small network, the same on every device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyguide.guidance import Guidance

SAMPLES, CLASSES = 40, 5


class ConvNet(nn.Module):
    """Layers of images, so that features are not in the order of the samples' rows."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(1, 6, 3, padding=1)
        self.conv2 = nn.Conv1d(6, 8, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x[:, None]))))


class GuidedTraining:
    """A target of linear layers, a convolutional guide and one batch."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32, **options):
        torch.manual_seed(0)
        self.target = nn.Sequential(
            nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, CLASSES)
        ).to(device, dtype)
        guide = ConvNet().to(device, dtype)
        self.x = torch.randn(SAMPLES, 24).to(device, dtype)
        self.y = torch.randint(CLASSES, (SAMPLES,)).to(device)
        pairs = [("0", "conv1"), ("2", "conv2")]
        self.ids = torch.arange(SAMPLES) if "guide_cache" in options else None
        self.guidance = Guidance(self.target, guide, pairs=pairs, **options)
        self.optimizer = torch.optim.SGD(self.target.parameters(), lr=0.05)

    def loss(self) -> Tensor:
        with self.guidance.capture():
            logits = self.target(self.x)
        task = F.cross_entropy(logits, self.y)
        return self.guidance.total_loss(task, self.x, sample_ids=self.ids)

    def step(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.guidance.step()
        return loss.detach()

    def weights(self) -> Tensor:
        """All weights in one vector, on the CPU."""
        parameters = [p.detach().flatten() for p in self.target.parameters()]
        return torch.cat(parameters).double().cpu()
