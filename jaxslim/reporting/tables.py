"""The tables of a report, as text."""

import math
from collections.abc import Sequence

from jaxslim.reporting.results import PipelineRow, Report, SweepRow, Table, ratio_text


def tables_of(report: Report) -> list[Table]:
    """The tables that the report has rows for."""
    tables = [_pipeline(report.pipeline)] if report.pipeline else []
    if report.sweep:
        tables += [_sizes(report), _architectures(report.sweep) or _kept_channels(report)]
    return [*tables, *report.more_tables]


def _pipeline(pipeline: Sequence[PipelineRow]) -> Table:
    rows = [
        ["Top-1 accuracy (%)", *(_percent(row.accuracy) for row in pipeline)],
        ["Parameters", *(_params(row.params) for row in pipeline)],
        ["MACs per image", *(_macs(row.macs) for row in pipeline)],
    ]
    if any(row.note for row in pipeline):
        rows.append(["Note", *(row.note for row in pipeline)])
    return Table(
        "Pipeline: accuracy, parameters and MACs (multiply-accumulates)", ["", *(row.name for row in pipeline)], rows
    )


def _sizes(report: Report) -> Table:
    sweep, full = report.sweep, report.full
    columns = {
        "Ratio": [ratio_text(row.ratio) for row in sweep],
        "Accuracy (%)": [_percent(row.accuracy) for row in sweep],
        "Without absorption (%)": [_percent(row.plain_accuracy) for row in sweep],
        "Really cut (%)": [_percent(row.verified_accuracy) for row in sweep],
        "Logits differ by": [_number(row.logits_difference, ".1e") for row in sweep],
        "Fine-tuned (%)": [_percent(row.finetuned_accuracy) for row in sweep],
        "Parameters": [_params(row.params) + (f" ({row.params / full.params:.1%})" if full else "") for row in sweep],
        "MACs": [_macs(row.macs) + (f" ({row.macs / full.macs:.1%})" if full else "") for row in sweep],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [list(cells) for cells in zip(*columns.values(), strict=True)]
    title = "Accuracy, parameters and MACs (multiply-accumulates) against ratio"
    return Table(title, list(columns), rows, "accuracy.png")


def _architectures(sweep: Sequence[SweepRow]) -> Table | None:
    """The architecture of every ratio, if all rows have one."""
    rows = [[ratio_text(row.ratio), row.architecture, _first_names(row.protected)] for row in sweep if row.architecture]
    if len(rows) < len(sweep):
        return None
    columns = 3 if any(row.protected for row in sweep) else 2
    header = ["Ratio", "Architecture", "Protected layers"]
    return Table(
        "Architecture against ratio", header[:columns], [row[:columns] for row in rows], "channels.png", right=False
    )


def _kept_channels(report: Report) -> Table:
    sweep, protected = report.sweep, any(row.protected for row in report.sweep)
    header = ["Channels kept" + protected * " (! = protected)", "All", *(ratio_text(row.ratio) for row in sweep)]
    rows = [
        [layer, str(channels), *(f"{row.kept[layer]}{'!' * (layer in row.protected)}" for row in sweep)]
        for layer, channels in report.channels.items()
    ]
    rows.append(["Total", str(sum(report.channels.values())), *(str(sum(row.kept.values())) for row in sweep)])
    return Table("Architecture against ratio", header, rows, "channels.png")


def _number(value: float | None, form: str) -> str:
    """`value` as text: empty when nobody measured it, n/a when the measurement is no number."""
    if value is None:
        return ""
    return format(value, form) if math.isfinite(value) else "n/a"


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share, ".2f")


def _params(count: int) -> str:
    if count >= 1e6:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.2f} k" if count >= 1e3 else str(count)


def _macs(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e8 else _params(count)


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
