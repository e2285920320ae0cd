"""The plot of training against epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from jaxslim.reporting import canvas
from jaxslim.reporting.results import SMALL_SCALE, Report

_PANELS = {  # key of metrics.jsonl: title, factor, key of the same figure on the training images
    "test_loss": ("Loss", 1, "loss"),
    "accuracy": ("Top-1 accuracy (%)", 100, "train_accuracy"),
    "learning_rate": ("Learning rate", 1, None),
    "small_scales": (f"Scales under {SMALL_SCALE:g} (%)", 100, None),
}


def plot_curves(report: Report) -> Figure | None:
    """Loss, accuracy, learning rate and share of small scales against epochs, a colour a run; None without runs."""
    runs = {label: rows for label, rows in report.curves.items() if rows}
    if not runs:
        return None
    figure = canvas.new_figure(report.title, 4.6 + 0.18 * len(runs))
    panels = figure.subplot_mosaic(
        [["test_loss", "accuracy"], ["learning_rate", "small_scales"]], sharex=True, height_ratios=[3, 2]
    )
    for key, panel in panels.items():
        title, factor, training_key = _PANELS[key]
        panel.set_title(title)
        for number, ((label, rows), (colour, marker)) in enumerate(zip(runs.items(), canvas.looks(), strict=False)):
            epochs, step = _column(rows, "epoch"), max(1, len(rows) // 6)
            every = (number * step // len(runs), step)  # not all lines have their markers at the same epochs
            look: dict[str, Any] = {"color": colour, "linewidth": 1.5, "marker": marker, "markevery": every}
            # A row has the rate that its epoch began with.
            shape = "steps-pre" if key == "learning_rate" else "default"
            panel.plot(epochs, _column(rows, key, factor), drawstyle=shape, label=label, **look)
            if training_key:
                panel.plot(epochs, _column(rows, training_key, factor), linestyle=":", markersize=2.5, **look)
    rates = panels["learning_rate"]
    known = [rate for rows in runs.values() for rate in _column(rows, "learning_rate") if rate > 0]
    if known and max(known) > 10 * min(known):
        rates.set_yscale("log")
        rates.yaxis.set_major_formatter("{x:g}")
    rates.set_xlim(left=0)
    rates.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    for panel in (rates, panels["small_scales"]):
        panel.set_xlabel("Epoch")
    handles = [*rates.lines, Line2D([], [], color="black", label="test images")]
    handles.append(Line2D([], [], color="black", linestyle=":", label="training images"))
    canvas.legend_below(figure, handles)
    return figure


def _column(rows: Sequence[Mapping[str, Any]], key: str, factor: float = 1) -> list[float]:
    """A figure of each row; NaN where the row has none."""
    return [math.nan if row.get(key) is None else factor * row[key] for row in rows]
