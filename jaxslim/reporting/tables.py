"""The tables of a report, as text: for the terminal and as Markdown."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jaxslim.reporting import plots
from jaxslim.reporting.results import Table

if TYPE_CHECKING:
    import rich.table

    from jaxslim.reporting.results import Report, Stage

_RATIOS_ABREAST = 8  # columns of ratios that an 80-column terminal holds beside a layer's name


def tables(report: Report) -> list[Table]:
    """The tables that the report has rows for."""
    found = []
    if report.stages:
        found.append(_pipeline(report.stages))
    if report.sweep:
        found += [_sizes(report), *_architectures(report)]
    return [*found, *report.tables]


def grid(one: Table, least: int) -> rich.table.Table:
    """`one` for the terminal; headers and notes wrap between words, in columns of at least `least` characters."""
    import rich.box
    import rich.table
    from rich.text import Text

    grid = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    columns: list[Sequence[str]] = [*zip(one.header, *one.rows, strict=True)]
    if one.right:
        columns[1:] = [_wrapped(column, least) for column in columns[1:]]
    for index, column in enumerate(columns):
        grid.add_column(Text(column[0]), justify="right" if one.right and index else "left", overflow="fold")
    for row in list(zip(*columns, strict=True))[1:]:
        grid.add_row(*map(Text, row))
    return grid


def _wrapped(column: Sequence[str], least: int) -> list[str]:
    numbers = [len(cell) for cell in column[1:] if len(cell) <= 16]  # the longest is "20.04 M (100.0%)"
    width = max(least, 1, *numbers)
    return [textwrap.fill(cell, width, break_long_words=False, break_on_hyphens=False) for cell in column]


def _pipeline(stages: Sequence[Stage]) -> Table:
    rows = [
        ["Top-1 accuracy (%)", *(_percent(stage.accuracy) for stage in stages)],
        ["Parameters", *(_params(stage.params) for stage in stages)],
        ["MACs (multiply-accumulates)", *(_macs(stage.macs) for stage in stages)],
    ]
    if any(stage.note for stage in stages):
        rows.append(["Note", *(stage.note for stage in stages)])
    return Table("Pipeline", ["", *(stage.name for stage in stages)], rows, "")


def _sizes(report: Report) -> Table:
    sweep = report.sweep
    params, macs = report.full or (None, None)
    columns = {
        "Ratio": [plots.ratio_text(row.ratio) for row in sweep],
        "Accuracy (%)": [_percent(row.accuracy) for row in sweep],
        "Really cut (%)": [_percent(row.verified_accuracy) for row in sweep],
        "Logits differ by": [_missing(row.logits_difference, ".1e") for row in sweep],
        "Fine-tuned (%)": [_percent(row.finetuned_accuracy) for row in sweep],
        "Parameters": [_params(row.params) + _share(row.params, params) for row in sweep],
        "MACs": [_macs(row.macs) + _share(row.macs, macs) for row in sweep],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [list(cells) for cells in zip(*columns.values(), strict=True)]
    return Table(
        "Accuracy, parameters and MACs (multiply-accumulates) against ratio", list(columns), rows, "accuracy.png"
    )


def _architectures(report: Report) -> list[Table]:
    title, picture = "Architecture against ratio", "channels.png"
    sweep = report.sweep
    protected = any(row.protected for row in sweep)
    if all(row.widths is not None for row in sweep):
        header = ["Ratio", "Architecture", *(["Protected layers"] if protected else [])]
        rows = [
            [plots.ratio_text(row.ratio), _widths(row.widths or ()), *([_some(row.protected)] if protected else [])]
            for row in sweep
        ]
        return [Table(title, header, rows, picture, right=False)]
    parts = []
    for start in range(0, len(sweep), _RATIOS_ABREAST):
        abreast = sweep[start : start + _RATIOS_ABREAST]
        header = ["Channels kept", "All", *(plots.ratio_text(row.ratio) for row in abreast)]
        rows = [
            [layer, str(channels), *(f"{row.kept[layer]}{'!' * (layer in row.protected)}" for row in abreast)]
            for layer, channels in report.channels.items()
        ]
        rows.append(["Total", str(sum(report.channels.values())), *(str(sum(row.kept.values())) for row in abreast)])
        if any(row.protected for row in abreast):
            header[0] += " (! = protected)"
        parts.append(Table(title if start == 0 else f"{title}, continued", header, rows, picture if start == 0 else ""))
    return parts


def markdown(report: Report, pictures: Iterable[str]) -> str:
    """The tables and notes as Markdown, with those `pictures` that belong to them."""
    parts = [f"# {_escape(report.title)}"]
    for one in tables(report):
        rule = ["---", *(["---:" if one.right else "---"] * (len(one.header) - 1))]
        lines = [[_escape(cell) for cell in row] for row in (one.header, *one.rows)]
        lines.insert(1, rule)
        parts += [f"## {one.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        if one.picture in pictures:
            parts.append(f"![{one.title}]({one.picture})")
    if "scales.png" in pictures:
        parts += ["## BatchNorm scales", "![Distribution of the BatchNorm scales](scales.png)"]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {_escape(name)}: {_escape(note)}" for name, note in report.notes.items())]
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """`text` on one line and free of Markdown; underscores inside words and lists of numbers mean nothing there."""
    return re.sub(r"[\\`*<|~$]|&(?=#?\w+;)|\[(?!\d)|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(text.split()))


def _missing(value: float | None, form: str) -> str:
    """`value` as text: nothing when it was not measured, n/a when it was and is no number."""
    if value is None:
        return ""
    return format(value, form) if math.isfinite(value) else "n/a"


def _percent(share: float | None) -> str:
    return _missing(None if share is None else 100 * share, ".2f")


def _share(part: int, whole: int | None) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def _params(count: int) -> str:
    if count >= 1e6:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.2f} k" if count >= 1e3 else str(count)


def _macs(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e8 else _params(count)


def _widths(widths: Sequence[int | str]) -> str:
    return f"[{', '.join(repr(width) if isinstance(width, str) else str(width) for width in widths)}]"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
