"""Trained networks compared: writes compare_networks.md, batches.md and pictures.

Trains two ResNets and a fully connected network on 4000 images of MNIST, some minutes on one
core, and compares their layers on 1000 others. Run as: python docs/figures/compare_networks.py
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyguide
from pyguide.analysis import LayerSimilarity, StreamingCKA, compare_networks
from pyguide.analysis.plots import plot_best_matches, plot_heatmap
from pyguide.data.mnist5000 import mnist5000
from pyguide.experiments.networks import DeepFCN, ResNet

FOLDER = Path(__file__).parent
EPOCHS, BATCH, COMPARED = 3, 50, 250
SHOWN = ["conv1", *(f"layer{i}.0.relu:1" for i in (1, 2, 3)), "avgpool", "fc"]
SIZES = [5, 10, 20, 50, 250, 1000]

Data = dict[str, tuple[Tensor, Tensor]]


def resnet() -> nn.Module:
    return ResNet([1, 1, 1], width=16, classes=10, in_channels=1, stem="small")


def fcn() -> nn.Module:
    return DeepFCN(10, in_features=28 * 28, width=256, dropout=0.0)


def train(model: nn.Module, data: Data) -> nn.Module:
    """EPOCHS passes of Adam over the training images."""
    images, labels = data["train"]
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def untrained(model: nn.Module, data: Data) -> nn.Module:
    """A copy whose BatchNorm layers have the statistics of 1000 training images."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    model.train()(data["train"][0][:1000])
    return model.eval()


def networks(data: Data) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    first = resnet()
    found = {"untrained ResNet": untrained(first, data), "ResNet": train(first, data)}
    torch.manual_seed(1)
    found["ResNet of another seed"] = train(resnet(), data)
    found["FCN"] = train(fcn(), data)
    return found


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(dim=1) == labels).float().mean().item()


def compared(found: dict[str, nn.Module], first: str, second: str, x: Tensor) -> LayerSimilarity:
    pair = found[first], found[second]
    return compare_networks(*pair, x.split(COMPARED), names=(first, second))


def layer_table(seeds: LayerSimilarity, before: LayerSimilarity, others: LayerSimilarity) -> str:
    """A few layers of the ResNet with themselves elsewhere, and with their best match."""
    same = [match.layer == match.best for match in seeds.best_matches()[0]]
    lines = [
        f"The best match of {sum(same)} of {len(same)} layers in the ResNet of another seed is the "
        "same layer.\n",
        "| layer | shape | another seed | untrained | best match in the FCN |",
        "|---|---|---|---|---|",
    ]
    for i, match in enumerate(others.best_matches()[0]):
        if match.layer in SHOWN:
            shape = " x ".join(map(str, seeds.row_shapes[i]))
            itself = [s.values[i, s.columns.index(match.layer)] for s in (seeds, before)]
            cells = [match.layer, shape, *(f"{value:.2f}" for value in itself)]
            lines.append(f"| {' | '.join(cells)} | {match.best}: {match.value:.2f} |")
    return "\n".join(lines) + "\n"


def accuracy_table(found: dict[str, nn.Module], x: Tensor, y: Tensor) -> str:
    rows = [f"| {name} | {100 * accuracy(model, x, y):.1f} % |" for name, model in found.items()]
    return "\n".join(["| network | accuracy on the images compared |", "|---|---|", *rows]) + "\n\n"


@torch.no_grad()
def output(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer returns for the images."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, args, out: kept.append(out))
    model(x)
    handle.remove()
    return kept[0]


def estimates(x: Tensor, y: Tensor, size: int, debiased: bool) -> tuple[float, float]:
    """CKA over batches: the ratio of the sums, and the mean of the batches' own ratios."""
    streaming, ratios = StreamingCKA(debiased=debiased), []
    for batch in zip(x.split(size), y.split(size), strict=True):
        streaming.update(*([layer] for layer in batch))
        ratios.append(pyguide.cka(*batch, debiased=debiased))
    return streaming.compute().item(), torch.stack(ratios).mean().item()


def batch_table(x: Tensor, y: Tensor) -> str:
    """Of the same samples, and of samples that do not belong together."""
    torch.manual_seed(0)
    kinds = {"": (x, y), ", shuffled": (x, y[torch.randperm(len(y))])}
    estimators = {"biased": False, "debiased": True}
    heads = [f"{estimator}{kind}" for kind in kinds for estimator in estimators]
    lines = [f"| batch | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for size in SIZES:
        cells = []
        for layers in kinds.values():
            for debiased in estimators.values():
                sums, mean = estimates(*layers, size, debiased)
                cells.append(f"{sums:.3f} / {mean:.3f}")
        lines.append(f"| {size} | {' | '.join(cells)} |".replace("-0.000", "0.000"))
    return "\n".join(lines) + "\n"


def main() -> None:
    data = mnist5000()
    x, y = (torch.cat(parts) for parts in zip(data["val"], data["test"], strict=True))
    found = networks(data)
    seeds = compared(found, "ResNet", "ResNet of another seed", x)
    before = compared(found, "ResNet", "untrained ResNet", x)
    others = compared(found, "ResNet", "FCN", x)
    plot_heatmap(seeds, FOLDER / "compare_seeds.png")
    plot_heatmap(before, FOLDER / "compare_untrained.png")
    plot_heatmap(others, FOLDER / "compare_fcn.png")
    plot_best_matches(others, FOLDER / "compare_fcn_matches.png")
    tables = accuracy_table(found, x, y) + layer_table(seeds, before, others)
    (FOLDER / "compare_networks.md").write_text(tables, encoding="utf-8")
    layers = output(found["ResNet"], "layer2.0", x), output(found["FCN"], "5.2", x)
    (FOLDER / "batches.md").write_text(batch_table(*layers), encoding="utf-8")


if __name__ == "__main__":
    main()
