"""What guidance costs a step beside the guide's forward pass, in the experiments' networks.

Steps of the guidance term alone, forward and backward, on random inputs: seconds of the guide's
forward pass, of the distances and of their backward, which are taken in the same step, and the
multiply-adds of each. The aim is distances that take less time than the guide's forward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pyguide
from pyguide.bench import result as results
from pyguide.bench.arguments import add_options
from pyguide.bench.device import CPU
from pyguide.bench.machine import describe
from pyguide.experiments.networks import (
    DeepFCN,
    ResNet1D,
    WideFCN,
    deep_convnet,
    resnet18,
    resnet50,
)

N = 256
_PARTS = ("guide", "distances", "backward")


@dataclass(frozen=True)
class Case:
    """A target, its guide, and the shape of a sample that both see."""

    description: str
    target: Callable[[], nn.Module]
    guide: Callable[[], nn.Module]
    shape: tuple[int, ...]
    n: int = N


def _image_fcn(side: int, channels: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Flatten(), DeepFCN(in_features=channels * side**2, **options))


def _small_resnet() -> nn.Module:
    return ResNet1D(width=16)


def _plain_cnn(*, skips: bool) -> Callable[[], nn.Module]:
    return lambda: ResNet1D(width=16, stages=(12, 12, 12), skips=skips)


CASES = {
    "deep-fcn": Case(
        "deep-fcn: 50 layers of 128, 1-D ResNet", lambda: DeepFCN(50), _small_resnet, (40,)
    ),
    "wide-fcn": Case(
        "wide-fcn: 3 hidden layers of 512, 1-D ResNet",
        lambda: WideFCN(in_features=40, width=512, classes=10),
        _small_resnet,
        (40,),
    ),
    "plain-cnn": Case(
        "plain-cnn: 73 1-D convolutions and their residual twin",
        _plain_cnn(skips=False),
        _plain_cnn(skips=True),
        (40,),
    ),
    "mnist": Case(
        "50 layers of 256 on 1 x 28 x 28, ResNet-18 with ImageNet's stem",
        _image_fcn(28, 1, depth=50, width=256),
        lambda: resnet18(classes=10, in_channels=1),
        (1, 28, 28),
    ),
    "image-64": Case(
        "the paper's Deep FCN at 3 x 64 x 64, ResNet-18",
        _image_fcn(64, 3, depth=49, first_width=2048, width=1024, classes=1000),
        resnet18,
        (3, 64, 64),
    ),
    "convnet-64": Case(
        "the paper's Deep ConvNet at 3 x 64 x 64, ResNet-50, n = 64",
        deep_convnet,
        resnet50,
        (3, 64, 64),
        n=64,
    ),
}


def counts(guidance: pyguide.Guidance, x: Tensor) -> dict[str, int]:
    """Multiply-adds of a step: of the guide's forward pass, the distances and their backward."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        guidance.guide(x)
    totals = guidance.plan(x).totals
    of_distances = {"distances": totals["forward"], "backward": totals["backward"]}
    return {"guide": counter.get_total_flops() // 2, **of_distances}  # type: ignore[dict-item]


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Samples of each part in the same steps, after two that warm up."""
    torch.manual_seed(0)
    x = torch.randn(case.n, *case.shape)
    guidance = pyguide.Guidance(case.target(), case.guide(), example=x[:2], timed=True)
    samples: dict[str, list[float]] = {part: [] for part in _PARTS}
    for _ in range(2 + rounds):
        with guidance.capture():
            guidance.target(x)
        guidance.loss(x).backward()
        guidance.target.zero_grad()
        guidance.step()
        times = guidance.times()
        for part, seconds in samples.items():
            seconds.append(times[f"guidance/seconds/{part}"])
    samples = {part: seconds[2:] for part, seconds in samples.items()}
    pairs = zip(samples["distances"], samples["guide"], strict=True)
    ratio = results.spread([distances / guide for distances, guide in pairs])
    return {
        "description": case.description,
        "n": case.n,
        "pairs": len(guidance.pairs or ()),
        "multiply_adds": counts(guidance, x),
        "samples": samples,
        "seconds": {part: results.spread(seconds) for part, seconds in samples.items()},
        "distances_to_guide": ratio,
        "aim_reached": ratio["median"] < 1,
    }


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Medians and quartiles, in Markdown."""
    heads = ["networks", "pairs", "guide (ms)", "distances (ms)", "their backward (ms)"]
    heads += ["distances / guide", "the same in multiply-adds"]
    rows = [heads, ["---"] * len(heads)]
    for entry in entries:
        ratio, work = entry["distances_to_guide"], entry["multiply_adds"]
        rows.append(
            [
                entry["description"],
                str(entry["pairs"]),
                *(f"{1e3 * entry['seconds'][part]['median']:.3g}" for part in _PARTS),
                f"{ratio['median']:.2f} ({ratio['q1']:.2f}–{ratio['q3']:.2f})",
                f"{work['distances'] / work['guide']:.2f}",
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=15, help="steps of each case")
    add_options(parser, "--threads", "--out", "--commit")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    result = {
        "format": results.FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **describe(CPU(quick=False), args.commit),
        "cases": {},
    }
    for name in args.case:
        start = time.perf_counter()
        result["cases"][name] = measure(CASES[name], args.rounds)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        results.save(args.out, result)
    print(table(list(result["cases"].values())))


if __name__ == "__main__":
    main()
