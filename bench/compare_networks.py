"""Comparing two networks: pyguide, pytorch-cka and torch-cka on the same networks and images.

Each computes the debiased CKA of every layer of one network with every layer of another over a
data loader. Measured are the whole call, the networks' forward passes alone, the difference of
the two (the work beyond the forward passes) and, in a process of its own, the peak memory; and how
far the values are from float64, under the names that are reported with them. Prints a Markdown
table a case; ``--out`` also writes JSON, which ``--resume`` continues::

    pip install -c constraints.txt '.[bench]' mlxtend && pip install --no-deps torch-cka==0.21
    python bench/compare_networks.py --threads 2

Networks are not trained; the statistics of their BatchNorm layers are those of the images.
torch-cka compares one batch only, as do the others beside it, and runs under no_grad, without which
it keeps every graph. A library that is not installed is
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyguide import list_layers, reference
from pyguide.analysis import compare_networks
from pyguide.bench import result as results
from pyguide.bench.arguments import add_options, parse
from pyguide.bench.device import CPU
from pyguide.bench.memory import in_own_process, memory_of
from pyguide.capture.paths import matching_layers, named_layers
from pyguide.data.mnist5000 import mnist5000
from pyguide.experiments.networks import ResNet, WideFCN

N = 256
#: How many times the work beyond the forward passes must be ours, at least.
AIMS = {"pytorch-cka": 1.7, "torch-cka": 10.0}
#: Largest error of a value that counts as right.
TOLERANCE = 1e-3

# Modules that are called once, in which the libraries do not differ.
_RESNET_LAYERS = (
    *("conv1", "bn1", "relu", "layer*.*", "layer*.*.conv*", "layer*.*.bn*"),
    *("layer*.*.downsample.*", "avgpool", "fc"),
)
_FCN_LAYERS = ("*.*", "3")


def resnet18(seed: int, quick: bool) -> nn.Module:
    """For images of 32 pixels: a 3 x 3 stem that keeps their size."""
    return _resnet(seed, quick, "small")


def imagenet_resnet18(seed: int, quick: bool) -> nn.Module:
    """Quarters the image first."""
    return _resnet(seed, quick, "imagenet")


def in_place_resnet18(seed: int, quick: bool) -> nn.Module:
    """ImageNet's as torchvision has it: its ReLUs work in place."""
    model = _resnet(seed, quick, "imagenet")
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return model


def _resnet(seed: int, quick: bool, stem: str) -> nn.Module:
    torch.manual_seed(seed)
    stages, width = ([1, 1], 8) if quick else ([2, 2, 2, 2], 64)
    return ResNet(stages, width=width, classes=10, stem=stem)


def wide_fcn(seed: int, quick: bool) -> nn.Module:
    """Three hidden layers of 8192 units."""
    torch.manual_seed(seed)
    return WideFCN(in_features=3 * 32 * 32, width=64 if quick else 8192, classes=10)


@dataclass(frozen=True)
class Case:
    """Two networks and the batches that they are compared over."""

    description: str
    first: Callable[[int, bool], nn.Module]
    second: Callable[[int, bool], nn.Module]
    batches: int
    candidates: tuple[str, ...] = ("forward", "pyguide", "pytorch-cka")


CASES = {
    "resnets": Case("two ResNet-18 for images of 32 pixels", resnet18, resnet18, 1),
    "wide": Case("a wide FCN and a ResNet-18 for images of 32 pixels", wide_fcn, resnet18, 1),
    "in-place": Case(
        "two ResNet-18 for ImageNet, ReLU in place", in_place_resnet18, in_place_resnet18, 4
    ),
    "one-batch": Case(
        "two ResNet-18 for ImageNet",
        imagenet_resnet18,
        imagenet_resnet18,
        1,
        ("forward", "pyguide", "pytorch-cka", "torch-cka"),
    ),
}


@dataclass(frozen=True)
class Problem:
    """What the candidates get: networks, names of layers in the order in which they run, data."""

    networks: tuple[nn.Module, nn.Module]
    layers: tuple[list[str], list[str]]
    loader: DataLoader[tuple[Tensor, ...]]


class Matrix(NamedTuple):
    """A candidate's values with the names that it gives to rows and columns."""

    values: Tensor
    rows: Sequence[str]
    columns: Sequence[str]


def prepare(case: Case, *, quick: bool) -> Problem:
    n = 16 if quick else N
    images, labels = mnist5000()["train"]
    images, labels = images[: n * case.batches], labels[: n * case.batches]
    images = F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    networks, layers = [], []
    for seed, make in enumerate((case.first, case.second)):
        model = make(seed, quick)
        _set_statistics(model, images[:n])
        networks.append(model.eval())
        found = named_layers(model)
        globs = _FCN_LAYERS if isinstance(model, WideFCN) else _RESNET_LAYERS
        wanted = {path for glob in globs for path in matching_layers(found, glob, "model")}
        layers.append([x.path for x in list_layers(model, images[:2]) if x.path in wanted])
    loader = DataLoader(TensorDataset(images, labels), batch_size=n)
    return Problem((networks[0], networks[1]), (layers[0], layers[1]), loader)


