"""The plot of what each layer can lose: a small panel for each layer."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxslim.reporting import canvas
from jaxslim.reporting.canvas import BLUE, GREY, LIGHT, VERMILION
from jaxslim.reporting.results import LayerRow, Sensitivity

_COLUMNS = 4


def plot_layers(result: Sensitivity) -> Figure:
    """Accuracy against the share of a layer cut: each panel has the curve of its layer, those of the others in grey."""
    layers = result.layers
    columns = min(_COLUMNS, max(len(layers), 1))
    rows = max(math.ceil(len(layers) / columns), 1)
    figure = canvas.new_figure(result.title, 1.5 * rows + 1.2)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    lowest = min([result.accuracy - 2 * result.tolerance, *(row.accuracy for row in result.rows)])
    for panel, (name, measured) in zip(panels, layers.items(), strict=False):
        for other in layers.values():
            panel.plot(*_points(result, other), color=LIGHT, linewidth=0.8)
        panel.axhline(100 * (result.accuracy - result.tolerance), color=GREY, linestyle="--", linewidth=0.9)
        panel.plot(*_points(result, measured), color=BLUE, marker="o", markersize=3, linewidth=1.5)
        _mark(panel, result, name, measured)
        panel.set_title(_title(name), fontsize=8, pad=4)
    panels[0].set_xlim(-0.03, 1)
    panels[0].set_ylim(100 * lowest - 3, 100 * result.accuracy + 3)
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    for number, panel in enumerate(panels[: len(layers)]):
        if number + columns >= len(layers):  # nothing is below
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("Share cut", fontsize=8)
    figure.supylabel("Top-1 accuracy (%)", fontsize=9)
    handles = [
        Line2D([], [], color=BLUE, marker="o", markersize=3, label="this layer cut, all others whole"),
        Line2D([], [], color=VERMILION, marker="D", linestyle="", label="largest harmless ratio"),
        Line2D([], [], color=LIGHT, label="the other layers"),
        Line2D([], [], color=GREY, linestyle="--", label="uncut minus the tolerance"),
    ]
    canvas.legend_below(figure, handles)
    return figure


def _title(name: str) -> str:
    """The name of a layer, on lines that break behind slashes."""
    return canvas.wrapped(name.replace("/", "/ "), 22).replace("/ ", "/")


def _points(result: Sensitivity, rows: list[LayerRow]) -> tuple[list[float], list[float]]:
    """Ratios and accuracies in per cent, from the uncut network on."""
    return [0.0, *(row.ratio for row in rows)], [100 * result.accuracy, *(100 * row.accuracy for row in rows)]


def _mark(panel: Axes, result: Sensitivity, name: str, rows: list[LayerRow]) -> None:
    chosen = result.ratios[name]
    heights = {0.0: result.accuracy} | {row.ratio: row.accuracy for row in rows}
    panel.plot([chosen], [100 * heights[chosen]], color=VERMILION, marker="D", markersize=5, linestyle="", zorder=3)
