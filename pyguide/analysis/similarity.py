"""How similar the layers of two networks are, as a result that can be kept in files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyguide._version import __version__
from pyguide.files import atomic_write, read_json, write_json

__all__ = ["LayerSimilarity", "Match"]

_FORMAT = 1


class Match(NamedTuple):
    """A layer and the most similar layer of the other network."""

    layer: str
    #: None where there is nothing to choose from: a layer without variation, or NaN throughout.
    best: str | None
    #: Their similarity; NaN where `best` is None.
    value: float


@dataclass(frozen=True, eq=False)
class LayerSimilarity:
    """The CKA of every layer of one network with every layer of another.

    Attributes
    ----------
    values : Tensor
        (L1, L2) float64 on the CPU: row i, column j is layer i of the first network with
        layer j of the second.
    rows, columns : tuple of str
        Names of the layers in the order in which they run.
    row_shapes, column_shapes : tuple of tuple of int
        Shapes of their activations, of one sample.
    names : (str, str)
        What the two networks are called.
    samples, batches : int
        What was counted.
    debiased : bool
        Whether the values are debiased: in [-1, 1] and 0 on average for unrelated layers, of
        any width. Biased values are in [0, 1] and grow with the width over the batch size.
    degenerate_rows, degenerate_columns : tuple of str
        Layers without variation over the data; their similarity is 0.
    batch_size : int or None
        Samples of a full batch; biased values depend on it.
    with_itself : bool
        Whether a network was compared with itself, on one forward pass.

    Raises
    ------
    ValueError
        If the sizes do not fit each other, or a name is given twice.

    Examples
    --------
    >>> import torch
    >>> from pyguide.analysis.similarity import LayerSimilarity
    >>> similarity = LayerSimilarity(
    ...     values=torch.tensor([[0.9, 0.2], [0.1, 0.3]], dtype=torch.float64),
    ...     rows=("conv", "fc"), columns=("0", "1"),
    ...     row_shapes=((8, 4, 4), (10,)), column_shapes=((16,), (10,)),
    ...     names=("cnn", "mlp"), samples=1000, batches=4, debiased=True,
    ...     degenerate_rows=(), degenerate_columns=(), batch_size=256,
    ... )
    >>> for match in similarity.best_matches()[0]:
    ...     print(match.layer, match.best, match.value)
    conv 0 0.9
    fc 1 0.3
    """

    values: Tensor
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_shapes: tuple[tuple[int, ...], ...]
    column_shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, str]
    samples: int
    batches: int
    debiased: bool
    degenerate_rows: tuple[str, ...]
    degenerate_columns: tuple[str, ...]
    batch_size: int | None = None
    with_itself: bool = False

    def __post_init__(self) -> None:
        expected = len(self.rows), len(self.columns)
        if self.values.shape != expected or self.values.dtype != torch.float64:
            raise ValueError(
                f"values: expected float64 of shape {expected}, one row a name in rows and one "
                f"column a name in columns, got {self.values.dtype} {tuple(self.values.shape)}"
            )
        for side, layers, shapes, degenerate in (
            ("row", self.rows, self.row_shapes, self.degenerate_rows),
            ("column", self.columns, self.column_shapes, self.degenerate_columns),
        ):
            if len(set(layers)) != len(layers):
                raise ValueError(f"{side}s: a layer is named twice")
            if len(shapes) != len(layers):
                raise ValueError(f"{side}_shapes: expected {len(layers)}, got {len(shapes)}")
            if not set(degenerate) <= set(layers):
                raise ValueError(f"degenerate_{side}s: a layer that is not in {side}s")

    def best_matches(self) -> tuple[list[Match], list[Match]]:
        """The most similar layer of the other network, for each row and for each column.

        Of equal ones the first. Layers without variation and NaN are no matches; nor, where
        a network was compared with itself, is a layer its own.
        """
        values = self.values.nan_to_num(nan=-math.inf)
        for layer in self.degenerate_rows:
            values[self.rows.index(layer)] = -math.inf
        for layer in self.degenerate_columns:
            values[:, self.columns.index(layer)] = -math.inf
        if self.with_itself:
            for layer in set(self.rows) & set(self.columns):
                values[self.rows.index(layer), self.columns.index(layer)] = -math.inf
        return (
            _best(values, self.rows, self.columns),
            _best(values.T, self.columns, self.rows),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, with the versions that wrote it; None for NaN."""
        values = [[None if math.isnan(v) else v for v in row] for row in self.values.tolist()]
        return {
            "format": _FORMAT,
            "versions": {"pyguide": __version__, "torch": torch.__version__},
            "names": list(self.names),
            "estimator": "debiased" if self.debiased else "biased",
            "samples": self.samples,
            "batches": self.batches,
            "batch_size": self.batch_size,
            "with_itself": self.with_itself,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "row_shapes": [list(shape) for shape in self.row_shapes],
            "column_shapes": [list(shape) for shape in self.column_shapes],
            "degenerate_rows": list(self.degenerate_rows),
            "degenerate_columns": list(self.degenerate_columns),
            "values": values,
        }

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write similarity.npz and similarity.json into a folder and return their paths.

        The arrays of the .npz are ``values`` (float64), ``rows`` and ``columns`` (the layers'
        names). The JSON has everything, and is what :meth:`load` reads. The folder is made if
        it is missing; each file is replaced at once, or not at all.

        Raises
        ------
        ImportError
            Without numpy.
        OSError
            If a file cannot be written.
        """
        try:
            import numpy as np
        except ImportError as error:
            raise ImportError("an .npz needs numpy: pip install 'pyguide[compare]'") from error
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays, text = folder / "similarity.npz", folder / "similarity.json"
        with atomic_write(arrays) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                values=self.values.numpy(),
                rows=np.array(self.rows, dtype=np.str_),
                columns=np.array(self.columns, dtype=np.str_),
            )
        write_json(text, self.to_dict())
        return arrays, text

    @classmethod
    def load(cls, folder: str | Path) -> LayerSimilarity:
        """Read what :meth:`save` wrote into a folder.

        Raises
        ------
        FileNotFoundError
            If the folder has no similarity.json.
        ValueError
            If the file is damaged, or something else; the message names it and what is wrong.
        """
        path = Path(folder) / "similarity.json"
        try:
            saved = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error})") from error
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            raise ValueError(f"{path}: not a similarity of layers in format {_FORMAT}")
        try:
            return cls._from_dict(saved)
        except KeyError as error:
            raise ValueError(f"{path}: no {error} in it") from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_dict(cls, saved: dict[str, Any]) -> LayerSimilarity:
        values = [[math.nan if v is None else v for v in row] for row in saved["values"]]
        rows, columns = tuple(saved["rows"]), tuple(saved["columns"])
        first, second = saved["names"]
        return cls(
            values=torch.tensor(values, dtype=torch.float64).reshape(len(values), -1),
            rows=rows,
            columns=columns,
            row_shapes=tuple(map(tuple, saved["row_shapes"])),
            column_shapes=tuple(map(tuple, saved["column_shapes"])),
            names=(first, second),
            samples=saved["samples"],
            batches=saved["batches"],
            debiased=saved["estimator"] == "debiased",
            degenerate_rows=tuple(saved["degenerate_rows"]),
            degenerate_columns=tuple(saved["degenerate_columns"]),
            batch_size=saved["batch_size"],
            with_itself=saved["with_itself"],
        )


def _best(values: Tensor, layers: tuple[str, ...], others: tuple[str, ...]) -> list[Match]:
    best, indices = values.max(dim=1)
    return [
        Match(layer, None, math.nan) if value == -math.inf else Match(layer, others[index], value)
        for layer, value, index in zip(layers, best.tolist(), indices.tolist(), strict=True)
    ]
