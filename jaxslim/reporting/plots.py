"""The pictures of a report, as PNG bytes. matplotlib loads when the first is drawn, and pyplot never does."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxslim.reporting.results import Report, SweepRow

SMALL_SCALE = 1e-2
"""Scales under this are counted as switched off."""

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _VERMILION, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
_MANY = (_BLUE, _VERMILION, _GREEN, _PURPLE, "#E69F00", "#56B4E9", "#000000", "#B8A000")
_CUT, _QUIET, _INK = "#D9D9D9", "#767676", "#222222"
_INCHES = 7.2
_DPI = 150
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _QUIET,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": "#E8E8E8",
}
_KEPT_LABEL, _CUT_LABEL, _HELD_LABEL = "kept", "cut", "protected by min_channels"
_NAMED_LAYERS = 40  # more names than this do not fit under the bars
_COUNTED_LAYERS = 24  # nor do more numbers inside them


def finite(values: np.ndarray) -> np.ndarray:
    """The finite ones of `values`, flat, as float64."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def ratio_text(ratio: float) -> str:
    """`ratio` without the noise of binary fractions: 0.0, 0.7, 0.75."""
    return str(round(float(ratio), 4))


def accuracy(report: Report) -> bytes | None:
    """Accuracy, parameters and MACs against the ratio of channels cut.

    Args:
      report: what was measured; only `sweep` and the size of the full network are drawn.

    Returns:
      A PNG file, or None when there is no sweep.
    """
    rows = sorted(report.sweep, key=lambda row: row.ratio)
    if not rows:
        return None
    ratios = [row.ratio for row in rows]
    before = [100 * row.accuracy for row in rows]
    after = [math.nan if row.finetuned_accuracy is None else 100 * row.finetuned_accuracy for row in rows]
    with _styled():
        figure = _figure(report.title, 5.0 if report.full else 3.2)
        heights = {"height_ratios": [3, 2]} if report.full else None
        top, *bottom = figure.subplots(2 if report.full else 1, 1, sharex=True, squeeze=False, gridspec_kw=heights)[
            :, 0
        ]
        lines = [("before fine-tuning", before, _BLUE, "o")]
        if np.isfinite(after).any():
            lines.append(("fine-tuned", after, _VERMILION, "s"))
        top.set_title("Top-1 accuracy (%)")
        shown = finite(np.array(before + after))
        if shown.size:
            middle, reach = (shown.max() + shown.min()) / 2, max(np.ptp(shown), 4) * 0.58
            top.set_ylim(middle - reach, middle + reach)
        _lines(top, ratios, lines, "{:.2f}%", gap=0.085)
        if report.full and bottom:
            params, macs = report.full
            sizes = [
                ("parameters", [100 * row.params / params for row in rows], _GREEN, "^"),
                ("MACs", [100 * row.macs / macs for row in rows], _PURPLE, "D"),
            ]
            bottom[0].set_title("Size (% of the full network)")
            bottom[0].set_ylim(0, 108)
            _lines(bottom[0], ratios, sizes, "{:.1f}%", gap=0.14)
        last = bottom[0] if bottom else top
        last.set_xlabel("Ratio: share of channels cut")
        last.set_xlim(min(ratios) - 0.03, max(ratios) + 0.03)
        if len(ratios) == 1 or min(np.diff(ratios)) >= (ratios[-1] - ratios[0]) / 14:  # their labels do not touch
            last.set_xticks(ratios, [ratio_text(ratio) for ratio in ratios])
        return _png(figure)


def compared(report: Report) -> bytes | None:
    """Accuracy before fine-tuning against the ratio of channels cut, a line for each way to train or cut.

    Args:
      report: what was measured; only `compared` is drawn.

    Returns:
      A PNG file, or None when there is nothing to compare.
    """
    if not report.compared:
        return None
    ratios = sorted({ratio for points in report.compared.values() for ratio, _ in points})
    looks = zip(itertools.cycle(_MANY), itertools.cycle("osD^vP"), strict=False)
    lines = [
        (name, [100 * dict(points).get(ratio, math.nan) for ratio in ratios], *look)
        for (name, points), look in zip(report.compared.items(), looks, strict=False)
    ]
    with _styled():
        figure = _figure(report.title, 4.4)
        panel = figure.subplots()
        panel.set_title("Top-1 accuracy before fine-tuning (%)")
        shown = finite(np.array([values for _, values, *_ in lines]))
        reach = max(np.ptp(shown), 4.0) if shown.size else 4.0
        if shown.size:
            panel.set_ylim(shown.min() - 0.06 * reach, shown.max() + 0.06 * reach)
        _lines(panel, ratios, lines, "{:.2f}%", gap=0.06)
        panel.set_xlabel("Ratio: share of channels cut")
        panel.set_xlim(min(ratios) - 0.03, max(ratios) + 0.03)
        return _png(figure)


