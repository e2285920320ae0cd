"""Graphs and plans as short text."""

from collections.abc import Sequence

import numpy as np

MOST_ROWS = 24
MOST_RANGES = 3


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; where there are many rows, the middle is left out and counted."""
    half = MOST_ROWS // 2
    left_out = len(rows) - 2 * half
    shown = [*rows[:half], *rows[-half:]] if left_out > 0 else rows
    widths = [max(map(len, column)) for column in zip(header, *shown, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *shown)]
    if left_out > 0:
        lines.insert(1 + half, f"... {left_out} more ...")
    return "\n".join(lines)


def unit_ranges(units: np.ndarray) -> str:
    """The units of an axis, for example `1-64`, or how many there are if they lie scattered."""
    distinct = np.unique(units)
    if not len(distinct):
        return "none"
    ranges = np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1)
    if len(ranges) > MOST_RANGES:
        return f"{np.count_nonzero(distinct)} units"
    return ",".join(str(one[0]) if len(one) == 1 else f"{one[0]}-{one[-1]}" for one in ranges)
