"""What the pictures of benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyguide.files import atomic_write, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new", "save"]


def new(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    # The object interface: no display, and no state shared with a caller's pyplot.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path, result: dict[str, Any], title: str, how: str = "") -> None:
    """Write a PNG with what was measured, and with the machine and ``how`` it was used, on top.

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    versions = result["versions"]
    quick = " (quick: not a result)" if result["quick"] else ""
    figure.suptitle(
        f"{title}{quick}\n{_name(result['machine'])}{how}; "
        f"pyguide {versions['pyguide']}, torch {versions['torch']}; {result['date'][:10]}",
        fontsize=10,
    )
    with writing(path), atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _name(machine: dict[str, Any]) -> str:
    if "gpu" in machine:
        driver = f", driver {machine['driver']}" if machine["driver"] else ""
        return f"{machine['gpu']}{driver}"
    return f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}"
