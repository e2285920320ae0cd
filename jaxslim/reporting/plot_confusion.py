"""The plot of a confusion matrix."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from jaxslim.reporting import canvas

_NUMBERED = 12  # in more classes, the numbers do not fit into the cells
_NAMED = 50  # nor do more names fit beside the rows
_SHARP = 200  # cells of more classes are smaller than a pixel or two
_WIDTH = 24  # of a name, in characters
_COLOURS = LinearSegmentedColormap.from_list("jaxslim", ["#FFFFFF", canvas.SKY_BLUE, canvas.BLUE, "#003A5C"])


def plot_confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """A cell for each pair of classes: rows are the classes of the images, columns what they were taken for.

    Args:
      matrix: int (classes, classes), as `confusion_matrix` gives it.
      names: of the classes.
      title: of the figure.
    """
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = len(matrix) <= _NUMBERED
    figure = canvas.new_figure(title, min(max(2.6 + 0.42 * len(matrix), 4.6), 6.8))
    panel = figure.subplots()
    norm = PowerNorm(0.5, 0, 100)  # most mistakes are a few per cent of a class, and they are what a reader looks for
    smooth = "nearest" if len(matrix) <= _SHARP else "antialiased"
    image = panel.imshow(100 * shares, cmap=_COLOURS, norm=norm, aspect="equal", interpolation=smooth)
    panel.grid(False)
    panel.tick_params(length=0)
    for side in ("top", "right"):
        panel.spines[side].set_visible(True)
    if few:
        _number(panel, matrix, shares)
    _label(panel, names)
    panel.set_xlabel("Predicted class", labelpad=6)
    panel.set_ylabel("Class of the image", labelpad=6)
    bar = figure.colorbar(image, ax=panel, shrink=0.8, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("Share of the images of the class (%)", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _number(panel: Axes, matrix: np.ndarray, shares: np.ndarray) -> None:
    """Write the count into each cell that has one."""
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.36 else "black"
            panel.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)


def _label(panel: Axes, names: Sequence[str]) -> None:
    """Names beside all rows and below all columns where they fit, else numbers of some classes."""
    if len(names) <= _NAMED:
        texts = [name if len(name) <= _WIDTH else f"{name[: _WIDTH - 1]}\N{HORIZONTAL ELLIPSIS}" for name in names]
        size = 8 if len(names) <= 25 else 6
        turned = max(map(len, texts)) > max(60 // len(texts), 1)
        panel.set_xticks(range(len(names)), texts, rotation=90 if turned else 0, fontsize=size)
        panel.set_yticks(range(len(names)), texts, fontsize=size)
        return
    step = 10 ** math.floor(math.log10(len(names) / 5))
    marks = range(0, len(names), step * (2 if len(names) / step > 10 else 1))
    panel.set_xticks(marks)
    panel.set_yticks(marks)
