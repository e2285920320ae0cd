"""Graphs and plans as short text."""

from collections.abc import Sequence

import numpy as np

MOST_ROWS = 24
MOST_RANGES = 3


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], most: int | None = MOST_ROWS) -> str:
    """Aligned columns, those of numbers to the right; of more than `most` rows the middle is left out and counted."""
    half = len(rows) if most is None else most // 2
    left_out = len(rows) - 2 * half
    shown = [*rows[:half], *rows[-half:]] if left_out > 0 else rows
    cells = list(zip(header, *shown, strict=True))
    adjust = [str.rjust if all(map(_is_number, column[1:])) else str.ljust for column in cells]
    widths = [max(map(len, column)) for column in cells]
    lines = [
        "  ".join(own(cell, width) for own, cell, width in zip(adjust, row, widths, strict=True)).rstrip()
        for row in (header, *shown)
    ]
    if left_out > 0:
        lines.insert(1 + half, f"... {left_out} more ...")
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text.rstrip("%").isdecimal()


def unit_ranges(units: np.ndarray) -> str:
    """The units of an axis, for example `1-64`, or how many there are if they lie scattered."""
    distinct = np.unique(units)
    if not len(distinct):
        return "none"
    ranges = np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1)
    if len(ranges) > MOST_RANGES:
        return f"{np.count_nonzero(distinct)} units"
    return ",".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in ranges)
