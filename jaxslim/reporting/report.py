"""What an experiment found: tables on the terminal and in Markdown, CSV and JSON for programs, plots for people."""

import csv
import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from jaxslim.files import write_whole
from jaxslim.reporting.results import SMALL_SCALE, PipelineRow, Report, SweepRow, Table, finite
from jaxslim.reporting.tables import tables_of
from jaxslim.reporting.terminal import show

__all__ = ["PipelineRow", "Report", "SweepRow", "Table", "markdown", "show", "write"]

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_PICTURE_TITLES = {
    "compared.png": "Accuracy before fine-tuning against ratio",
    "scales.png": "Distribution of the scales",
    "curves.png": "Training",
}


def markdown(report: Report, pictures: Collection[str] = ()) -> str:
    """The report as Markdown: tables, pictures and notes. `pictures` names the picture files that exist."""
    parts, tables = [f"# {_escape(report.title)}"], tables_of(report)
    for table in tables:
        rule = ["---", *(["---:" if table.right else "---"] * (len(table.header) - 1))]
        lines = [[_escape(cell) for cell in row] for row in (table.header, *table.rows)]
        lines.insert(1, rule)
        parts += [f"## {_escape(table.title)}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        if table.picture in pictures:
            parts.append(f"![{table.title}]({table.picture})")
    for picture, title in _PICTURE_TITLES.items():
        if picture in pictures and picture not in (table.picture for table in tables):
            parts += [f"## {title}", f"![{title}]({picture})"]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {_escape(name)}: {_escape(note)}" for name, note in report.notes.items())]
    return "\n\n".join(parts) + "\n"


def write(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write report.md, pipeline.csv, sweep.csv, report.json, and the plots of `plots.draw`.

    All content is ready in memory before the first file is written, and each file replaces an older one in one step.
    Files that would be empty are left out. Returns the paths of the files written.
    """
    from jaxslim.reporting.plots import draw  # matplotlib takes half a second

    pictures = draw(report)
    files = {"report.md": markdown(report, pictures).encode(errors="backslashreplace")}
    if report.pipeline:
        files["pipeline.csv"] = _csv([dataclasses.asdict(row) for row in report.pipeline])
    if report.sweep:
        files["sweep.csv"] = _csv([_flat(row) for row in report.sweep])
    summaries = {label: _summary(values) for label, values in report.scales.items()}
    record = _plain(dataclasses.asdict(dataclasses.replace(report, scales={})) | {"scales": summaries})
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    files["report.json"] = text.encode(errors="backslashreplace")
    return [write_whole(Path(folder, name), content) for name, content in (files | pictures).items()]


def _escape(text: str) -> str:
    """`text` on one line without Markdown. Underscores inside words and lists of numbers mean nothing in Markdown."""
    return re.sub(r"[\\`*<|~$]|&(?=#?\w+;)|\[(?!\d)|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(text.split()))


def _summary(scales: np.ndarray) -> dict[str, Any]:
    known = finite(scales)
    if not known.size:
        return {"count": 0}
    return {
        "count": known.size,
        "min": known.min(),
        "quantiles": {str(share): np.quantile(known, share) for share in _QUANTILES},
        "max": known.max(),
        "share_under_0.01": np.mean(known < SMALL_SCALE),
    }


def _flat(row: SweepRow) -> dict[str, Any]:
    record = dataclasses.asdict(row) | {"protected": " ".join(row.protected), "kept_channels": sum(row.kept.values())}
    return record | {f"kept {layer}": count for layer, count in record.pop("kept").items()}


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
