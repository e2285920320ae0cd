"""The report of `reproduce.py`: means over the seeds beside the published figures."""

import contextlib
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reproduce_recipes import Recipe, data_name
from reproduce_stages import PULLS, TECHNIQUES, TUNINGS, Plan, epochs

from jaxslim.errors import InputError
from jaxslim.experiments.hardware import machine
from jaxslim.experiments.stages import Outcome
from jaxslim.models import architecture, build
from jaxslim.reporting.report import PipelineRow, Report, SweepRow, Table
from jaxslim.slim.criteria.scales import scale_values
from jaxslim.storage import checkpoint
from jaxslim.training.config import TrainConfig
from jaxslim.training.network import pulled

Seeds = Sequence[Mapping[str, Outcome]]  # what became of each seed's stages


def compose(
    recipe: Recipe, base: TrainConfig, data: str, outcomes: Mapping[Path, Mapping[str, Outcome]], command: str
) -> Report:
    """Build the report from the outcomes of each seed's stages, by the seed's folder.

    Tables show means over the seeds; pipeline, sweep and plots show the seed that failed least. `base` is what all
    trainings share, which may be less than the recipe asks for. `data` is the data set in words, or only its name if it
    is whole.
    """
    seeds, plan = list(outcomes.values()), recipe.plan
    home, stages = min(outcomes.items(), key=lambda item: len(failures([item[1]])))
    shown = {name: outcome.result for name, outcome in stages.items() if outcome.result}
    rows = shown.get("sweep", {}).get("rows", [])
    tuned = {ratio: shown.get(f"tuned-long{plan.end(ratio)}", {}).get("accuracy") for ratio in plan.ratios}
    trained = [name for name in ("baseline", *(f"sparse{pull}" for pull in PULLS)) if name in shown]
    scales = {}
    for name in trained:
        with contextlib.suppress(InputError):  # only the plot needs the checkpoint
            scales[name] = _scales(base, home / name)
    sweeps = _sweeps(seeds)
    spent = sum(outcome.seconds for stages in seeds for outcome in stages.values())
    notes = {
        "recipe": f"{_recipe(recipe.network, base)}; {len(seeds)} seed(s)",
        "pipeline, sweep, architectures and plots": f"of {home.name}" if len(seeds) > 1 else "",
        "data": data,
        **_of_published(recipe, base, data),
        "accuracy": "of the last epoch, on the test images",
        "wall time": f"{spent:.0f} s, without what interrupted processes spent on a stage",
        **machine(),
        "command": command,
        "checkpoints gone or damaged, so that no plot shows their scales": ", ".join(sorted({*trained} - {*scales})),
        "failed": "; ".join(failures(seeds)),
    }
    return Report(
        title=f"Network slimming of {recipe.network} on {data}",
        pipeline=tuple(
            PipelineRow(name=label, **{value: shown[name][value] for value in ("accuracy", "params", "macs")})
            for name, label in _labels(base, plan).items()
            if name in shown
        ),
        sweep=tuple(SweepRow(**row | {"finetuned_accuracy": tuned.get(row["ratio"])}) for row in rows),
        channels=rows[0]["kept"] if rows else {},
        scales=scales,
        compared={
            label: tuple((ratio, statistics.fmean(_values(seeds, name, "accuracy", ratio))) for ratio in _ratios(seeds))
            for name, label in sweeps.items()
            if len(sweeps) > 1
        },
        more_tables=tuple(table for table in tables(recipe, base, seeds) if table.rows),
        notes={name: note for name, note in notes.items() if note},
    )


def _scales(base: TrainConfig, path: Path) -> np.ndarray:
    """The |scale| of all channels that L1 pulls on: (channels of all layers,)."""
    module, variables, meta = checkpoint.load(path)
    mask, _ = pulled(base, module, variables, tuple(meta["image_shape"]))
    return scale_values(variables, mask)


def _recipe(network: str, base: TrainConfig) -> str:
    module = build(base.model, dict(base.model_args), num_classes=10, dtype=base.dtype)
    widths = architecture(module) or ", ".join(f"{name} {value}" for name, value in base.model_args.items())
    return f"{network} {widths}; {_epochs(base.epochs)}, batch {base.batch_size}, L1 {base.l1:g}, {base.dtype}"


