"""A setting's rows as text."""

from __future__ import annotations

from typing import Any


def table(entry: dict[str, Any], name: str) -> str:
    """Medians and quartiles, in Markdown."""
    lines = [
        f"{name}\n",
        "| | step (ms) | time / unguided | peak memory (MiB) | memory / unguided |",
        "|---|---|---|---|---|",
    ]
    for row in entry["rows"]:
        if "failed" in row:
            lines.append(f"| {row['candidate']} | {row['failed']} | | | |")
            continue
        memory, ratio = row["memory"], row.get("time_ratio")
        cells = [
            row["candidate"],
            f"{1e3 * row['seconds']['median']:.4g}",
            f"{ratio['median']:.2f} ({ratio['q1']:.2f}–{ratio['q3']:.2f})" if ratio else "",
            f"{memory['peak'] / 2**20:.0f}" if isinstance(memory, dict) else "n/a",
            f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
