"""Pictures of a :class:`~pyguide.analysis.LayerSimilarity`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyguide.analysis.similarity import LayerSimilarity, Match
from pyguide.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["best_matches_figure", "heatmap_figure", "plot_best_matches", "plot_heatmap"]

_DPI = 110

# Inches. A cell shrinks with the number of layers, and the matrix grows up to its largest size.
_LARGEST_CELL, _SMALLEST_CELL, _SMALL_MATRIX, _LARGE_MATRIX = 0.5, 0.16, 4.0, 12.0
_LINE = 0.13  # least distance of two labels
_PANEL = 3.4  # width of one

_UNDER, _MISSING = "black", "0.75"

# Debiased values of unrelated layers scatter around 0: what is not below this has the colour of 0.
_CLEARLY_NEGATIVE = -0.05


def plot_heatmap(similarity: LayerSimilarity, path: str | Path) -> None:
    """Write :func:`heatmap_figure` as a PNG.

    Parameters
    ----------
    similarity : LayerSimilarity
    path : path
        File to write; it is replaced at once, or not at all.

    Raises
    ------
    ImportError
        Without matplotlib.
    OSError
        If the file cannot be written.
    """
    _save(heatmap_figure(similarity), path)


def plot_best_matches(similarity: LayerSimilarity, path: str | Path) -> None:
    """Write :func:`best_matches_figure` as a PNG; see :func:`plot_heatmap`."""
    _save(best_matches_figure(similarity), path)


def heatmap_figure(similarity: LayerSimilarity) -> Figure:
    """The matrix as colours, the first layers of both networks at the bottom left.

    A dot marks the best match of each layer of the first network. The colours go from 0 to 1
    in every picture, so that pictures can be compared. Debiased values a little below 0, as
    unrelated layers have them, look like 0; those below -0.05 are black.
    Layers without variation are grey.

    Parameters
    ----------
    similarity : LayerSimilarity

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> import torch
    >>> from pyguide.analysis.plots import heatmap_figure
    >>> from pyguide.analysis.similarity import LayerSimilarity
    >>> layers, shapes = ("conv", "fc"), ((8, 4, 4), (10,))
    >>> similarity = LayerSimilarity(
    ...     torch.eye(2, dtype=torch.float64), layers, layers, shapes, shapes,
    ...     names=("seed 0", "seed 1"), samples=1000, batches=4, debiased=True,
    ...     degenerate_rows=(), degenerate_columns=(),
    ... )
    >>> figure = heatmap_figure(similarity)
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('seed 1', 'seed 0')
    """
    matplotlib, figure_type = _matplotlib()
    rows, columns = similarity.values.shape
    cell = _cell(max(rows, columns))
    width, height = max(cell * columns, 2.5), max(cell * rows, 2.0)
    font = _font(cell)
    left = _text_width(similarity.rows, font) + 0.45
    bottom = _text_width(similarity.columns, font) + 0.45
    figure = figure_type(figsize=(left + width + 1.1, bottom + height + 0.75), dpi=_DPI)
    axes = _add_axes(figure, left, bottom, width, height)
    bar_axes = _add_axes(figure, left + width + 0.15, bottom, 0.16, height)

    shown = _without_degenerate(similarity)
    colours = matplotlib.colormaps["viridis"].with_extremes(under=_UNDER, bad=_MISSING)
    drawn = shown.masked_fill((shown < 0) & (shown >= _CLEARLY_NEGATIVE), 0.0)
    image = axes.imshow(drawn.numpy(), cmap=colours, vmin=0, vmax=1, origin="lower", aspect="auto")
    _mark_best(axes, similarity, cell)
    _label_layers(axes.xaxis, similarity.columns, cell, fontsize=font, rotation=90)
    _label_layers(axes.yaxis, similarity.rows, cell, fontsize=font)
    axes.set_xlabel(_fitting(similarity.names[1], width))
    axes.set_ylabel(_fitting(similarity.names[0], height))

    below = bool((drawn < 0).any())
    bar = figure.colorbar(image, cax=bar_axes, extend="min" if below else "neither")
    meaning = f", black below {_CLEARLY_NEGATIVE}" if below else ""
    bar.set_label(f"{_estimator(similarity)}{meaning}")
    missing = "; grey: no variation, or NaN" if shown.isnan().any() else ""
    axes.set_title(f"{_title(similarity)}\ndots: best match of each row{missing}", fontsize=9)
    return figure


def best_matches_figure(similarity: LayerSimilarity) -> Figure:
    """For each layer of the first network its most similar layer in the second.

    A line of the picture is a layer, the first at the bottom: its name, the similarity to its
    best match, where in the second network that is, and its name.

    Parameters
    ----------
    similarity : LayerSimilarity

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    _, figure_type = _matplotlib()
    matches = similarity.best_matches()[0]
    cell = min(0.25, _cell(len(matches)))
    height = max(cell * len(matches), 2.0)
    font = _font(cell)
    left = _text_width(similarity.rows, font) + 0.45
    best = [match.best or "none" for match in matches]
    right = _text_width(best, font) + 0.2
    figure = figure_type(figsize=(left + 2 * _PANEL + 0.25 + right, height + 1.3), dpi=_DPI)
    values = _add_axes(figure, left, 0.75, _PANEL, height)
    places = _add_axes(figure, left + _PANEL + 0.25, 0.75, _PANEL, height)

    _draw_values(values, matches)
    _draw_places(places, matches, similarity.columns)
    values.set_xlabel(f"{_estimator(similarity)} with the best match")
    values.set_ylabel(_fitting(similarity.names[0], height))
    places.set_xlabel(f"place of the best match in\n{_fitting(similarity.names[1], _PANEL)}")
    places.yaxis.tick_right()
    _label_layers(values.yaxis, similarity.rows, cell, fontsize=font)
    _label_layers(places.yaxis, best, cell, fontsize=font)
    for axes in (values, places):
        axes.set_ylim(-0.7, len(matches) - 0.3)
        axes.grid(alpha=0.25)
    figure.suptitle(_title(similarity), fontsize=9, y=1 - 0.08 / figure.get_figheight(), va="top")
    return figure