def _of_published(recipe: Recipe, base: TrainConfig, data: str) -> dict[str, str]:
    """Notes that say what the published figures are of."""
    config, known = recipe.config, recipe.published
    if not known:
        return {}
    alike = data == base.dataset and all(getattr(base, f) == getattr(config, f) for f in ("model_args", "epochs", "l1"))
    whole = f"of {recipe.network} on {data_name(config.dataset)} with all widths, {_epochs(config.epochs)}"
    batches = f"{_epochs(config.epochs)} with batches of 64 and CIFAR's own mean and deviation"
    return {
        "published figures": "" if alike else f"{whole} and L1 {config.l1:g}: no comparison",
        "authors and paper": f"they train and fine-tune for {batches}",
        "reference at 0.7": "its two tables give 10.00 and 93.01 before fine-tuning; its ratio 0 is the baseline"
        if "PyTorch reference" in known
        else "",
    }


def failures(seeds: Seeds) -> list[str]:
    """Which stages failed, and how many stages could not run because of these."""
    outcomes = [(seed, name, outcome) for seed, stages in enumerate(seeds) for name, outcome in stages.items()]
    failed = [f"seed {seed}: {name} ({one.failure})" for seed, name, one in outcomes if one.failure and not one.blocked]
    blocked = sum(outcome.blocked for *_, outcome in outcomes)
    return [*failed, *([f"{blocked} more that need their results"] if blocked else [])]


def tables(recipe: Recipe, base: TrainConfig, seeds: Seeds) -> list[Table]:
    """The tables that compare with published figures, and the ways to train and cut with each other."""
    published, plan = recipe.published, recipe.plan
    sweeps, size, gone = _sweeps(seeds), "Parameters (M)", "Parameters cut (%)"
    by_ratio = [f"{who} (%)" for who, other in published.items() if "sweep" in other]
    by_pass = [who for who, other in published.items() if "passes" in other]
    again = _after("Trained on", epochs(base, "pass"))
    passes = ["Pass", "Cut (%)", f"{again} (%)", gone]
    tunings = [f"{_after(what.capitalize(), epochs(base, name, plan.long))} (%)" for name, what in TUNINGS.items()]
    end, ratio = plan.end(plan.ratios[-1]), plan.ratios[-1]
    techniques = [
        [label, *(_percent(seeds, name.replace("sweep", column) + end) for column in ("cut", *TUNINGS))]
        for name, label in sweeps.items()
        if len(sweeps) > 1
    ]
    title = f"Techniques at {ratio:g}: L1 method; absorption and recalibration of the cut"
    return [
        Table("Beside what is published", ["", "jaxslim", *published], _beside(recipe, base, seeds)),
        Table(
            "Accuracy (%) without fine-tuning",
            ["Ratio", *sweeps.values(), size, *itertools.chain(*((who, size) for who in by_ratio))],
            _by_ratio(recipe, sweeps, seeds),
            "compared.png",
        ),
        Table(
            "Several passes, each cutting up to half of each layer",
            [*passes, *itertools.chain(*((f"{who} (%)", f"{who}: {gone.lower()}") for who in by_pass))],
            _passes(recipe, seeds),
        ),
        Table(title, ["", "Cut (%)", *tunings], techniques),
    ]


def _beside(recipe: Recipe, base: TrainConfig, seeds: Seeds) -> list[list[str]]:
    published, plan, labels = recipe.published, recipe.plan, _labels(base, recipe.plan)
    rows: list[list[str]] = []

    def add(label: str, mine: str, key: str, ratio: float | None = None) -> None:
        figures = [
            other if ratio is None else other.get("ratios", {}).get(f"{ratio:g}", {}) for other in published.values()
        ]
        rows.append([label, mine, *(_number(figure.get(key)) for figure in figures)])

    for name in ("baseline", "sparse") if published else ():
        add(labels[name], _percent(seeds, name), name)
    for ratio in plan.ratios if published else ():
        end, at = plan.end(ratio), _at(plan, ratio)
        for name, key in (
            ("cut", "cut"),
            ("tuned-short", "short"),
            ("tuned-long", "whole" if plan.long == 1 else "long"),
        ):
            add(labels[f"{name}{end}"], _percent(seeds, f"{name}{end}"), key, ratio)
        if plan.long != 1:
            add(_after(f"Fine-tuned{at}", recipe.config.epochs), "", "whole", ratio)
        add(f"Parameters left{at} (M)", _number(_mean(seeds, f"cut{end}", "params"), 1e6), "params", ratio)
        add(f"MACs left{at} (G)", _number(_mean(seeds, f"cut{end}", "macs"), 1e9), "macs", ratio)
    return rows


