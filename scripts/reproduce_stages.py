"""The stages of `reproduce.py`: what is trained, cut and measured, in which order."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxslim import checkpoint, cost, data, loop, sparsity, steps, sweep
from jaxslim.config import RATIOS, TrainConfig
from jaxslim.stages import Stage

RATIO = 0.7
PASSES = 4
RECALIBRATION = 20
"""Training batches."""
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


def stages(base: TrainConfig, home: Path, seed: int, techniques: bool) -> list[Stage]:
    """All stages of one seed; runs and checkpoints have their names, in the folder `home`."""
    short, long = max(1, base.epochs // 16), max(1, base.epochs // 4)
    base = dataclasses.replace(base, seed=seed)
    train = functools.partial(_training, base, home)
    cut, measure = functools.partial(_cut, base, home), functools.partial(_sweep, base, home)
    tune = functools.partial(train, l1=0.0)
    planned = [
        train("baseline", l1=0.0),
        train("sparse"),
        measure("sweep", "sparse"),
        cut("cut", "sparse"),
        tune("tuned-short", "cut", epochs=short),
        tune("tuned-long", "cut", epochs=long),
    ]
    source = "sparse"
    for number in range(1, PASSES + 1):
        planned += [
            cut(f"pass-{number}-cut", source, None, half=True),
            train(f"pass-{number}", f"pass-{number}-cut", epochs=long),
        ]
        source = f"pass-{number}"
    if not techniques:
        return planned
    for name, how in list(CUTS.items())[1:]:
        planned += [
            measure(f"sweep-{name}", "sparse", **how),
            cut(name, "sparse", **how),
            tune(f"tuned-short-{name}", name, epochs=short),
        ]
    for schedule in ("cosine", "one-cycle"):
        for name in ("cut", "cut-both"):
            planned.append(tune(f"tuned-short-{name}-{schedule}", name, epochs=short, schedule=schedule))
    planned.append(tune("tuned-long-cut-both-cosine", "cut-both", epochs=long, schedule="cosine"))
    for pull, changes in PULLS.items():
        planned += [
            train(pull, **changes),
            measure(f"sweep-{pull}", pull),
            measure(f"sweep-{pull}-both", pull, **CUTS["cut-both"]),
        ]
        for name, how in (("cut", {}), ("cut-both", CUTS["cut-both"])):
            planned += [
                cut(f"{name}-{pull}", pull, **how),
                tune(f"tuned-short-{name}-{pull}", f"{name}-{pull}", epochs=short),
            ]
        tuned = f"tuned-long-cut-both-cosine-{pull}"
        planned.append(tune(tuned, f"cut-both-{pull}", epochs=long, schedule="cosine"))
    return planned


def _training(base: TrainConfig, home: Path, name: str, source: str | None = None, **changes: Any) -> Stage:
    start = str(home / source) if source else None
    config = dataclasses.replace(base, **changes, name=name, workdir=str(home / name), init_from=start)
    spec = dataclasses.asdict(config) | {"init_from": source, "dataset": Path(base.dataset).name}
    del spec["workdir"], spec["data_dir"]
    if source:
        del spec["widths"]  # those of the source

    def work() -> dict[str, Any]:
        trained = loop.train(config)
        loaded = checkpoint.load(trained.folder)
        size = cost.count(loaded.module.apply, loaded.variables, np.zeros((1, *loaded.meta["image_shape"]), np.float32))
        accuracy = {"accuracy": trained.metrics["accuracy"], "best_accuracy": trained.best["accuracy"]}
        return {**accuracy, **size._asdict(), "small_scales": trained.metrics["small_scales"]}

    return Stage(name, spec, work, (source,) if source else ())


def _cut(
    base: TrainConfig, home: Path, name: str, source: str, ratio: float | None = RATIO, half: bool = False, **how: Any
) -> Stage:
    """Cut at a ratio, or `half`: what lies under the median of all scales, and of no layer more than half."""

    def work() -> dict[str, Any]:
        options = dict(how)
        if half:
            scales = np.sort(sparsity.scale_values(checkpoint.load(home / source).variables))
            options |= {"threshold": float(scales[len(scales) // 2 - 1]), "max_layer_ratio": 0.5}
        sweep.cut_once(home / source, home / name, ratio, base.data_dir, **options)
        loaded = checkpoint.load(home / name)
        images = data.load(base.dataset, data_dir=base.data_dir)
        mesh = steps.device_mesh()
        test = steps.evaluator(base, loaded.module, mesh, images.test_images, images.test_labels)
        return {"accuracy": test(loaded.variables).accuracy, **loaded.meta["cost"], "widths": loaded.module.widths}

    return Stage(name, {"source": source, "ratio": ratio, "half": half, **how}, work, (source,))


def _sweep(base: TrainConfig, home: Path, name: str, source: str, **how: Any) -> Stage:
    def work() -> dict[str, Any]:
        images = data.load(base.dataset, data_dir=base.data_dir)
        cuts = sweep.sweep(checkpoint.load(home / source), base, images, RATIOS, **how)
        return {"rows": [dataclasses.asdict(cut.row) for cut in cuts]}

    return Stage(name, {"source": source, "ratios": RATIOS, **how}, work, (source,))
