"""The report of an evaluation: accuracy by class, the confusion matrix, and times where they were measured."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxslim.files import write_whole
from jaxslim.reporting.canvas import report_style
from jaxslim.reporting.confusion import accuracies, confusions, per_class
from jaxslim.reporting.latency import Latency, slow, tables
from jaxslim.reporting.plot_confusion import plot_confusion
from jaxslim.reporting.report import markdown
from jaxslim.reporting.results import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What was found of a network."""

    title: str
    accuracy: float
    """Top-1, as a share."""
    loss: float
    class_names: Sequence[str]
    confusion: np.ndarray
    """int (classes, classes), as `confusion_matrix` gives it."""
    facts: tuple[tuple[str, str], ...]
    """What the first lines say, as names and values: checkpoint, data, size."""
    latency: Latency | None = None


def write(found: Evaluated, folder: Path) -> Path:
    """Write report.md, report.json, confusion.png and confusion.svg into `folder`, and return the path of the first."""
    pictures = {}
    with report_style():
        figure = plot_confusion(found.confusion, found.class_names, found.title)
        for form, metadata in (("png", None), ("svg", {"Date": None})):
            file = io.BytesIO()
            figure.savefig(file, format=form, metadata=metadata)
            pictures[f"confusion.{form}"] = file.getvalue()
    by_class = per_class(found.confusion, found.class_names)
    confused = confusions(found.confusion, found.class_names, picture="confusion.png")
    timed = [*tables(found.latency), *(table for _, table in slow(found.latency) if table)] if found.latency else []
    report = Report(title=found.title, more_tables=(by_class, confused, *timed), notes=_notes(found))
    files: dict[str, bytes] = {"report.md": markdown(report, pictures).encode(errors="backslashreplace")}
    files["report.json"] = json.dumps(_record(found), allow_nan=False).encode()
    for name, content in (files | pictures).items():
        write_whole(folder / name, content)
    return folder / "report.md"


def _notes(found: Evaluated) -> dict[str, str]:
    """The facts, those of one name together, and what is to say about times."""
    notes: dict[str, str] = {}
    for name, value in found.facts:
        notes[name] = f"{notes[name]}; {value}" if name in notes else value
    if found.latency:
        notes |= found.latency.notes
        if sentences := [sentence for sentence, _ in slow(found.latency)]:
            notes["smaller and not faster"] = " ".join(sentences)
    return notes


def _record(found: Evaluated) -> dict[str, object]:
    shares, totals = accuracies(found.confusion), found.confusion.sum(1)
    classes = [
        {"name": name, "images": int(total), "accuracy": float(share) if total else None}
        for name, total, share in zip(found.class_names, totals, shares, strict=True)
    ]
    return {
        "title": found.title,
        "accuracy": found.accuracy,
        "loss": found.loss if np.isfinite(found.loss) else None,
        "classes": classes,
        "confusion": found.confusion.tolist(),
        "latency": dataclasses.asdict(found.latency) if found.latency else None,
        "facts": _notes(found),
    }
