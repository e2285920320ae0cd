"""The report of `reproduce.py`: means over the seeds beside the published figures."""

import contextlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce_stages import PULLS, RATIO, TECHNIQUES, TUNINGS, epochs

from jaxslim.errors import InputError
from jaxslim.experiments.hardware import machine
from jaxslim.experiments.stages import Outcome
from jaxslim.models import WIDTHS, architecture, build
from jaxslim.reporting.report import PipelineRow, Report, SweepRow, Table
from jaxslim.slim.criteria.scales import scale_values
from jaxslim.storage import checkpoint
from jaxslim.training.config import RATIOS, TrainConfig

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_bytes())  # of others, by name
AS_PUBLISHED = "of VGG-19 on CIFAR-10 with all widths, 160 epochs and L1 1e-4"
Seeds = Sequence[Mapping[str, Outcome]]  # what became of each seed's stages


def compose(base: TrainConfig, data: str, outcomes: Mapping[Path, Mapping[str, Outcome]], command: str) -> Report:
    """Build the report from the outcomes of each seed's stages, by the seed's folder.

    Tables show means over the seeds; pipeline, sweep and plots show the seed that failed least. `data` is the data set
    in words, or only its name if it is whole.
    """
    seeds = list(outcomes.values())
    home, stages = min(outcomes.items(), key=lambda item: len(failures([item[1]])))
    shown = {name: outcome.result for name, outcome in stages.items() if outcome.result}
    rows, tuned = shown.get("sweep", {}).get("rows", []), {RATIO: shown.get("tuned-long", {}).get("accuracy")}
    trained = [name for name in ("baseline", *(f"sparse{pull}" for pull in PULLS)) if name in shown]
    scales = {}
    for name in trained:
        with contextlib.suppress(InputError):  # only the plot needs the checkpoint
            scales[name] = scale_values(checkpoint.load(home / name).variables)
    sweeps = _sweeps(seeds)
    network = build(base.model, dict(base.model_args), num_classes=10, dtype=base.dtype)
    recipe = f"{base.epochs} epochs, L1 {base.l1:g}, {base.dtype}; {len(seeds)} seed(s)"
    as_published = (data, base.epochs, base.l1, base.model_args["widths"]) == ("cifar10", 160, 1e-4, WIDTHS["vgg19"])
    spent = sum(outcome.seconds for stages in seeds for outcome in stages.values())
    notes = {
        "recipe": f"VGG {architecture(network)}; {recipe}",
        "pipeline, sweep, architectures and plots": f"of {home.name}" if len(seeds) > 1 else "",
        "data": data,
        "published figures": "" if as_published else f"{AS_PUBLISHED}: no comparison",
        "reference at 0.7": "its two tables give 10.00 and 93.01 before fine-tuning; its ratio 0 is the baseline",
        "accuracy": "of the last epoch, on the test images",
        "wall time": f"{spent:.0f} s, without what interrupted processes spent on a stage",
        **machine(),
        "command": command,
        "checkpoints gone or damaged, so that no plot shows their scales": ", ".join(sorted({*trained} - {*scales})),
        "failed": "; ".join(failures(seeds)),
    }
    return Report(
        title=f"Network slimming of VGG on {'CIFAR-10' if data == 'cifar10' else data}",
        pipeline=tuple(
            PipelineRow(name=label, **{value: shown[name][value] for value in ("accuracy", "params", "macs")})
            for name, label in _labels(base).items()
            if name in shown
        ),
        sweep=tuple(SweepRow(**row | {"finetuned_accuracy": tuned.get(row["ratio"])}) for row in rows),
        channels=rows[0]["kept"] if rows else {},
        scales=scales,
        compared={
            label: tuple((ratio, statistics.fmean(_values(seeds, name, "accuracy", ratio))) for ratio in RATIOS)
            for name, label in sweeps.items()
            if len(sweeps) > 1
        },
        more_tables=tuple(table for table in tables(base, seeds) if table.rows),
        notes={name: note for name, note in notes.items() if note},
    )


def failures(seeds: Seeds) -> list[str]:
    """Which stages failed, and how many stages could not run because of these."""
    outcomes = [(seed, name, outcome) for seed, stages in enumerate(seeds) for name, outcome in stages.items()]
    failed = [f"seed {seed}: {name} ({one.failure})" for seed, name, one in outcomes if one.failure and not one.blocked]
    blocked = sum(outcome.blocked for *_, outcome in outcomes)
    return [*failed, *([f"{blocked} more that need their results"] if blocked else [])]


