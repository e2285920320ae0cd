"""What each layer of a network can lose: a table of layers against ratios, and the files."""

import dataclasses
import io
import json
from pathlib import Path

from jaxslim.files import write_whole
from jaxslim.reporting.canvas import report_style
from jaxslim.reporting.plot_layers import plot_layers
from jaxslim.reporting.results import Report, Sensitivity, Table, ratio_text
from jaxslim.reporting.terminal import show as show_report


def table(result: Sensitivity) -> Table:
    """Accuracies in per cent: a row for each layer, a column for each ratio, and the largest harmless ratio."""
    ratios = sorted({row.ratio for row in result.rows})
    rows = []
    for layer, measured in result.layers.items():
        known = {row.ratio: f"{100 * row.accuracy:.1f}" for row in measured}
        rows.append([layer, *(known.get(ratio, "") for ratio in ratios), ratio_text(result.ratios[layer])])
    title = f"Accuracy (%) with a share of one layer cut; uncut {result.accuracy:.2%}"
    return Table(title, ["Layer", *map(ratio_text, ratios), "Harmless"], rows)


def show(result: Sensitivity) -> None:
    """Print the table and the notes on standard output."""
    show_report(Report(title=result.title, more_tables=(table(result),), notes=result.notes))


def write(result: Sensitivity, folder: Path) -> Path:
    """Write sensitivity.json and sensitivity.png into `folder`, and return the path of the first."""
    picture = io.BytesIO()
    with report_style():
        plot_layers(result).savefig(picture, format="png")
    text = json.dumps(dataclasses.asdict(result), indent=2, ensure_ascii=False).encode(errors="backslashreplace")
    write_whole(folder / "sensitivity.png", picture.getvalue())
    return write_whole(folder / "sensitivity.json", text)