def channels(report: Report) -> bytes | None:
    """Kept and cut channels of every layer, for up to three ratios of at most 0.7.

    Args:
      report: what was measured; only `sweep` and `channels` are drawn.

    Returns:
      A PNG file, or None when there is no sweep or no layer.
    """
    rows = _chosen(report.sweep)
    names = list(report.channels)
    if not rows or not names:
        return None
    counted = len(names) <= _COUNTED_LAYERS
    whole = np.array(list(report.channels.values()))
    places = np.arange(len(names))
    with _styled():
        figure = _figure(report.title, 1.2 + 1.75 * len(rows))
        panels = figure.subplots(len(rows), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for panel, row in zip(panels, rows, strict=True):
            kept = np.array([row.kept[name] for name in names])
            panel.bar(places, whole, color=_CUT, width=0.84, label=_CUT_LABEL)
            panel.bar(places, kept, color=_BLUE, width=0.84, label=_KEPT_LABEL)
            held = [place for place in places if names[place] in row.protected]
            if held:
                above = whole[held] + 0.05 * whole.max()
                panel.plot(held, above, "v", color=_VERMILION, markersize=4, label=_HELD_LABEL)
            if counted:
                for place, count in zip(places, kept, strict=True):
                    panel.annotate(
                        str(count), (place, count), (0, 1), textcoords="offset points", ha="center", fontsize=7
                    )
            panel.set_title(f"Ratio {ratio_text(row.ratio)}: {kept.sum()} of {whole.sum()} channels kept")
            panel.set_ylabel("Channels")
            panel.tick_params(axis="x", length=0)
            panel.grid(axis="y")
        panels[0].set_ylim(0, 1.12 * whole.max())
        panels[0].set_xlim(-0.7, len(names) - 0.3)
        if len(names) <= _NAMED_LAYERS:
            texts = _layer_names(names)
            fits = max(map(len, texts)) * len(texts) <= 90
            panels[-1].set_xticks(places, texts, rotation=0 if fits else 90)
        else:
            panels[-1].set_xlabel(f"Layer, in network order (1 to {len(names)})")
            marks = [0, *range(9, len(names), 10 * math.ceil(len(names) / 200))]
            panels[-1].set_xticks(marks, [str(mark + 1) for mark in marks])
        drawn = {
            label: mark for panel in panels for mark, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        labels = [label for label in (_KEPT_LABEL, _CUT_LABEL, _HELD_LABEL) if label in drawn]
        panels[0].legend(
            [drawn[label] for label in labels], labels,
            loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderaxespad=0.2,
        )  # fmt: skip
        return _png(figure)


def scales(report: Report) -> bytes | None:
    """Histograms of the |scale| values side by side, on the same axes.

    Args:
      report: what was measured; only `scales` is drawn. Values that are not finite are left out.

    Returns:
      A PNG file, or None when there are no values.
    """
    samples = {label: finite(values) for label, values in report.scales.items()}
    samples = {label: values for label, values in samples.items() if values.size}
    if not samples:
        return None
    together = np.concatenate(list(samples.values()))
    # On a logarithmic axis the two heaps, used and unused, stand apart; what lies left of it is drawn at its edge.
    low = min(max(np.quantile(together, 0.001), 1e-7), SMALL_SCALE / 10)
    low, high = 10.0 ** math.floor(math.log10(low)), max(together.max() * 1.05, 10 * SMALL_SCALE)
    bins = np.geomspace(low, high, 49)
    with _styled():
        columns = min(len(samples), 2)
        lines = math.ceil(len(samples) / columns)
        figure = _figure(report.title, 0.8 + 2.5 * lines)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, (label, values) in zip(panels, samples.items(), strict=False):
            shares = np.full(values.size, 100 / values.size)
            panel.hist(np.clip(values, low, high), bins=bins, weights=shares, color=_BLUE)
            panel.axvspan(low, SMALL_SCALE, color=_VERMILION, alpha=0.10, linewidth=0, zorder=0)
            panel.text(
                0.03, 0.96, f"{np.mean(values < SMALL_SCALE):.1%}\nunder {SMALL_SCALE:g}",
                transform=panel.transAxes, va="top", color=_VERMILION, fontweight="bold",
            )  # fmt: skip
            panel.set_title(f"{_short(label, 30, 14)} ({values.size} scales)")
            panel.set_xlabel("|scale|")
            panel.tick_params(labelbottom=True)
            panel.grid(axis="y")
        for panel in panels[len(samples) :]:
            panel.set_visible(False)
        panels[0].set_ylabel("Share of all scales (%)")
        panels[0].set_xscale("log")
        panels[0].set_xlim(low, high)
        marks = 10.0 ** np.arange(round(math.log10(low)), math.floor(math.log10(high)) + 1)
        texts = [f"{mark:g}".replace("e-0", "e-") for mark in marks]
        if together.min() < low:
            texts[0] = f"\N{LESS-THAN OR EQUAL TO} {texts[0]}"
        panels[0].set_xticks(marks, texts)
        panels[0].minorticks_off()
        return _png(figure)


def _chosen(sweep: Sequence[SweepRow]) -> list[SweepRow]:
    """Up to three rows spread over the ratios up to 0.7; the smallest ratio when all are larger."""
    rows = sorted(sweep, key=lambda row: row.ratio)
    cutting = [row for row in rows if 0 < row.ratio <= 0.7 + 1e-6] or rows[:1]
    places = np.linspace(0, len(cutting) - 1, min(3, len(cutting))).round().astype(int)
    return [cutting[place] for place in places]


def _lines(
    panel: Axes, ratios: Sequence[float], lines: Sequence[tuple[str, list[float], str, str]], form: str, gap: float
) -> None:
    """Draw (name, values, colour, marker) lines, each named at its right end; `gap` is a name's share of the height."""
    ends = []
    for name, values, colour, marker in lines:
        panel.plot(ratios, values, color=colour, marker=marker, markersize=4.5, linewidth=1.8, clip_on=False)
        if known := [value for value in values if math.isfinite(value)]:
            ends.append((known[-1], f"{name} {form.format(known[-1])}", colour))
    panel.grid(axis="y")
    ends.sort()
    bottom, top = panel.get_ylim()
    places: list[float] = []
    for value, _, _ in ends:
        places.append(max(value, places[-1] + gap * (top - bottom)) if places else value)
    # Names that push each other apart stay centred on their lines, but never slide under the axis.
    excess = sum(place - value for place, (value, _, _) in zip(places, ends, strict=True)) / max(len(ends), 1)
    excess = min(excess, places[0] - bottom) if places else 0
    for place, (_, text, colour) in zip(places, ends, strict=True):
        panel.text(
            1.01,
            place - excess,
            text,
            transform=panel.get_yaxis_transform(),
            va="center",
            color=colour,
            fontweight="bold",
        )


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a title may be in any script
        yield


def _figure(title: str, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES, height), layout="constrained", facecolor="white")
    figure.suptitle(_short(" ".join(title.split()), 75, 72), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    return png.getvalue()


def _layer_names(names: Sequence[str]) -> list[str]:
    """`names` short enough to stand under bars: without the path that all share, and with the middle left out."""
    paths = [name.split("/") for name in names]
    for end in (0, -1):
        while min(map(len, paths)) > 1 and len({path[end] for path in paths}) == 1 < len(paths):
            for path in paths:
                path.pop(end)
    return [_short("/".join(path), 24, 8) for path in paths]


def _short(text: str, length: int, head: int) -> str:
    """`text`, or when longer than `length` its first `head` characters and as many of its last as fit."""
    return text if len(text) <= length else f"{text[:head]}...{text[len(text) - (length - head - 3) :]}"
