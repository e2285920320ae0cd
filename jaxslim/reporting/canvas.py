"""What all plots share: their style, their size, and their legends."""

import contextlib
import itertools
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart. Wine replaces their purple, which is near to blue.
BLUE, VERMILION, GREEN, WINE, SKY_BLUE = "#0072B2", "#D55E00", "#009E73", "#882255", "#56B4E9"
LIGHT, GREY = "#D9D9D9", "#767676"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E8E8E8",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "savefig.dpi": 150,
    "svg.hashsalt": "jaxslim",  # the same figure gives the same file
}
T = TypeVar("T")


@contextlib.contextmanager
def report_style() -> Iterator[None]:
    """Draw in the style of the reports inside the context, whatever the user's settings."""
    with style.context(_STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a title may be in any script
        yield


def new_figure(title: str, height: float) -> Figure:
    """An empty figure, `height` inches high. It is not pyplot's, so nobody has to close it."""
    figure = Figure(figsize=(7.2, height), layout="constrained")
    figure.suptitle(wrapped(title, 66), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def looks() -> Iterator[tuple[str, str]]:
    """Colours and markers for lines that readers can tell apart."""
    return itertools.cycle(zip((BLUE, VERMILION, GREEN, WINE, "#E69F00", SKY_BLUE), "osD^vP", strict=True))


def legend_beside_title(panel: Axes, handles: Sequence[Artist]) -> None:
    """Put a legend above the panel, at the right of its title."""
    columns = max(1, len(handles))
    panel.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, borderaxespad=0.2)


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend below all panels. Labels that are too long for two columns get one column and wrap."""
    labels = [wrapped(str(handle.get_label()), 95) for handle in handles]
    columns = 1 if max(map(len, labels), default=0) > 45 else 2
    figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width` characters, three at most."""
    return textwrap.fill(text, width, max_lines=3, placeholder=" \N{HORIZONTAL ELLIPSIS}")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` of the items, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
