"""The report of `reproduce.py`: means over the seeds beside the published figures."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import reproduce_stages as plan

from jaxslim.errors import InputError
from jaxslim.experiments.stages import Outcome
from jaxslim.experiments.sweep import machine
from jaxslim.models import WIDTHS
from jaxslim.reporting.report import Report, SweepRow, Table
from jaxslim.reporting.report import Stage as Row
from jaxslim.slim.criteria import scale_values
from jaxslim.storage import checkpoint
from jaxslim.training.config import RATIOS, TrainConfig

PUBLISHED = Path(__file__).with_name("published.json")
AS_PUBLISHED = "of VGG-19 on CIFAR-10 with all widths, 160 epochs and L1 1e-4"
CUT_LABELS = {"cut": "none", "cut-absorbed": "absorbed", "cut-recalibrated": "recalibrated", "cut-both": "both"}
Seeds = Sequence[dict[str, Outcome]]


def published() -> dict[str, Any]:
    """The figures of others.

    Raises:
      InputError: their file is missing or damaged.
    """
    try:
        figures = json.loads(PUBLISHED.read_bytes())
        return {name: dict(figures[name]) for name in ("reference", "foolwood", "authors", "paper")}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{PUBLISHED} cannot be read; restore it: git checkout {PUBLISHED.name}.") from None


def gather(
    base: TrainConfig, data: str, homes: Sequence[Path], seeds: Seeds, command: str, others: dict[str, Any]
) -> Report:
    """Means over the seeds beside the published figures; pipeline, sweep and plots are of the seed that failed least.

    Args:
      base: what all trainings share.
      data: the data set, in words; by its name alone if it is whole.
      homes: folder of each seed.
      seeds: outcomes of each seed.
      command: what was called.
      others: of `published`.
    """
    labels = _labels(base)
    best = min(range(len(seeds)), key=lambda seed: len(failures(seeds[seed : seed + 1])))
    shown = {name: outcome.result for name, outcome in seeds[best].items() if outcome.result}
    rows = [
        SweepRow(**row | {name: tuple(row[name]) for name in ("protected", "widths")})
        for row in shown.get("sweep", {}).get("rows", [])
    ]
    for index, row in enumerate(rows):
        if row.ratio == plan.RATIO and "tuned-long" in shown:
            rows[index] = dataclasses.replace(row, finetuned_accuracy=shown["tuned-long"]["accuracy"])
    scales, gone = {}, []
    for name in ("baseline", "sparse", *plan.PULLS):
        try:
            if name in shown:
                scales[name] = scale_values(checkpoint.load(homes[best] / name).variables)
        except InputError:  # only the plot needs it
            gone.append(name)
    as_published = (data, base.epochs, base.widths, base.l1) == ("cifar10", 160, WIDTHS["vgg19"], 1e-4)
    seconds = sum(outcome.seconds for outcomes in seeds for outcome in outcomes.values())
    notes = {
        "recipe": f"VGG with widths {' '.join(map(str, base.widths or ()))}; {base.epochs} epochs, L1 {base.l1:g}, "
        f"{base.dtype}; {len(seeds)} seed(s)",
        **({} if len(seeds) == 1 else {"pipeline, sweep, architectures and plots": f"of seed {best}"}),
        "data": data,
        **({} if as_published else {"published figures": f"{AS_PUBLISHED}: no comparison"}),
        "reference at 0.7": "its two tables give 10.00 and 93.01 before fine-tuning; its ratio 0 is the baseline",
        "accuracy": "of the last epoch, on the test images",
        "wall time": f"{seconds:.0f} s, without what interrupted processes spent on a stage",
        **machine(),
        "command": command,
        **({"scales left out": f"the checkpoint of {', '.join(gone)} is gone or damaged"} if gone else {}),
        **({"failed": "; ".join(failed)} if (failed := failures(seeds)) else {}),
    }
    return Report(
        title=f"Network slimming of VGG on {'CIFAR-10' if data == 'cifar10' else data}",
        stages=tuple(
            Row(name=label, **{value: shown[name][value] for value in ("accuracy", "params", "macs")})
            for name, label in labels.items()
            if name in shown
        ),
        sweep=tuple(rows),
        channels=rows[0].kept if rows else {},
        scales=scales,
        compared={
            label: tuple((ratio, statistics.fmean(_at_ratio(seeds, name, ratio))) for ratio in RATIOS)
            for name, label in _sweeps(seeds).items()
        },
        tables=tuple(table for table in _tables(base, seeds, others) if table.rows),
        notes=notes,
    )


def _labels(base: TrainConfig) -> dict[str, str]:
    short, long = max(1, base.epochs // 16), max(1, base.epochs // 4)
    return {
        "baseline": "Baseline",
        "sparse": "Trained with sparsity",
        "cut": f"Cut at {plan.RATIO:g}",
        "tuned-short": f"Fine-tuned, {_epochs(short)}",
        "tuned-long": f"Fine-tuned, {_epochs(long)}",
    }


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def _pulls() -> dict[str, str]:
    """What the names of stages end with, and what it means, for each way to pull the scales."""
    return {"": "subgradient", **{f"-{pull}": pull.removeprefix("sparse-").replace("-", ", ") for pull in plan.PULLS}}


def _sweeps(seeds: Seeds) -> dict[str, str]:
    """Names of the sweeps, where there are several to compare, and what they are of."""
    pulls = _pulls()
    labels = {
        "sweep": "as the reference",
        **{f"sweep-{cut}": CUT_LABELS[cut] for cut in list(plan.CUTS)[1:]},
        **{f"sweep-{pull}": pulls[f"-{pull}"] for pull in plan.PULLS},
        **{f"sweep-{pull}-both": f"{pulls[f'-{pull}']}; both" for pull in plan.PULLS},
    }
    found = {name: label for name, label in labels.items() if _values(seeds, name, "rows")}
    return found if len(found) > 1 else {}


def failures(seeds: Seeds) -> list[str]:
    """What failed, and how many stages could not be run for that."""
    outcomes = [(seed, name, outcome) for seed, stages in enumerate(seeds) for name, outcome in stages.items()]
    failed = [f"seed {seed}: {name} ({one.failure})" for seed, name, one in outcomes if one.failure and not one.blocked]
    blocked = sum(outcome.blocked for *_, outcome in outcomes)
    return [*failed, *([f"{blocked} more that need their results"] if blocked else [])]


def _values(seeds: Seeds, name: str, value: str = "accuracy") -> list[Any]:
    return [outcomes[name].result[value] for outcomes in seeds if name in outcomes and outcomes[name].result]


def _at_ratio(seeds: Seeds, sweep: str, ratio: float) -> list[float]:
    return [rows[RATIOS.index(ratio)]["accuracy"] for rows in _values(seeds, sweep, "rows")]


def _percent(values: Sequence[float]) -> str:
    """Mean of shares as a percentage, with the deviation where there are several."""
    if not values:
        return ""
    deviation = f" \N{PLUS-MINUS SIGN} {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


def _tables(base: TrainConfig, seeds: Seeds, published: dict[str, Any]) -> list[Table]:
    def accuracy(name: str) -> str:
        return _percent(_values(seeds, name))

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    labels = _labels(base)
    keys = {"baseline": "baseline", "sparse": "sparse", "cut": "cut", "tuned-short": "short", "tuned-long": "long"}
    beside = [
        [label, accuracy(name), *(number(other.get(keys[name])) for other in published.values())]
        for name, label in labels.items()
    ]
    beside.append(["Fine-tuned, 160 epochs", "", *(number(other.get("longer")) for other in published.values())])
    for name, label in (("params", "Parameters left (M)"), ("macs", "MACs left (G)")):
        sizes = _values(seeds, "cut", name)
        mine = number(statistics.fmean(sizes) / {"params": 1e6, "macs": 1e9}[name]) if sizes else ""
        beside.append([label, mine, *(number(other.get(name)) for other in published.values())])

    reference, foolwood, paper = (published[name] for name in ("reference", "foolwood", "paper"))
    sizes = _values(seeds, "sweep", "rows")
    sweeps = [
        [f"{ratio:g}", _percent(_at_ratio(seeds, "sweep", ratio)), number(sizes[0][place]["params"] / 1e6)]
        + [number(value) for other in (reference, foolwood) for value in other["sweep"][f"{ratio:.1f}"]]
        for place, ratio in enumerate(RATIOS)
        if sizes
    ]
    full = _values(seeds, "baseline", "params")
    passes = [
        [str(place), accuracy(f"pass-{place}-cut"), accuracy(f"pass-{place}"), number(100 * (1 - left[0] / full[0]))]
        + [number(value) for value in paper["passes"][place - 1]]
        for place in range(1, plan.PASSES + 1)
        if full and (left := _values(seeds, f"pass-{place}", "params"))
    ]
    short, long = labels["tuned-short"].partition(", ")[2], labels["tuned-long"].partition(", ")[2]
    pulls = _pulls()
    techniques = [
        [f"{how}; {name}", accuracy(f"{cut}{pull}")]
        + [accuracy(f"tuned-short-{cut}{pull}" if cut != "cut" or pull else "tuned-short")]
        + [accuracy(f"tuned-short-{cut}{pull}-{schedule}") for schedule in ("cosine", "one-cycle")]
        + [accuracy(f"tuned-long-{cut}{pull}" if cut != "cut" or pull else "tuned-long")]
        + [accuracy(f"tuned-long-{cut}-cosine{pull}")]
        for pull, how in pulls.items()
        for cut, name in CUT_LABELS.items()
        if _values(seeds, f"{cut}{pull}") and _values(seeds, "cut-both")
    ]
    shown = _sweeps(seeds)
    by_ratio = [
        [f"{ratio:g}", *(_percent(_at_ratio(seeds, name, ratio)) for name in shown)] for ratio in RATIOS if shown
    ]
    return [
        Table("Beside what is published", ["", "jaxslim", *(other["name"] for other in published.values())], beside),
        Table(
            "The sweep beside what is published",
            [
                "Ratio",
                "jaxslim (%)",
                "Parameters (M)",
                "Reference (%)",
                "Parameters (M)",
                "foolwood (%)",
                "Parameters (M)",
            ],
            sweeps,
        ),
        Table(
            "Several passes, each cutting up to half of each layer",
            [
                "Pass",
                "Cut (%)",
                f"Trained on, {long} (%)",
                "Parameters cut (%)",
                "Paper (%)",
                "Paper: parameters cut (%)",
            ],
            passes,
        ),
        Table(
            "Accuracy (%) without fine-tuning, by technique",
            ["Ratio", *shown.values()],
            by_ratio,
            "compared.png",
        ),
        Table(
            f"Techniques at {plan.RATIO:g}: L1 method; absorption and recalibration of the cut",
            ["", "Cut (%)", *(f"{rate}, {short} (%)" for rate in ("Stepped", "Cosine", "One-cycle"))]
            + [f"{rate}, {long} (%)" for rate in ("Stepped", "Cosine")],
            techniques,
        ),
    ]
