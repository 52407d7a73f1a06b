"""How far float32 CKA is from float64 when the features lie far from zero.

Debiased linear CKA of two related layers of unit-variance features, moved by m standard
deviations, for pyguide, for the formula that most libraries share (float32 Gram, then centred)
and, where it is installed, for pytorch-cka. Every value is compared with float64 on the same
rounded input. Prints a Markdown table; ``--out`` also writes it as JSON::

    pip install -c constraints.txt '.[bench]' && python bench/numerics.py
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor

import pyguide
from pyguide import reference
from pyguide.bench.arguments import add_options
from pyguide.bench.machine import cpu_name

try:
    from cka import cka_from_features
except ImportError:
    cka_from_features = None

N, D, SEEDS = 64, 256, 5
OFFSETS = (0, 1, 10, 30, 100, 1000)


def gram_then_center(x: Tensor, y: Tensor) -> Tensor:
    """The usual formula: the Gram matrix of the raw features, U-centred afterwards."""
    k, m = reference.u_center(x @ x.T), reference.u_center(y @ y.T)
    return (k * m).sum() / (k.norm() * m.norm())


CANDIDATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pyguide": lambda x, y: pyguide.cka(x, y, debiased=True),
    "Gram, then centred": gram_then_center,
}
if cka_from_features is not None:
    CANDIDATES["pytorch-cka"] = lambda x, y: cka_from_features(x, y).squeeze()


def layers(seed: int) -> tuple[Tensor, Tensor]:
    """Two layers that share some signal, unit variance, float64: (N, D) each."""
    generator = torch.Generator().manual_seed(seed)
    shared, a, b = torch.randn(3, N, D, generator=generator, dtype=torch.float64)
    return 0.5 * shared + 0.75**0.5 * a, 0.5 * shared + 0.75**0.5 * b


def measure() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for offset in OFFSETS:
        errors: dict[str, list[float]] = {name: [] for name in CANDIDATES}
        for seed in range(SEEDS):
            x, y = ((t + offset).float() for t in layers(seed))
            exact = reference.cka(x.double(), y.double(), debiased=True).item()
            for name, candidate in CANDIDATES.items():
                errors[name].append(abs(candidate(x, y).item() - exact))
        # max() would pass over a NaN.
        worst = {k: max(v, key=lambda e: (e != e, e)) for k, v in errors.items()}
        rows.append({"offset": offset, "largest_error": worst})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser, "--out")
    args = parser.parse_args()
    rows = measure()
    print("| offset (standard deviations) | " + " | ".join(CANDIDATES) + " |")
    print("|---" * (len(CANDIDATES) + 1) + "|")
    for row in rows:
        cells = [f"{row['largest_error'][name]:.1e}" for name in CANDIDATES]  # type: ignore[index]
        print(f"| {row['offset']} | " + " | ".join(cells) + " |")
    if args.out is not None:
        result = {
            "date": date.today().isoformat(),
            "pyguide": pyguide.__version__,
            "torch": torch.__version__,
            "cpu": cpu_name(),
            "backend": pyguide.backends()["cpu"].detail,
            "n": N,
            "d": D,
            "seeds": SEEDS,
            "rows": rows,
        }
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
        os.replace(temporary, args.out)


if __name__ == "__main__":
    main()
