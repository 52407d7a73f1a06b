"""A deep network on MNIST-1D, alone and guided by a convolutional one: how, not how well."""

import torch
import torch.nn.functional as F
from mnist1d.data import make_dataset

import pyguide
from pyguide.experiments.networks import DeepFCN, ResNet1D

torch.manual_seed(0)
data = make_dataset()  # generated here: 4000 training and 1000 test signals of 40 points
x, y, x_test, y_test = (torch.tensor(data[name]) for name in ("x", "y", "x_test", "y_test"))
x, x_test = x.float(), x_test.float()
guide = ResNet1D(width=8)


def train(target: torch.nn.Module, epochs: int, *, guided: bool) -> float:
    """Train with or without the guide, and return the test accuracy in percent."""
    guidance = pyguide.Guidance(target, guide, release_at=None if guided else 0)
    optimizer = torch.optim.Adam(target.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(256):
            with guidance.capture():  # around the target's one forward pass
                logits = target(x[batch])
            loss = F.cross_entropy(logits, y[batch]) + guidance.loss(x[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            guidance.step()
    for name, value in guidance.log_dict().items():
        print(f"{name:<40} {float(value):.4f}")
    with torch.no_grad():
        return 100 * (target.eval()(x_test).argmax(dim=1) == y_test).float().mean().item()


print(f"alone: {train(DeepFCN(depth=20), epochs=5, guided=False):.1f} %")
print(f"guided: {train(DeepFCN(depth=20), epochs=5, guided=True):.1f} %")