@torch.no_grad()
def _set_statistics(model: nn.Module, images: Tensor) -> None:
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    model.train()(images)


@torch.no_grad()
def exact(problem: Problem) -> Tensor:
    """Ratio of sums of the debiased HSIC, in float64, from copies of all activations."""
    (first, second), (rows, columns) = problem.networks, problem.layers
    xy = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    xx, yy = xy.new_zeros(len(rows)), xy.new_zeros(len(columns))
    for images, _ in problem.loader:
        k, m = _centred_grams(first, rows, images), _centred_grams(second, columns, images)
        xy += k @ m.T
        xx += k.square().sum(dim=1)
        yy += m.square().sum(dim=1)
    return xy / (xx[:, None] * yy).sqrt()


def _centred_grams(model: nn.Module, layers: list[str], images: Tensor) -> Tensor:
    """(L, n * n): U-centred, of what each layer returns before anything changes it in place."""
    grams: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: grams.update(
                {path: reference.u_center(reference.gram([output.double()])[0]).flatten()}
            )
        )
        for path in layers
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return torch.stack([grams[path] for path in layers])


@torch.no_grad()
def _forward(problem: Problem) -> None:
    for images, _ in problem.loader:
        for network in problem.networks:
            network(images)


def _pyguide(problem: Problem) -> Matrix:
    (first, second), (rows, columns) = problem.networks, problem.layers
    similarity = compare_networks(
        first, second, problem.loader, layers=rows, second_layers=columns, debiased=True
    )
    return Matrix(similarity.values, similarity.rows, similarity.columns)


def _pytorch_cka(problem: Problem) -> Matrix:
    from cka import compute_cka

    rows, columns = problem.layers
    (values,) = compute_cka(
        *problem.networks,
        problem.loader,
        layers=rows,
        model2_layers=columns,
        device="cpu",
        progress=False,
    )
    return Matrix(values, rows, columns)


@torch.no_grad()
def _torch_cka(problem: Problem) -> Matrix:
    from torch_cka import CKA

    (first, second), (rows, columns) = problem.networks, problem.layers
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        comparison = CKA(first, second, model1_layers=rows, model2_layers=columns, device="cpu")
        try:
            comparison.compare(problem.loader)
        finally:  # it leaves its hooks
            for module in (*first.modules(), *second.modules()):
                module._forward_hooks.clear()
    found = comparison.export()
    return Matrix(found["CKA"], found["model1_layers"], found["model2_layers"])


class Candidate(NamedTuple):
    run: Callable[[Problem], Matrix | None]
    module: str = "pyguide"
    #: Samples, at most.
    rounds: int = 1_000


CANDIDATES = {
    "forward": Candidate(_forward),
    "pyguide": Candidate(_pyguide),
    "pytorch-cka": Candidate(_pytorch_cka, "cka"),
    "torch-cka": Candidate(_torch_cka, "torch_cka", rounds=3),
}


def errors(found: Matrix, problem: Problem, expected: Tensor) -> dict[str, Any]:
    """Largest errors of the values under their names, and by their place in execution order."""
    rows, columns = problem.layers
    values = found.values.double()
    named = values.new_full(expected.shape, float("nan"))
    for i, row in enumerate(found.rows):
        for j, column in enumerate(found.columns):
            named[rows.index(row), columns.index(column)] = values[i, j]
    by_name, by_place = (_largest(v - expected) for v in (named, values))
    return {"by_name": by_name, "by_place": by_place, "names_match": by_name <= by_place}


def _largest(difference: Tensor) -> float | str:
    largest = difference.abs().max().item()  # NaN if there is one
    return largest if largest == largest else "nan"


def memory(case: str, candidate: str, quick: bool) -> dict[str, int] | str:
    """Of the whole call; what libraries load at their first call is there before."""
    problem = prepare(CASES[case], quick=quick)
    images, labels = (t[:8].clone() for t in problem.loader.dataset.tensors)
    few = DataLoader(TensorDataset(images, labels), batch_size=8)
    CANDIDATES[candidate].run(Problem(problem.networks, problem.layers, few))
    return memory_of(lambda: CANDIDATES[candidate].run(problem))


