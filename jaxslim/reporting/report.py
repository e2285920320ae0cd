"""What an experiment found: tables on the terminal and in Markdown, CSV and JSON for programs, pictures for people."""

import csv
import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxslim.errors import InputError
from jaxslim.files import write_whole
from jaxslim.reporting import plots, tables
from jaxslim.reporting.results import Report, Stage, SweepRow, Table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Report", "Stage", "SweepRow", "Table", "show", "table", "write"]

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def table(report: Report) -> str:
    """The report as Markdown: pipeline, accuracy and size against ratio, architecture against ratio, then notes.

    Args:
      report: what was measured; a table that would have no rows is left out.

    Returns:
      Markdown that ends in a newline. Accuracies are percentages, MACs are for one image.
    """
    return tables.markdown(report, ())


def show(report: Report, console: "Console | None" = None) -> None:
    """Print the tables and notes of `table` on the terminal, 80 columns wide when piped.

    Args:
      report: what was measured.
      console: where to print; standard output by default.
    """
    import rich.console
    import rich.table
    from rich.measure import Measurement
    from rich.text import Text

    console = console or rich.console.Console()
    endless = console.options.update(max_width=10_000)
    console.print(Text(report.title, style="bold"))  # Text, because a plain string may hold rich's markup
    for one in tables.tables(report):
        for least in (24, 12, 8, 0):  # the widest columns of text that the terminal holds
            grid = tables.grid(one, least)
            if Measurement.get(console, endless, grid).maximum <= console.width:
                break
        console.print()
        console.print(Text(one.title, style="italic"))
        console.print(grid)
    if report.notes:
        notes = rich.table.Table.grid(padding=(0, 2))
        for name, note in report.notes.items():
            notes.add_row(Text(name, style="dim"), Text(note, overflow="fold"))
        console.print()
        console.print(notes)


def write(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write report.md, pipeline.csv, sweep.csv, report.json, and accuracy, compared, channels and scales.png.

    Every file is made in memory before the first is written, and replaces an older one in one step.

    Args:
      report: what was measured; files that would hold nothing are not written.
      folder: where to; created when missing.

    Returns:
      Paths of the files written.

    Raises:
      InputError: the folder cannot be created.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot create the folder {folder} ({error.strerror}); give one that can be written."
        ) from error

    drawn = (
        ("accuracy.png", plots.accuracy(report)),
        ("compared.png", plots.compared(report)),
        ("channels.png", plots.channels(report)),
        ("scales.png", plots.scales(report)),
    )
    pictures = {name: png for name, png in drawn if png is not None}
    files = {"report.md": tables.markdown(report, pictures).encode(errors="backslashreplace")}
    if report.stages:
        files["pipeline.csv"] = _csv([dataclasses.asdict(stage) for stage in report.stages])
    if report.sweep:
        files["sweep.csv"] = _csv([_flat(row) for row in report.sweep])
    record = json.dumps(_plain(_record(report)), indent=2, ensure_ascii=False, allow_nan=False)
    files["report.json"] = record.encode(errors="backslashreplace")
    files |= pictures
    return [write_whole(folder / name, content) for name, content in files.items()]


def _record(report: Report) -> dict[str, Any]:
    scales = {label: _summary(values) for label, values in report.scales.items()}
    return dataclasses.asdict(dataclasses.replace(report, scales={})) | {"scales": scales}


def _summary(values: np.ndarray) -> dict[str, Any]:
    finite = plots.finite(values)
    if not finite.size:
        return {"count": 0}
    return {
        "count": finite.size,
        "min": finite.min(),
        "quantiles": {str(share): np.quantile(finite, share) for share in _QUANTILES},
        "max": finite.max(),
        "share_under_0.01": np.mean(finite < plots.SMALL_SCALE),
    }


def _flat(row: SweepRow) -> dict[str, Any]:
    record = dataclasses.asdict(row)
    kept = record.pop("kept")
    record["protected"] = " ".join(row.protected)
    record["widths"] = " ".join(map(str, row.widths or ()))
    return record | {"kept_channels": sum(kept.values())} | {f"kept {layer}": count for layer, count in kept.items()}


def _csv(records: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: NumPy's numbers as Python's, tuples as lists, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
