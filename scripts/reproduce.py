"""The tables of network slimming, measured: all stages from the baseline to the fine-tuned network, and a report."""

import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from jaxslim.cli import run
from jaxslim.config import RATIOS, TrainConfig
from jaxslim.errors import InputError
from jaxslim.files import locked, replacing, write_whole
from jaxslim.stages import Outcome, Stage, check
from jaxslim.stages import run as run_stages

PUBLISHED = Path(__file__).with_name("published.json")
RATIO = 0.7
PASSES = 4
RECALIBRATION = 20
"""Training batches."""
QUICK_IMAGES = 3000
FULL: dict[str, Any] = {"model": "vgg19", "width": 1.0, "epochs": 160, "l1": 1e-4}
QUICK: dict[str, Any] = {"model": "vgg11", "width": 0.125, "epochs": 2, "l1": 1e-3}
CUTS: dict[str, dict[str, Any]] = {
    "cut": {},
    "cut-absorbed": {"absorb": True},
    "cut-recalibrated": {"recalibrate": RECALIBRATION},
    "cut-both": {"absorb": True, "recalibrate": RECALIBRATION},
}
PULLS: dict[str, dict[str, Any]] = {
    "sparse-proximal": {"l1_method": "proximal"},
    "sparse-proximal-undecayed": {"l1_method": "proximal", "decay_scales": False},
}
Seeds = Sequence[dict[str, Outcome]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train, sparsify, cut and fine-tune VGG-19 on CIFAR-10 as the paper does, and report it beside what is published.

    The same command goes on where it was stopped, and writes the report again.
    """

    out: Path = Path("runs/reproduce")
    """Folder of the runs, results and the report."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets; without it the variable TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    seeds: int = 1
    """So many runs, with seeds from 0 on; the report gives means and deviations."""
    quick: bool = False
    """Rehearse every stage with VGG-11 at an eighth of its widths, 3,000 images and 2 epochs; the accuracies mean
    nothing."""
    techniques: bool = False
    """Also measure bias absorption, recalibration, proximal L1 and other schedules, alone and together."""
    width: float | None = None
    """Share of the network's widths; 1 if not given."""
    epochs: int | None = None
    """Epochs of the baseline and of sparse training, 160 if not given; fine-tuning takes a 16th and a quarter."""
    l1: float | None = None
    """Strength of the L1 pull, 1e-4 if not given; fewer epochs need a stronger one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation."""


def main(argv: list[str]) -> None:
    """The command."""
    options = tyro.cli(Options, args=argv, prog="python scripts/reproduce.py")
    preset = QUICK if options.quick else FULL
    given = {name: value for name in preset if (value := getattr(options, name, None)) is not None}
    chosen = preset | given
    width, techniques = chosen["width"], options.techniques or options.quick
    if options.seeds < 1:
        raise InputError(f"seeds is {options.seeds}; it must be at least 1.")
    if not 0 < width <= 1:
        raise InputError(f"width is {width}; it must lie in (0, 1], for example 0.25.")
    out = options.out.absolute()
    if not next(place for place in (out, *out.parents) if place.exists()).is_dir():
        raise InputError(f"{out} cannot be a folder, since a file is in its place; choose another --out.")
    from jaxslim import data, report
    from jaxslim.models import WIDTHS

    images = data.load("cifar10", data_dir=options.data_dir)  # fails at once where there is none
    base = TrainConfig(
        widths=tuple("M" if size == "M" else max(1, round(int(size) * width)) for size in WIDTHS[chosen["model"]]),
        epochs=chosen["epochs"],
        l1=chosen["l1"],
        dtype=options.dtype,
        dataset=str(out / "images.npz") if options.quick else "cifar10",
        data_dir=options.data_dir,
    )
    homes = [out / f"seed-{seed}" for seed in range(options.seeds)]
    plans = {home: _stages(base, home, seed, techniques) for seed, home in enumerate(homes)}
    for folder, stages in plans.items():
        check(folder, stages)
    with locked(out):
        if options.quick:
            _write_part(images, out / "images.npz")
        found = [run_stages(folder, stages, _announcer(folder, stages)) for folder, stages in plans.items()]
        result = _report(base, images.name, out / "seed-0", found, " ".join(["python scripts/reproduce.py", *argv]))
        report.show(result)
        report.write(result, out / "report")
        numbers = [{name: outcome.result for name, outcome in outcomes.items()} for outcomes in found]
        write_whole(out / "report" / "results.json", json.dumps(numbers, indent=1) + "\n")
    print(f"Report: {out}/report/report.md (with CSV, JSON and plots beside it)")
    if failed := _failures(found):
        print(f"jaxslim: failed: {'; '.join(failed)}. The same command tries these stages again.", file=sys.stderr)
        raise SystemExit(1)


def _write_part(images: Any, file: Path) -> None:
    """So many of the images as a quick run takes, chosen alike every time."""
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", QUICK_IMAGES), ("test", QUICK_IMAGES // 3)):
        labels = getattr(images, f"{split}_labels")
        chosen = np.random.default_rng(0).permutation(len(labels))[:count]
        arrays |= {f"{split}_images": getattr(images, f"{split}_images")[chosen], f"{split}_labels": labels[chosen]}
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _announcer(folder: Path, stages: Sequence[Stage]) -> Callable[[str], None]:
    names = [stage.name for stage in stages]
    return lambda name: print(f"\n--- {folder.name}: {name} ({names.index(name) + 1} of {len(names)}) ---", flush=True)


# The stages


def _stages(base: TrainConfig, home: Path, seed: int, techniques: bool) -> list[Stage]:
    """All stages of one seed; runs and checkpoints have their names, in the folder `home`."""
    short, long = max(1, base.epochs // 16), max(1, base.epochs // 4)
    base = dataclasses.replace(base, seed=seed)
    train = functools.partial(_training, base, home)
    cut, sweep = functools.partial(_cut, base, home), functools.partial(_sweep, base, home)
    tune = functools.partial(train, l1=0.0)
    stages = [
        train("baseline", l1=0.0),
        train("sparse"),
        sweep("sweep", "sparse"),
        cut("cut", "sparse"),
        tune("tuned-short", "cut", epochs=short),
        tune("tuned-long", "cut", epochs=long),
    ]
    source = "sparse"
    for number in range(1, PASSES + 1):
        stages += [
            cut(f"pass-{number}-cut", source, None, half=True),
            train(f"pass-{number}", f"pass-{number}-cut", epochs=long),
        ]
        source = f"pass-{number}"
    if not techniques:
        return stages
    for name, how in list(CUTS.items())[1:]:
        stages += [
            sweep(f"sweep-{name}", "sparse", **how),
            cut(name, "sparse", **how),
            tune(f"tuned-short-{name}", name, epochs=short),
        ]
    for schedule in ("cosine", "one-cycle"):
        for name in ("cut", "cut-both"):
            stages.append(tune(f"tuned-short-{name}-{schedule}", name, epochs=short, schedule=schedule))
    stages.append(tune("tuned-long-cut-both-cosine", "cut-both", epochs=long, schedule="cosine"))
    for pull, changes in PULLS.items():
        stages += [
            train(pull, **changes),
            sweep(f"sweep-{pull}", pull),
            sweep(f"sweep-{pull}-both", pull, **CUTS["cut-both"]),
        ]
        for name, how in (("cut", {}), ("cut-both", CUTS["cut-both"])):
            stages += [
                cut(f"{name}-{pull}", pull, **how),
                tune(f"tuned-short-{name}-{pull}", f"{name}-{pull}", epochs=short),
            ]
        tuned = f"tuned-long-cut-both-cosine-{pull}"
        stages.append(tune(tuned, f"cut-both-{pull}", epochs=long, schedule="cosine"))
    return stages


def _training(base: TrainConfig, home: Path, name: str, source: str | None = None, **changes: Any) -> Stage:
    start = str(home / source) if source else None
    config = dataclasses.replace(base, **changes, name=name, workdir=str(home / name), init_from=start)
    spec = dataclasses.asdict(config) | {"init_from": source, "dataset": Path(base.dataset).name}
    del spec["workdir"], spec["data_dir"]
    if source:
        del spec["widths"]  # those of the source

    def work() -> dict[str, Any]:
        from jaxslim.checkpoint import load
        from jaxslim.cost import count
        from jaxslim.loop import train

        trained = train(config)
        loaded = load(trained.folder)
        cost = count(loaded.module.apply, loaded.variables, np.zeros((1, *loaded.meta["image_shape"]), np.float32))
        accuracy = {"accuracy": trained.metrics["accuracy"], "best_accuracy": trained.best["accuracy"]}
        return {**accuracy, **cost._asdict(), "small_scales": trained.metrics["small_scales"]}

    return Stage(name, spec, work, (source,) if source else ())


def _cut(
    base: TrainConfig, home: Path, name: str, source: str, ratio: float | None = RATIO, half: bool = False, **how: Any
) -> Stage:
    """Cut at a ratio, or `half`: what lies under the median of all scales, and of no layer more than half."""

    def work() -> dict[str, Any]:
        from jaxslim import data, steps
        from jaxslim.checkpoint import load
        from jaxslim.sparsity import scale_values
        from jaxslim.sweep import cut_once

        options = dict(how)
        if half:
            scales = np.sort(scale_values(load(home / source).variables))
            options |= {"threshold": float(scales[len(scales) // 2 - 1]), "max_layer_ratio": 0.5}
        cut_once(home / source, home / name, ratio, base.data_dir, **options)
        loaded = load(home / name)
        images = data.load(base.dataset, data_dir=base.data_dir)
        mesh = steps.device_mesh()
        test = steps.evaluator(base, loaded.module, mesh, images.test_images, images.test_labels)
        return {"accuracy": test(loaded.variables).accuracy, **loaded.meta["cost"], "widths": loaded.module.widths}

    return Stage(name, {"source": source, "ratio": ratio, "half": half, **how}, work, (source,))


def _sweep(base: TrainConfig, home: Path, name: str, source: str, **how: Any) -> Stage:
    def work() -> dict[str, Any]:
        from jaxslim import data, sweep
        from jaxslim.checkpoint import load

        images = data.load(base.dataset, data_dir=base.data_dir)
        cuts = sweep.sweep(load(home / source), base, images, RATIOS, **how)
        return {"rows": [dataclasses.asdict(cut.row) for cut in cuts]}

    return Stage(name, {"source": source, "ratios": RATIOS, **how}, work, (source,))


# The report


def _report(base: TrainConfig, data: str, home: Path, seeds: Seeds, command: str) -> Any:
    """Means over the seeds beside the published figures; the plots are of the first seed."""
    from jaxslim import checkpoint
    from jaxslim.models import WIDTHS
    from jaxslim.report import Report, SweepRow
    from jaxslim.report import Stage as Row
    from jaxslim.sparsity import scale_values
    from jaxslim.sweep import machine

    labels = _labels(base)
    first = {name: outcome.result for name, outcome in seeds[0].items() if outcome.result}
    rows = [
        SweepRow(**row | {name: tuple(row[name]) for name in ("protected", "widths")})
        for row in first.get("sweep", {}).get("rows", [])
    ]
    for index, row in enumerate(rows):
        if row.ratio == RATIO and "tuned-long" in first:
            rows[index] = dataclasses.replace(row, finetuned_accuracy=first["tuned-long"]["accuracy"])
    sizes = {name: first[name] for name in labels if name in first}
    as_published = (base.epochs, base.widths, base.l1) == (FULL["epochs"], WIDTHS["vgg19"], FULL["l1"])
    seconds = sum(outcome.seconds for outcomes in seeds for outcome in outcomes.values())
    notes = {
        "recipe": f"VGG with widths {' '.join(map(str, base.widths or ()))}; {base.epochs} epochs, L1 {base.l1:g}, "
        f"{base.dtype}; {len(seeds)} seed(s)",
        "data": data,
        **({} if as_published else {"published figures": "of all widths, 160 epochs and L1 1e-4: no comparison"}),
        "accuracy": "of the last epoch, on the test images",
        "wall time": f"{seconds:.0f} s, without what interrupted processes spent on a stage",
        **machine(),
        "command": command,
        **({"failed": "; ".join(failed)} if (failed := _failures(seeds)) else {}),
    }
    return Report(
        title="Network slimming of VGG on CIFAR-10",
        stages=tuple(
            Row(name=labels[name], accuracy=_mean(seeds, name), params=size["params"], macs=size["macs"])
            for name, size in sizes.items()
        ),
        sweep=tuple(rows),
        channels=rows[0].kept if rows else {},
        scales={
            name: scale_values(checkpoint.load(home / name).variables)
            for name in ("baseline", "sparse", *PULLS)
            if name in first and (home / name).exists()
        },
        tables=tuple(table for table in _tables(base, seeds) if table.rows),
        notes=notes,
    )


def _labels(base: TrainConfig) -> dict[str, str]:
    short, long = max(1, base.epochs // 16), max(1, base.epochs // 4)
    return {
        "baseline": "Baseline",
        "sparse": "Trained with sparsity",
        "cut": f"Cut at {RATIO:g}",
        "tuned-short": f"Fine-tuned, {short} epochs",
        "tuned-long": f"Fine-tuned, {long} epochs",
    }


def _failures(seeds: Seeds) -> list[str]:
    return [
        f"seed {seed}: {name} ({outcome.failure})"
        for seed, outcomes in enumerate(seeds)
        for name, outcome in outcomes.items()
        if outcome.failure
    ]


def _values(seeds: Seeds, name: str, value: str = "accuracy") -> list[float]:
    return [outcomes[name].result[value] for outcomes in seeds if name in outcomes and outcomes[name].result]


def _mean(seeds: Seeds, name: str) -> float:
    return statistics.fmean(_values(seeds, name))


def _percent(values: Sequence[float]) -> str:
    """Mean of shares as a percentage, with the deviation where there are several."""
    if not values:
        return ""
    deviation = f" \N{PLUS-MINUS SIGN} {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


def _tables(base: TrainConfig, seeds: Seeds) -> list[Any]:
    from jaxslim.report import Table

    published = json.loads(PUBLISHED.read_text())

    def accuracy(name: str) -> str:
        return _percent(_values(seeds, name))

    def of_sweep(name: str, place: int) -> str:
        return _percent([rows[place]["accuracy"] for rows in _values(seeds, name, "rows")])  # type: ignore[index]

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
    sizes = _values(seeds[:1], "sweep", "rows")
    sweeps = [
        [f"{ratio:g}", of_sweep("sweep", place), number(sizes[0][place]["params"] / 1e6)]  # type: ignore[index]
        + [number(value) for other in (reference, foolwood) for value in other["sweep"][f"{ratio:.1f}"]]
        for place, ratio in enumerate(RATIOS)
        if sizes
    ]
    full = _values(seeds, "baseline", "params")
    passes = [
        [str(place), accuracy(f"pass-{place}-cut"), accuracy(f"pass-{place}"), number(100 * (1 - left[0] / full[0]))]
        + [number(value) for value in paper["passes"][place - 1]]
        for place in range(1, PASSES + 1)
        if full and (left := _values(seeds, f"pass-{place}", "params"))
    ]
    stepped, long = labels["tuned-short"].partition(", ")[2], labels["tuned-long"].partition(", ")[2]
    pulls = {"": "subgradient", **{f"-{pull}": pull.removeprefix("sparse-").replace("-", ", ") for pull in PULLS}}
    names = {"cut": "none", "cut-absorbed": "absorbed", "cut-recalibrated": "recalibrated", "cut-both": "both"}
    techniques = [
        [f"{how}; {name}", accuracy(f"{cut}{pull}")]
        + [accuracy(f"tuned-short-{cut}{pull}" if cut != "cut" or pull else "tuned-short")]
        + [accuracy(f"tuned-short-{cut}{pull}-{schedule}") for schedule in ("cosine", "one-cycle")]
        + [accuracy(f"tuned-long-{cut}-cosine{pull}" if cut != "cut" or pull else "tuned-long")]
        for pull, how in pulls.items()
        for cut, name in names.items()
        if _values(seeds, f"{cut}{pull}") and len(seeds[0]) > 14
    ]
    sweep_names = {
        "sweep": "as the reference",
        **{f"sweep-{cut}": names[cut] for cut in list(CUTS)[1:]},
        **{
            f"sweep-{pull}{form}": pulls[f"-{pull}"] + also
            for pull in PULLS
            for form, also in (("", ""), ("-both", "; both"))
        },
    }
    shown = [name for name in sweep_names if _values(seeds, name, "rows")]
    by_ratio = [
        [f"{ratio:g}", *(of_sweep(name, place) for name in shown)]
        for place, ratio in enumerate(RATIOS)
        if len(shown) > 1
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
            ["Ratio", *(sweep_names[name] for name in shown)],
            by_ratio,
        ),
        Table(
            f"Techniques at {RATIO:g}: L1 method; absorption and recalibration of the cut",
            ["", "Cut (%)", f"Stepped, {stepped} (%)", "Cosine (%)", "One-cycle (%)", f"{long} (%)"],
            techniques,
        ),
    ]


if __name__ == "__main__":
    run(main, sys.argv[1:])