def measure(
    case: str, rounds: int, quick: bool, entry: dict[str, Any], save: Callable[[], None]
) -> None:
    """Fill in what an entry of the result does not have yet, and save after every step."""
    problem = prepare(CASES[case], quick=quick)
    entry["n"], entry["layers"] = problem.loader.batch_size, list(map(len, problem.layers))
    rows = entry["rows"]
    if not all("samples" in row for row in rows):
        expected = exact(problem)
        for row in rows:
            found = CANDIDATES[row["candidate"]].run(problem)
            row["error"] = found and errors(found, problem, expected)
        for row in rows:
            row["samples"] = []
        save()
    elif len(rows[0]["samples"]) < rounds:
        for row in rows:
            CANDIDATES[row["candidate"]].run(problem)  # the first call, which is not timed
    for r in range(len(rows[0]["samples"]), rounds):
        taken = [_timed(row, problem, r) for row in rows[r % len(rows) :] + rows[: r % len(rows)]]
        for row, seconds in taken:
            row["samples"] += seconds
        save()
    for row in rows:
        if "memory" not in row:
            arguments = memory, case, row["candidate"], quick
            row["memory"] = in_own_process(*arguments, threads=torch.get_num_threads())
            save()
    _summarize(rows)
    save()


def _timed(row: dict[str, Any], problem: Problem, r: int) -> tuple[dict[str, Any], list[float]]:
    candidate = CANDIDATES[row["candidate"]]
    if r >= candidate.rounds:
        return row, []
    start = time.perf_counter()
    candidate.run(problem)
    return row, [time.perf_counter() - start]


def _summarize(rows: list[dict[str, Any]]) -> None:
    """Spreads, the work beyond the forward passes of the same round, and ratios to pyguide."""
    forward = rows[0]["samples"]
    for row in rows:
        row["seconds"] = results.spread(row["samples"])
        pairs = zip(row["samples"], forward, strict=False)  # slow ones have fewer
        row["beyond"] = results.spread([whole - passes for whole, passes in pairs])
    ours = next(row for row in rows if row["candidate"] == "pyguide")
    for row in rows:
        if row["candidate"] in AIMS:
            row["ratio"] = {
                key: row[key]["median"] / ours[key]["median"] for key in ("seconds", "beyond")
            }
            row["aim_reached"] = row["ratio"]["beyond"] >= AIMS[row["candidate"]]


def table(entry: dict[str, Any]) -> str:
    """Medians and quartiles, in Markdown."""
    first, second = entry["layers"]
    lines = [
        f"{entry['description']}: {first} x {second} layers, batches: {entry['batches']} of "
        f"{entry['n']}\n",
        "| | whole call (s) | beyond the forward passes (s) | whole / pyguide | beyond / pyguide "
        "| peak memory (MiB) | largest error | error by place |",
        "|---" * 8 + "|",
    ]
    for row in entry["rows"]:
        ratio = row.get("ratio", {})
        error = row.get("error")
        cells = [
            row["candidate"],
            _seconds(row["seconds"]),
            _seconds(row["beyond"]) if error else "",
            *(f"{ratio[key]:.2f}" if ratio else "" for key in ("seconds", "beyond")),
            f"{row['memory']['peak'] / 2**20:.0f}" if isinstance(row["memory"], dict) else "n/a",
            *(f"{float(error[key]):.0e}" if error else "" for key in ("by_name", "by_place")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _seconds(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3g} ({spread['q1']:.3g} - {spread['q3']:.3g})"


def run(args: argparse.Namespace) -> None:
    """Measure what is not yet in the file."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    options = {"n": N}  # a run may go on with more cases or rounds
    result = results.new(CPU(quick=args.quick), args.commit, options, aims=AIMS, cases={})
    with contextlib.suppress(metadata.PackageNotFoundError):
        result["versions"]["torch-cka"] = metadata.version("torch-cka")
    if args.resume:
        result = results.resume(args.out, result)
    save = partial(results.save, args.out, result)
    for name in args.case:
        entry = result["cases"].setdefault(name, _new_entry(CASES[name]))
        if not _is_complete(entry, args.rounds):
            measure(name, args.rounds, args.quick, entry, save)
        print(table(entry), flush=True)
    result["finished"] = True
    save()


def _is_complete(entry: dict[str, Any], rounds: int) -> bool:
    return all("seconds" in row for row in entry["rows"]) and all(
        len(row["samples"]) >= min(rounds, CANDIDATES[row["candidate"]].rounds)
        for row in entry["rows"]
    )


def _new_entry(case: Case) -> dict[str, Any]:
    installed = [c for c in case.candidates if importlib.util.find_spec(CANDIDATES[c].module)]
    rows = [{"candidate": name} for name in installed]
    return {"description": case.description, "batches": case.batches, "rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9, help="samples of each candidate")
    add_options(parser, "--threads", "--out", "--resume", "--commit", "--quick")
    run(parse(parser, argv))


if __name__ == "__main__":
    main()
