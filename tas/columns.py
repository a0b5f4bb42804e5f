"""Rows of text under each other."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Rows of equally many cells as lines: the first columns, of words, begin at the left, numbers end at the right."""
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [cell.ljust(length) if place < words else cell.rjust(length) for place, (cell, length) in enumerate(cells)]
        for cells in (zip(row, lengths, strict=True) for row in rows)
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)