def _draw_values(axes: Any, matches: Sequence[Match]) -> None:
    found = [(line, match.value) for line, match in enumerate(matches) if match.best is not None]
    lines, values = [line for line, _ in found], [value for _, value in found]
    axes.hlines(lines, 0, values, color="0.7", lw=1)
    axes.plot(values, lines, "o", color="#0072B2", ms=4)
    axes.set_xlim(min([0.0, *values]) - 0.02, 1.02)


def _draw_places(axes: Any, matches: Sequence[Match], columns: Sequence[str]) -> None:
    """The first layer has place 1."""
    found = [
        (line, 1 + columns.index(match.best))
        for line, match in enumerate(matches)
        if match.best is not None
    ]
    axes.plot(
        [place for _, place in found],
        [line for line, _ in found],
        "o-",
        color="#D55E00",
        ms=4,
        lw=0.8,
    )
    margin = 0.5 + 0.02 * len(columns)
    axes.set_xlim(1 - margin, len(columns) + margin)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _matplotlib() -> tuple[Any, type[Figure]]:
    """The module and its Figure: no display, and no state shared with a caller's pyplot."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'pyguide[compare]'") from error
    return matplotlib, Figure


def _save(figure: Figure, path: str | Path) -> None:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image  # matplotlib needs it too

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # With a palette the file is a third as large; the other methods move rare colours visibly.
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE)
    with atomic_write(Path(path)) as temporary:
        image.save(temporary, format="png")


def _add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place in inches, so that cells are as large as their labels need."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / high, width / wide, height / high))


def _cell(layers: int) -> float:
    """Height of a layer's line."""
    cell = min(_LARGEST_CELL, max(_SMALLEST_CELL, _SMALL_MATRIX / layers))
    return min(cell, _LARGE_MATRIX / layers)


def _font(cell: float) -> float:
    """Size in points of labels that do not overlap."""
    return min(9.0, 0.62 * 72 * max(cell, _LINE))


def _text_width(names: Sequence[str], font: float) -> float:
    """Room for the longest of the labels."""
    return 0.58 * font / 72 * max(len(_short(name)) for name in names) + 0.1


def _without_degenerate(similarity: LayerSimilarity) -> Tensor:
    """The values, NaN where a layer has no variation: 0 is no measurement there."""
    values = similarity.values.clone()
    values[[layer in similarity.degenerate_rows for layer in similarity.rows]] = torch.nan
    values[:, [layer in similarity.degenerate_columns for layer in similarity.columns]] = torch.nan
    return values


def _mark_best(axes: Any, similarity: LayerSimilarity, cell: float) -> None:
    found = [
        (similarity.columns.index(match.best), row)
        for row, match in enumerate(similarity.best_matches()[0])
        if match.best is not None
    ]
    axes.plot(
        [column for column, _ in found],
        [row for _, row in found],
        "o",
        ms=min(6.0, 0.35 * 72 * cell),
        color="white",
        mec="black",
        mew=0.6,
        label="best match",
    )


def _label_layers(axis: Any, layers: Sequence[str], cell: float, **text: Any) -> None:
    """Name every layer, or every second, third, ... where the lines would overlap."""
    step = math.ceil(_LINE / cell)
    places = range(0, len(layers), step)
    axis.set_ticks(places, [_short(layers[place]) for place in places], **text)
    axis.set_tick_params(length=2)


def _short(name: str, longest: int = 40) -> str:
    """The name, without its middle where it has more characters than that."""
    if len(name) > longest:
        name = f"{name[: longest // 2]}…{name[len(name) - (longest - longest // 2 - 1) :]}"
    return name.replace("$", r"\$")  # else matplotlib takes what is between two for a formula


def _fitting(name: str, inches: float) -> str:
    """The name as the label of axes of that length."""
    return _short(name, int(inches / 0.085))


def _estimator(similarity: LayerSimilarity) -> str:
    return "debiased CKA" if similarity.debiased else "biased CKA"


def _title(similarity: LayerSimilarity) -> str:
    first, second = map(_short, similarity.names)
    whose = f"{first} with itself" if similarity.with_itself else f"{first} and {second}"
    batches = f" in batches of {similarity.batch_size}" if similarity.batch_size else ""
    counted = f"{similarity.samples} samples{batches}"
    return f"{whose}\n{_estimator(similarity)}, {counted}"