def tables(base: TrainConfig, seeds: Seeds) -> list[Table]:
    """The tables that compare with published figures, and the ways to train and cut with each other."""
    labels, sweeps, size, gone = _labels(base), _sweeps(seeds), "Parameters (M)", "Parameters cut (%)"
    short, long = (labels[name].partition(", ")[2] for name in ("tuned-short", "tuned-long"))
    beside = ["", "jaxslim", *(other["name"] for other in PUBLISHED.values())]
    by_ratio = ["Ratio", *sweeps.values(), size, "Reference (%)", size, "foolwood (%)", size]
    passes = ["Pass", "Cut (%)", f"Trained on, {long} (%)", gone, "Paper (%)", f"Paper: {gone.lower()}"]
    tunings = [f"{what.capitalize()}, {long if 'long' in name else short} (%)" for name, what in TUNINGS.items()]
    techniques = [
        [label, *(_percent(seeds, name.replace("sweep", column)) for column in ("cut", *TUNINGS))]
        for name, label in sweeps.items()
        if len(sweeps) > 1
    ]
    title = f"Techniques at {RATIO:g}: L1 method; absorption and recalibration of the cut"
    return [
        Table("Beside what is published", beside, _beside(labels, seeds)),
        Table("Accuracy (%) without fine-tuning", by_ratio, _by_ratio(sweeps, seeds), "compared.png"),
        Table("Several passes, each cutting up to half of each layer", passes, _passes(seeds)),
        Table(title, ["", "Cut (%)", *tunings], techniques),
    ]


def _beside(labels: Mapping[str, str], seeds: Seeds) -> list[list[str]]:
    published = zip(labels.items(), ("baseline", "sparse", "cut", "short", "long"), strict=True)
    mine = [
        *((label, key, _percent(seeds, name)) for (name, label), key in published),
        ("Fine-tuned, 160 epochs", "longer", ""),
        ("Parameters left (M)", "params", _number(_mean(seeds, "cut", "params"), 1e6)),
        ("MACs left (G)", "macs", _number(_mean(seeds, "cut", "macs"), 1e9)),
    ]
    return [[label, cell, *(_number(other.get(key)) for other in PUBLISHED.values())] for label, key, cell in mine]


def _by_ratio(sweeps: Mapping[str, str], seeds: Seeds) -> list[list[str]]:
    rows = []
    for ratio in RATIOS if sweeps else ():
        others = [number for who in ("reference", "foolwood") for number in PUBLISHED[who]["sweep"][f"{ratio:.1f}"]]
        params = _number(_mean(seeds, "sweep", "params", ratio), 1e6)
        rows.append([f"{ratio:g}", *(_percent(seeds, name, ratio) for name in sweeps), params, *map(_number, others)])
    return rows


def _passes(seeds: Seeds) -> list[list[str]]:
    rows = []
    for number, published in enumerate(PUBLISHED["paper"]["passes"], start=1):
        full, left = (_mean(seeds, name, "params") for name in ("baseline", f"pass-{number}"))
        if full and left:
            accuracies = [_percent(seeds, name) for name in (f"pass-{number}-cut", f"pass-{number}")]
            rows.append([str(number), *accuracies, *map(_number, [100 * (1 - left / full), *published])])
    return rows


def _labels(base: TrainConfig) -> dict[str, str]:
    """What the tables call the stages of the pipeline."""
    numbers = {name: epochs(base, name) for name in ("tuned-short", "tuned-long")}
    tuned = {name: f"Fine-tuned, {number} epoch{'s' * (number > 1)}" for name, number in numbers.items()}
    return {"baseline": "Baseline", "sparse": "Trained with sparsity", "cut": f"Cut at {RATIO:g}", **tuned}


def _sweeps(seeds: Seeds) -> dict[str, str]:
    """Labels of the sweeps that were measured, by the names of their stages."""
    words = {f"sweep{pull}{way}": (part[1:] for part in (pull, way) if part) for pull, way in TECHNIQUES}
    labels = {name: "; ".join(parts).replace("-", ", ") or "as the reference" for name, parts in words.items()}
    return {name: label for name, label in labels.items() if _values(seeds, name, "rows")}


def _values(seeds: Seeds, name: str, value: str, ratio: float | None = None) -> list[Any]:
    """One value of a stage's result, or of its row of a ratio, for each seed that has it."""
    results = [stages[name].result for stages in seeds if name in stages and stages[name].result]
    return [(result if ratio is None else result["rows"][RATIOS.index(ratio)])[value] for result in results]


def _mean(seeds: Seeds, name: str, value: str, ratio: float | None = None) -> float | None:
    values = _values(seeds, name, value, ratio)
    return statistics.fmean(values) if values else None


def _percent(seeds: Seeds, name: str, ratio: float | None = None) -> str:
    """The mean accuracy as a percentage, with the deviation where there are several."""
    shares = _values(seeds, name, "accuracy", ratio)
    deviation = f" \N{PLUS-MINUS SIGN} {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{100 * statistics.fmean(shares):.2f}{deviation}" if shares else ""


def _number(value: float | None, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:.2f}"
