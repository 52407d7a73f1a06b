"""What ``pyguide compare`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pyguide.analysis.similarity import LayerSimilarity
from pyguide.capture import LayerInfo

__all__ = ["layer_list", "match_table"]


def match_table(similarity: LayerSimilarity) -> str:
    """The best match of each layer of the first network, in the order in which they run."""
    matches = similarity.best_matches()[0]
    first, second = similarity.names
    estimator = "debiased" if similarity.debiased else "biased"
    whom = "its other layers" if similarity.with_itself else second
    title = (
        f"{first}: the best match of each layer among {whom}\n{estimator} CKA, "
        f"{similarity.samples} samples in batches of {similarity.batch_size}\n"
    )
    wide = max(len(match.layer) for match in matches)
    lines = [
        f"{match.layer:<{wide}}  "
        + ("none" if match.best is None else f"{match.value:7.4f}  {match.best}")
        for match in matches
    ]
    for name, flat in zip(
        similarity.names,
        (similarity.degenerate_rows, similarity.degenerate_columns),
        strict=True,
    ):
        if flat:
            lines.append(f"without variation over the data in {name}: {', '.join(flat)}")
    return "\n".join([title, *lines])


def layer_list(name: str, layers: Sequence[LayerInfo]) -> str:
    """The layers of a network with types and shapes, named as --layers takes them."""
    calls = Counter(layer.path for layer in layers)
    lines = [name]
    for layer in layers:
        path = f"{layer.path}:{layer.call}" if calls[layer.path] > 1 else layer.path
        lines.append(f"  {path:<32} {layer.type:<20} {tuple(layer.shape[1:])}")
    return "\n".join(lines)
