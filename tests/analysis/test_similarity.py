"""The result of a comparison: what it says, and that files keep all of it."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from pyguide.analysis import LayerSimilarity


def test_best_matches_both_ways(new_similarity):
    rows, columns = new_similarity([[0.1, 0.7, 0.3], [0.2, 0.6, -0.1]]).best_matches()
    assert rows == [("layer0.conv", "blocks.1", 0.7), ("layer1.conv", "blocks.1", 0.6)]
    assert columns == [
        ("blocks.0", "layer1.conv", 0.2),
        ("blocks.1", "layer0.conv", 0.7),
        ("blocks.2", "layer0.conv", 0.3),
    ]


def test_layers_without_variation_and_nan_are_no_matches(new_similarity):
    similarity = new_similarity(
        [[0.0, -0.2, math.nan], [0.0, 0.0, 0.0]],
        degenerate_rows=("layer1.conv",),
        degenerate_columns=("blocks.0",),
    )
    rows, columns = similarity.best_matches()
    assert rows[0] == ("layer0.conv", "blocks.1", -0.2)
    for nothing in (rows[1], columns[0], columns[2]):
        assert nothing.best is None
        assert math.isnan(nothing.value)


def test_in_one_network_a_layer_is_not_its_own_match(new_similarity):
    itself = new_similarity(
        [[1.0, 0.4, 0.3], [0.4, 1.0, 0.5]],
        rows=("a", "b"),
        columns=("a", "b", "c"),
        with_itself=True,
    )
    assert [match.best for match in itself.best_matches()[0]] == ["b", "c"]
    other = dataclasses.replace(itself, with_itself=False)
    assert [match.best for match in other.best_matches()[0]] == ["a", "b"]


def test_files_keep_everything(new_similarity, tmp_path):
    similarity = new_similarity(
        [[1 / 3, math.nan], [-1e-17, 0.0]], degenerate_columns=("blocks.1",), debiased=False
    )
    arrays, text = similarity.save(tmp_path / "new" / "folder")
    loaded = LayerSimilarity.load(tmp_path / "new" / "folder")
    assert torch.equal(loaded.values.isnan(), similarity.values.isnan())
    assert torch.equal(loaded.values.nan_to_num(9), similarity.values.nan_to_num(9))
    for field in dataclasses.fields(similarity):
        if field.name != "values":
            assert getattr(loaded, field.name) == getattr(similarity, field.name)
    with np.load(arrays, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["values"], similarity.values.numpy())
        assert saved["rows"].tolist() == list(similarity.rows)
        assert saved["columns"].tolist() == list(similarity.columns)
    assert json.loads(text.read_text())["estimator"] == "biased"
    assert sorted(path.name for path in text.parent.iterdir()) == [text.name, arrays.name]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 99}, "format 1"),
        ({"values": [[0.1], [0.2]]}, r"float64 of shape \(2, 2\).*\(2, 1\)"),
        ({"values": [[0.1, 0.2], [0.3]]}, "similarity.json: "),
        ({"values": []}, "similarity.json: "),
        ({"rows": ["a", "a"]}, "named twice"),
        ({"row_shapes": []}, "row_shapes: expected 2, got 0"),
        ({"degenerate_rows": ["z"]}, "degenerate_rows"),
        ({"columns": None}, "similarity.json: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said(new_similarity, tmp_path, changed, message):
    _, path = new_similarity(torch.eye(2)).save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ValueError, match=message):
        LayerSimilarity.load(tmp_path)


def test_damaged_and_missing_files_are_named(new_similarity, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"similarity\.json"):
        LayerSimilarity.load(tmp_path)
    _, path = new_similarity(torch.eye(2)).save(tmp_path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"similarity\.json: not JSON"):
        LayerSimilarity.load(tmp_path)
    saved = json.loads(whole)
    del saved["samples"]
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"similarity\.json: no 'samples'"):
        LayerSimilarity.load(tmp_path)


def test_sizes_and_types_are_checked(new_similarity):
    similarity = new_similarity(torch.eye(2))
    with pytest.raises(ValueError, match=r"values: expected float64 .* got torch.float32"):
        dataclasses.replace(similarity, values=torch.eye(2))
