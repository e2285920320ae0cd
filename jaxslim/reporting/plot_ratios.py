"""Plots of accuracy and size against the ratio of channels cut."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxslim.reporting import canvas
from jaxslim.reporting.canvas import BLUE, GREEN, SKY_BLUE, VERMILION, WINE
from jaxslim.reporting.results import Report


def plot_accuracy(report: Report) -> Figure | None:
    """Accuracy before and after fine-tuning, parameters and MACs against ratio; None without a sweep."""
    rows, full = sorted(report.sweep, key=lambda row: row.ratio), report.full
    if not rows:
        return None
    figure = canvas.new_figure(report.title, 5.0 if full else 3.2)
    panels = figure.subplots(2 if full else 1, 1, sharex=True, squeeze=False)[:, 0]
    panels[-1].set_xlabel("Ratio: share of channels cut")
    ratios, absorbed = [row.ratio for row in rows], any(row.plain_accuracy is not None for row in rows)
    first = "with absorption" if absorbed else "before fine-tuning"
    lines = [
        *_draw(panels[0], ratios, [row.accuracy for row in rows], first, BLUE, "o"),
        *_draw(panels[0], ratios, [row.plain_accuracy for row in rows], "without absorption", SKY_BLUE, "v"),
        *_draw(panels[0], ratios, [row.finetuned_accuracy for row in rows], "fine-tuned", VERMILION, "s"),
    ]
    canvas.legend_beside_title(panels[0], lines + _finish_accuracies(panels[0], report))
    panels[0].set_title("Top-1 accuracy (%)")
    if full:
        params = _draw(panels[1], ratios, [row.params / full.params for row in rows], "parameters", GREEN, "^")
        macs = _draw(panels[1], ratios, [row.macs / full.macs for row in rows], "MACs", WINE, "D")
        panels[1].set_title("Size (% of the full network)")
        panels[1].set_ylim(0, 108)
        canvas.legend_beside_title(panels[1], params + macs)
    return figure


def plot_compared(report: Report) -> Figure | None:
    """Accuracy before fine-tuning against ratio, a line for each way to train or cut; None without any."""
    if not report.compared:
        return None
    figure = canvas.new_figure(report.title, 3.6 + 0.18 * len(report.compared))
    panel = figure.subplots()
    panel.set_title("Top-1 accuracy before fine-tuning (%)")
    panel.set_xlabel("Ratio: share of channels cut")
    lines = []
    for (name, points), look in zip(report.compared.items(), canvas.looks(), strict=False):
        ratios, accuracies = zip(*sorted(points), strict=True)
        lines += _draw(panel, ratios, accuracies, name, *look)
    canvas.legend_below(figure, lines + _finish_accuracies(panel, report))
    return figure


def _draw(
    panel: Axes, ratios: Sequence[float], shares: Sequence[float | None], label: str, colour: str, marker: str
) -> list[Line2D]:
    """Draw a line through the shares that are known, as percentages."""
    pairs = zip(ratios, shares, strict=True)
    known = [(ratio, 100 * share) for ratio, share in pairs if share is not None and math.isfinite(share)]
    return panel.plot(*zip(*known, strict=True), color=colour, marker=marker, label=label) if known else []


def _finish_accuracies(panel: Axes, report: Report) -> list[Line2D]:
    """Draw a dashed line at the accuracy to compare with, and show at least 4 points, so that noise looks small."""
    lines = []
    if report.baseline:
        name, share = report.baseline
        label = f"{name} {share:.2%}"
        lines.append(panel.axhline(100 * share, color=canvas.GREY, linestyle="--", linewidth=1.2, label=label))
    middle, height = np.mean(panel.get_ylim()), np.ptp(panel.get_ylim())
    panel.set_ylim(middle - max(height, 4) / 2, middle + max(height, 4) / 2)
    return lines