def _by_ratio(recipe: Recipe, sweeps: Mapping[str, str], seeds: Seeds) -> list[list[str]]:
    """Empty where the table of the sweep says all of it."""
    others = [other["sweep"] for other in recipe.published.values() if "sweep" in other]
    rows: list[list[str]] = []
    for ratio in _ratios(seeds) if others or len(sweeps) > 1 else ():
        published = itertools.chain(*(other.get(f"{ratio:.1f}", (None, None)) for other in others))
        params = _number(_mean(seeds, "sweep", "params", ratio), 1e6)
        rows.append(
            [f"{ratio:g}", *(_percent(seeds, name, ratio) for name in sweeps), params, *map(_number, published)]
        )
    return rows


def _passes(recipe: Recipe, seeds: Seeds) -> list[list[str]]:
    others = [other["passes"] for other in recipe.published.values() if "passes" in other]
    rows: list[list[str]] = []
    for number in itertools.count(1):
        full, left = (_mean(seeds, name, "params") for name in ("baseline", f"pass-{number}"))
        if not (full and left):
            return rows
        accuracies = [_percent(seeds, name) for name in (f"pass-{number}-cut", f"pass-{number}")]
        published = itertools.chain(*(other[number - 1] for other in others))
        rows.append([str(number), *accuracies, *map(_number, [100 * (1 - left / full), *published])])
    return rows


def _labels(base: TrainConfig, plan: Plan) -> dict[str, str]:
    """What the tables call the stages of the pipeline."""
    labels = {"baseline": "Baseline", "sparse": "Trained with sparsity"}
    for ratio in plan.ratios:
        end = plan.end(ratio)
        labels[f"cut{end}"] = f"Cut at {ratio:g}"
        for name in ("tuned-short", "tuned-long"):
            labels[f"{name}{end}"] = _after(f"Fine-tuned{_at(plan, ratio)}", epochs(base, name, plan.long))
    return labels


def _at(plan: Plan, ratio: float) -> str:
    """Which ratio a label is of, where there are several."""
    return f" at {ratio:g}" if len(plan.ratios) > 1 else ""


def _after(what: str, number: int) -> str:
    return f"{what}, {_epochs(number)}"


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number > 1)}"


def _sweeps(seeds: Seeds) -> dict[str, str]:
    """Labels of the sweeps that were measured, by the names of their stages."""
    words = {f"sweep{pull}{way}": (part[1:] for part in (pull, way) if part) for pull, way in TECHNIQUES}
    labels = {name: "; ".join(parts).replace("-", ", ") or "as the reference" for name, parts in words.items()}
    return {name: label for name, label in labels.items() if _values(seeds, name, "rows")}


def _values(seeds: Seeds, name: str, value: str, ratio: float | None = None) -> list[Any]:
    """One value of a stage's result, or of its row of a ratio, for each seed that has it."""
    results = [stages[name].result for stages in seeds if name in stages and stages[name].result]
    if ratio is None:
        return [result[value] for result in results]
    return [row[value] for result in results for row in result["rows"] if row["ratio"] == ratio]


def _ratios(seeds: Seeds) -> list[float]:
    """The ratios that sweeps measured."""
    rows = itertools.chain(*(rows for name in _sweeps(seeds) for rows in _values(seeds, name, "rows")))
    return sorted({row["ratio"] for row in rows})


def _mean(seeds: Seeds, name: str, value: str, ratio: float | None = None) -> float | None:
    values = _values(seeds, name, value, ratio)
    return statistics.fmean(values) if values else None


def _percent(seeds: Seeds, name: str, ratio: float | None = None) -> str:
    """The mean accuracy as a percentage, with the deviation where there are several."""
    shares = _values(seeds, name, "accuracy", ratio)
    deviation = f" \N{PLUS-MINUS SIGN} {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{100 * statistics.fmean(shares):.2f}{deviation}" if shares else ""


def _number(value: float | None, unit: float = 1) -> str:
    """With two decimals, or two digits of what is smaller than a tenth, as sizes of rehearsals are."""
    return "" if value is None else f"{value / unit:{'.2f' if abs(value / unit) >= 0.1 or not value else '.2g'}}"
