"""The comparison of criteria as tables and a plot."""

import io
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxslim.reporting import canvas
from jaxslim.reporting.results import Table

_LOOKS = {
    "bn_scale": (canvas.BLUE, "o"),
    "magnitude": (canvas.VERMILION, "s"),
    "magnitude_mean": (canvas.GREEN, "D"),
    "lamp": (canvas.WINE, "^"),
    "geometric_median": ("#E69F00", "v"),
    "taylor": (canvas.SKY_BLUE, "P"),
    "fisher": ("black", "X"),
    "activation": ("#F0A0C0", "*"),
    "random": (canvas.GREY, "."),
}


class CutRow(NamedTuple):
    """One cut of one trained network; accuracies are shares."""

    criterion: str
    scope: str
    macs: float  # share that was to stay
    reached: float  # share that stays
    before: float  # accuracy without fine-tuning
    after: float | None  # accuracy with fine-tuning, if there was any
    training: str = ""
    seed: int = 0


class StepsRow(NamedTuple):
    """A cut in one or several steps, with as many epochs of fine-tuning in all."""

    criterion: str
    macs: float
    steps: int
    epochs: int
    accuracy: float
    training: str = ""
    seed: int = 0


def percent(shares: Iterable[float | None]) -> str:
    """The mean of some shares and their standard deviation, in per cent; empty if there are none.

    Example:
      >>> percent([0.5, 0.6])
      '55.00 ± 7.07'
    """
    known = [100 * share for share in shares if share is not None]
    deviation = f" \N{PLUS-MINUS SIGN} {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.2f}{deviation}" if known else ""


def cuts_table(title: str, rows: Sequence[CutRow]) -> Table:
    """A line for each criterion and scope: accuracy before fine-tuning, then after, at each share of MACs."""
    shares = sorted({row.macs for row in rows}, reverse=True)
    tuned = [share for share in shares if any(row.after is not None for row in rows if row.macs == share)]
    lines = []
    for criterion, scope in dict.fromkeys((row.criterion, row.scope) for row in rows):
        own = [row for row in rows if (row.criterion, row.scope) == (criterion, scope)]
        before = [percent(row.before for row in own if row.macs == share) for share in shares]
        after = [percent(row.after for row in own if row.macs == share) for share in tuned]
        lines.append([criterion, scope, *before, *after])
    header = [*(f"Cut to {share:.3g} (%)" for share in shares), *(f"{share:.3g}, fine-tuned (%)" for share in tuned)]
    return Table(title, ["Criterion", "Scope", *header], lines)


def summary_table(rows: Sequence[CutRow], macs: float, scope: str) -> Table:
    """A line for each criterion, at one share of MACs and in one scope: accuracy after each training, cut and tuned."""
    trainings = list(dict.fromkeys(row.training for row in rows))
    lines = []
    for criterion in dict.fromkeys(row.criterion for row in rows):
        own = [row for row in rows if row[:3] == (criterion, scope, macs)]
        groups = [[row for row in own if row.training == training] for training in trainings]
        cells = [percent(value) for group in groups for value in ([r.before for r in group], [r.after for r in group])]
        lines.append([criterion, *cells])
    header = [f"{training}, {what} (%)" for training in trainings for what in ("cut", "fine-tuned")]
    return Table(f"Cut to {macs:.3g} of the MACs, scope {scope}", ["Criterion", *header], lines)


def steps_table(title: str, rows: Sequence[StepsRow]) -> Table:
    """A line for each training and share of MACs, a column for each number of steps."""
    steps = sorted({row.steps for row in rows})
    lines = []
    for training, macs in dict.fromkeys((row.training, row.macs) for row in rows):
        own = [row for row in rows if (row.training, row.macs) == (training, macs)]
        cells = [percent(row.accuracy for row in own if row.steps == number) for number in steps]
        lines.append([training, f"{macs:.3g}", *cells])
    header = [f"{number} step{'s' * (number > 1)} (%)" for number in steps]
    return Table(title, ["Training", "MACs left", *header], lines)


def plot(title: str, rows: Sequence[CutRow], scope: str = "global") -> bytes:
    """A PNG: mean accuracy against the MACs left, a column of panels for each training, fine-tuned in the lower row."""
    from matplotlib.figure import Figure

    shares = sorted({row.macs for row in rows}, reverse=True)
    trainings, criteria = (
        list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("training", "criterion")
    )
    with canvas.report_style():
        figure: Figure = canvas.new_figure(title, 5.4)
        panels = figure.subplots(2, len(trainings), sharex=True, sharey="row", squeeze=False)
        for (column, training), after in ((one, after) for one in enumerate(trainings) for after in (0, 1)):
            panel = panels[after, column]
            for criterion in criteria:
                points = []
                for place, share in enumerate(shares):
                    own = [row for row in rows if row[:3] == (criterion, scope, share) and row.training == training]
                    values = [row.after if after else row.before for row in own]
                    known = [100 * value for value in values if value is not None]
                    points += [(place, statistics.fmean(known))] if known else []
                if points:
                    colour, marker = _LOOKS.get(criterion, (canvas.GREY, "x"))
                    panel.plot(*zip(*points, strict=True), color=colour, marker=marker, label=criterion, linewidth=1.3)
            panel.set_title(training if not after else "")
            panel.set_xticks(range(len(shares)), [f"{share:.3g}" for share in shares])
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("share of the MACs left" if after else "")
        for panel, label in zip(panels[:, 0], ("Accuracy, cut (%)", "Accuracy, fine-tuned (%)"), strict=True):
            panel.set_ylabel(label)
        handles = panels[0, 0].get_lines()
        figure.legend(handles=handles, loc="outside lower left", ncols=4)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()
