"""Guided steps on batches of 1000 in the memory of 250, with the gradient of the whole batch."""

import torch
import torch.nn.functional as F
from mnist1d.data import make_dataset
from torch import nn

import pyguide
from pyguide.experiments.networks import ResNet1D

torch.manual_seed(0)
data = make_dataset()  # generated here: 4000 training and 1000 test signals of 40 points
x, y, x_test, y_test = (torch.tensor(data[name]) for name in ("x", "y", "x_test", "y_test"))
x, x_test = x.float(), x_test.float()

# LayerNorm, because BatchNorm would see chunks.
hidden = [nn.Sequential(nn.Linear(128, 128), nn.LayerNorm(128), nn.ReLU()) for _ in range(5)]
target = nn.Sequential(nn.Linear(40, 128), nn.ReLU(), *hidden, nn.Linear(128, 10))
guidance = pyguide.Guidance(target, ResNet1D(width=8), release_at=20)
# The mean of four CKAs of 250 samples is not the CKA of 1000: this is the latter.
large = pyguide.guidance.LargeBatch(guidance, chunk_size=250)
optimizer = torch.optim.Adam(target.parameters(), lr=3e-3)

for epoch in range(8):
    for batch in torch.randperm(len(x)).split(1000):
        losses = large.backward(lambda x, y: F.cross_entropy(target(x), y), x[batch], y[batch])
        optimizer.step()
        optimizer.zero_grad()
        guidance.step()
    print(f"epoch {epoch}: task {losses.task:.3f}, guidance {losses.guidance:.3f}")

with torch.no_grad():
    accuracy = 100 * (target(x_test).argmax(dim=1) == y_test).float().mean().item()
print(f"test accuracy: {accuracy:.1f} %")
