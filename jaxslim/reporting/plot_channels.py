"""The plot of kept and cut channels of every layer."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxslim.reporting import canvas
from jaxslim.reporting.results import Report, SweepRow, ratio_text

_LARGEST_RATIO = 0.7  # the bars of larger ratios are too low to compare
_NAMED_LAYERS = 40  # more names than this do not fit under the bars
_COUNTED_LAYERS = 24  # nor do more numbers above them


def plot_channels(report: Report) -> Figure | None:
    """Kept and cut channels of every layer for up to three ratios; None without a sweep or a layer."""
    rows, names, whole = shown_rows(report.sweep), list(report.channels), np.array(list(report.channels.values()))
    if not rows or not names:
        return None
    places = np.arange(len(names))
    figure = canvas.new_figure(report.title, 1.2 + 1.75 * len(rows))
    panels = figure.subplots(len(rows), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    handles = {}
    for panel, row in zip(panels, rows, strict=True):
        kept = np.array([row.kept[name] for name in names])
        handles["cut"] = panel.bar(places, whole, color=canvas.LIGHT, width=0.84, label="cut")
        handles["kept"] = bars = panel.bar(places, kept, color=canvas.BLUE, width=0.84, label="kept")
        if protected := [place for place in places if names[place] in row.protected]:
            above, label = whole[protected] + 0.05 * whole.max(), "protected by min_channels"
            (handles["protected"],) = panel.plot(protected, above, "v", color=canvas.VERMILION, label=label)
        if len(names) <= _COUNTED_LAYERS:
            panel.bar_label(bars, fontsize=7)
        panel.set_title(f"Ratio {ratio_text(row.ratio)}: {kept.sum()} of {whole.sum()} channels kept")
        panel.set_ylabel("Channels")
    panels[0].set_ylim(0, 1.12 * whole.max())
    panels[0].set_xlim(-0.7, len(names) - 0.3)
    _label_layers(panels[-1], names)
    canvas.legend_beside_title(panels[0], list(handles.values()))
    return figure


def shown_rows(sweep: Sequence[SweepRow]) -> list[SweepRow]:
    """Up to three rows spread over the ratios up to 0.7; the smallest ratio when all are larger."""
    rows = sorted(sweep, key=lambda row: row.ratio)
    return canvas.spread([row for row in rows if 0 < row.ratio <= _LARGEST_RATIO + 1e-6] or rows[:1], 3)


def layer_names(names: Sequence[str]) -> list[str]:
    """`names` short enough for under bars: without the path that all share, and with the middle left out."""
    paths = [name.split("/") for name in names]
    for end in (0, -1):
        while min(map(len, paths)) > 1 and len({path[end] for path in paths}) == 1 < len(paths):
            for path in paths:
                path.pop(end)
    texts = ["/".join(path) for path in paths]
    return [text if len(text) <= 24 else f"{text[:8]}\N{HORIZONTAL ELLIPSIS}{text[-15:]}" for text in texts]


def _label_layers(panel: Axes, names: Sequence[str]) -> None:
    if len(names) <= _NAMED_LAYERS:
        texts = layer_names(names)
        fits = max(map(len, texts)) * len(texts) <= 90
        panel.set_xticks(range(len(names)), texts, rotation=0 if fits else 90)
    else:
        panel.set_xlabel(f"Layer, in network order (1 to {len(names)})")
        marks = [0, *range(9, len(names), 10 * math.ceil(len(names) / 200))]
        panel.set_xticks(marks, [str(mark + 1) for mark in marks])
