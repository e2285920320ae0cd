"""The plot of how the scales of the normalisation layers are distributed."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxslim.reporting import canvas
from jaxslim.reporting.results import SMALL_SCALE, Report, finite, ratio_text


def plot_scales(report: Report) -> Figure | None:
    """Histograms of the |scale| values with the thresholds of cuts, on the same axes; None without values."""
    samples = {label: known for label, values in report.scales.items() if (known := finite(values)).size}
    if not samples:
        return None
    together = np.concatenate(list(samples.values()))
    # On a logarithmic axis the two heaps, used and unused, stand apart. The first bar holds all smaller values too.
    low = min(max(np.quantile(together, 0.001), 1e-7), SMALL_SCALE / 10)
    low, high = 10.0 ** math.floor(math.log10(low)), max(together.max() * 1.05, 10 * SMALL_SCALE)
    figure = canvas.new_figure(report.title, 0.8 + 1.8 * len(samples))
    panels = figure.subplots(len(samples), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (label, values) in zip(panels, samples.items(), strict=True):
        shares = np.full(values.size, 100 / values.size)
        panel.hist(np.clip(values, low, high), np.geomspace(low, high, 97), weights=shares, color=canvas.BLUE)
        panel.axvspan(low, SMALL_SCALE, color=canvas.VERMILION, alpha=0.10, linewidth=0, zorder=0)
        small = f"{np.mean(values < SMALL_SCALE):.1%} of {values.size} scales are under {SMALL_SCALE:g}"
        panel.set_title(f"{canvas.wrapped(label, 48)}: {small}")
        panel.set_ylabel("Scales (%)")
        _draw_thresholds(panel, report.thresholds.get(label, {}), low, high)
    panels[-1].set_xlabel(f"|scale| (under {low:g}: in the first bar)")
    panels[-1].set_xscale("log")
    panels[-1].set_xlim(low, high)
    panels[-1].xaxis.set_major_formatter("{x:g}")
    panels[-1].minorticks_off()
    return figure


def _draw_thresholds(panel: Axes, thresholds: dict[float, float], low: float, high: float) -> None:
    """A vertical line for each of up to three ratios, named at different heights so that names do not overlap."""
    for number, (ratio, threshold) in enumerate(canvas.spread(sorted(thresholds.items()), 3)):
        place = min(max(threshold, low), high)
        panel.axvline(place, color="black", linestyle="--", linewidth=1)
        side = "left" if place < SMALL_SCALE else "right"  # of the name at the line, so that it stays in the panel
        name, height, axes = f" cut at {ratio_text(ratio)} ", 0.9 - 0.2 * number, panel.get_xaxis_transform()
        box = {"facecolor": "white", "linewidth": 0, "pad": 0}
        panel.text(place, height, name, transform=axes, ha=side, fontsize=7.5, bbox=box)
