"""The stages of `reproduce.py`: what is trained, cut and measured, in which order."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxslim import data
from jaxslim.core import cost
from jaxslim.experiments import cutting, sweep
from jaxslim.experiments.stages import Stage
from jaxslim.slim.criteria import scale_values
from jaxslim.storage import checkpoint
from jaxslim.training import loop, steps
from jaxslim.training.config import RATIOS, TrainConfig

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


class Setting(NamedTuple):
    """What all stages of one seed share."""

    base: TrainConfig
    images: str
    """Digest of the data set."""
    home: Path
    """Folder of the runs and checkpoints, which have the names of their stages."""


def stages(at: Setting, techniques: bool) -> list[Stage]:
    """All stages of one seed, in order."""
    short, long = max(1, at.base.epochs // 16), max(1, at.base.epochs // 4)
    train, cut, measure = (functools.partial(make, at) for make in (_training, _cut, _sweep))
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
    planned += [
        tune("tuned-long-cut-both", "cut-both", epochs=long),
        tune("tuned-long-cut-cosine", "cut", epochs=long, schedule="cosine"),
        tune("tuned-long-cut-both-cosine", "cut-both", epochs=long, schedule="cosine"),
    ]
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
        planned += [
            tune(f"tuned-long-cut-{pull}", f"cut-{pull}", epochs=long),
            tune(f"tuned-long-cut-both-cosine-{pull}", f"cut-both-{pull}", epochs=long, schedule="cosine"),
        ]
    return planned


def _training(at: Setting, name: str, source: str | None = None, **changes: Any) -> Stage:
    start = str(at.home / source) if source else None
    config = dataclasses.replace(at.base, **changes, name=name, workdir=str(at.home / name), init_from=start)
    spec = dataclasses.asdict(config) | {"init_from": source, "images": at.images}
    del spec["workdir"], spec["data_dir"], spec["dataset"], spec["save_every"]
    if source:
        del spec["widths"]  # those of the source

    def work() -> dict[str, Any]:
        trained = loop.train(config)
        loaded = checkpoint.load(trained.folder)
        size = cost.count(loaded.module.apply, loaded.variables, np.zeros((1, *loaded.meta["image_shape"]), np.float32))
        accuracy = {"accuracy": trained.metrics["accuracy"], "best_accuracy": trained.best["accuracy"]}
        return {**accuracy, **size._asdict(), "small_scales": trained.metrics["small_scales"]}

    return Stage(name, spec, work, (source,) if source else (), lambda: loop.check_folder(at.home / name, config))


def _cut(at: Setting, name: str, source: str, ratio: float | None = RATIO, half: bool = False, **how: Any) -> Stage:
    """Cut at a ratio, or `half`: what lies under the median of all scales, and of no layer more than half."""

    def work() -> dict[str, Any]:
        options = dict(how)
        if half:
            scales = np.sort(scale_values(checkpoint.load(at.home / source).variables))
            options |= {"threshold": float(scales[len(scales) // 2 - 1]), "max_layer_ratio": 0.5}
        cutting.cut_once(at.home / source, at.home / name, ratio, at.base.data_dir, **options)
        loaded = checkpoint.load(at.home / name)
        images = data.load(at.base.dataset, data_dir=at.base.data_dir)
        mesh = steps.device_mesh()
        test = steps.evaluator(at.base, loaded.module, mesh, images.test_images, images.test_labels)
        return {"accuracy": test(loaded.variables).accuracy, **loaded.meta["cost"], "widths": loaded.module.widths}

    return Stage(name, {"source": source, "ratio": ratio, "half": half, "images": at.images, **how}, work, (source,))


def _sweep(at: Setting, name: str, source: str, **how: Any) -> Stage:
    def work() -> dict[str, Any]:
        images = data.load(at.base.dataset, data_dir=at.base.data_dir)
        cuts = sweep.sweep(checkpoint.load(at.home / source), at.base, images, RATIOS, **how)
        return {"rows": [dataclasses.asdict(cut.row) for cut in cuts]}

    return Stage(name, {"source": source, "ratios": RATIOS, "images": at.images, **how}, work, (source,))
