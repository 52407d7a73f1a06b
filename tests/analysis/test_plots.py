"""Pictures of a comparison: what is drawn where."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from pyguide.analysis.plots import (
    best_matches_figure,
    heatmap_figure,
    plot_best_matches,
    plot_heatmap,
)


def marks(axes, color):
    """Places of the only line of markers of that colour."""
    (line,) = (line for line in axes.lines if line.get_color() == color)
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def test_heatmap_has_the_values_from_the_bottom_left(new_similarity):
    similarity = new_similarity([[0.1, 0.7, 0.3], [0.2, 0.4, 0.6]])
    axes, bar = heatmap_figure(similarity).axes
    (image,) = axes.images
    torch.testing.assert_close(torch.tensor(image.get_array()), similarity.values)
    assert image.get_clim() == (0, 1)
    # Row 0 and column 0 at the bottom left.
    assert axes.get_ylim() == (-0.5, 1.5)
    assert axes.get_xlim() == (-0.5, 2.5)
    assert labels(axes.yaxis) == list(similarity.rows)
    assert labels(axes.xaxis) == list(similarity.columns)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("cnn", "mlp")
    assert marks(axes, "white") == [(1, 0), (2, 1)]
    assert bar.get_ylabel() == "debiased CKA"
    assert "1000 samples in batches of 256" in axes.get_title()


def test_names_are_not_taken_for_formulas(new_similarity, tmp_path):
    similarity = new_similarity([[0.1, 0.7]], rows=("$\\frac$",), columns=("a", "b"))
    for plot in (plot_heatmap, plot_best_matches):  # Matplotlib raises for this formula.
        plot(similarity, tmp_path / f"{plot.__name__}.png")
        assert (tmp_path / f"{plot.__name__}.png").read_bytes().startswith(b"\x89PNG")


def test_heatmap_shows_what_is_below_zero_and_what_is_no_value(new_similarity):
    similarity = new_similarity(
        [[-0.1, 0.7, 0.0], [-0.01, math.nan, 0.0]], degenerate_columns=("blocks.2",)
    )
    axes, bar = heatmap_figure(similarity).axes
    (image,) = axes.images
    shown = image.get_array()
    assert image.cmap(image.norm(shown[0, 0])) == (0, 0, 0, 1)
    assert image.cmap(image.norm(shown[1, 0])) == image.cmap(0.0)  # Noise looks like 0.
    assert "black below -0.05" in bar.get_ylabel()
    assert shown.mask.tolist() == [[False, False, True], [False, True, True]]
    assert "grey: no variation" in axes.get_title()


@pytest.mark.parametrize(("layers", "named"), [(60, 60), (200, 67)])
def test_labels_of_many_layers_do_not_overlap(new_similarity, layers, named):
    names = tuple(f"layer4.{i}.downsample.conv" for i in range(layers))
    similarity = new_similarity(torch.rand(layers, layers), rows=names, columns=names)
    figure = heatmap_figure(similarity)
    axes = figure.axes[0]
    figure.draw_without_rendering()
    whole = figure.bbox
    for axis, side in ((axes.yaxis, "height"), (axes.xaxis, "width")):
        boxes = [tick.get_window_extent() for tick in axis.get_ticklabels()]
        assert len(boxes) == named
        thickness = max(getattr(box, side) for box in boxes)
        first, second = axis.get_ticklocs()[:2]
        step = getattr(axes.bbox, side) / layers * (second - first)
        assert thickness < 1.25 * step  # A box has room for what these letters lack.
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.x1 for box in boxes)


def test_best_matches_by_value_and_place(new_similarity):
    similarity = new_similarity(
        [[0.1, 0.7, 0.3], [0.0, 0.0, 0.0], [0.2, 0.4, 0.6]], degenerate_rows=("layer1.conv",)
    )
    values, places = best_matches_figure(similarity).axes
    assert marks(values, "#0072B2") == [(0.7, 0), (0.6, 2)]
    assert marks(places, "#D55E00") == [(2, 0), (3, 2)]
    assert labels(values.yaxis) == list(similarity.rows)
    assert labels(places.yaxis) == ["blocks.1", "none", "blocks.2"]
    assert "mlp" in places.get_xlabel()


@pytest.mark.parametrize(("plot", "layers"), [(plot_heatmap, 60), (plot_best_matches, 20)])
def test_files_are_small_pngs(new_similarity, tmp_path, plot, layers):
    path = tmp_path / "picture.png"
    plot(new_similarity(torch.rand(layers, layers)), path)
    assert path.stat().st_size < 100_000
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
