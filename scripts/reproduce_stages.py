"""The stages of `reproduce.py`: what is trained, cut and measured, in which order."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxslim import count
from jaxslim.experiments.cutting import accuracies, cut_once
from jaxslim.experiments.stages import Stage
from jaxslim.experiments.sweep import sweep
from jaxslim.models import architecture
from jaxslim.slim.criteria.scales import scale_values
from jaxslim.storage import checkpoint
from jaxslim.training import loop
from jaxslim.training.config import RATIOS, TrainConfig
from jaxslim.training.network import load
from jaxslim.training.run import MAY_DIFFER, check_folder

PULLS: dict[str, dict[str, Any]] = {
    "": {},
    "-proximal": {"l1_method": "proximal"},
    "-proximal-undecayed": {"l1_method": "proximal", "decay_scales": False},
}
"""Ways to pull on the scales, by how the names of their stages end. The first is the reference's, here and below."""
CUTS: dict[str, dict[str, Any]] = {
    "": {"absorb": False, "recalibrate": 0},
    "-absorbed": {"absorb": True, "recalibrate": 0},
    "-recalibrated": {"absorb": False, "recalibrate": 20},
    "-both": {"absorb": True, "recalibrate": 20},
}
"""Ways to cut, by how the names of their stages end."""
TUNINGS = {
    "tuned-short": "step",
    "tuned-short-cosine": "cosine",
    "tuned-short-one-cycle": "one-cycle",
    "tuned-long": "step",
    "tuned-long-cosine": "cosine",
}
"""Schedules of fine-tuning, by how the names of their stages start."""
TECHNIQUES: dict[tuple[str, str], tuple[str, ...]] = {
    ("", ""): tuple(TUNINGS),
    ("", "-absorbed"): ("tuned-short",),
    ("", "-recalibrated"): ("tuned-short",),
    ("", "-both"): tuple(TUNINGS),
    **{(pull, ""): ("tuned-short", "tuned-long") for pull in list(PULLS)[1:]},
    **{(pull, "-both"): ("tuned-short", "tuned-long-cosine") for pull in list(PULLS)[1:]},
}
"""Which of them are measured, by pull and cut."""


class Plan(NamedTuple):
    """Where a network is cut, and what is done with it then."""

    ratios: tuple[float, ...] = (0.7,)  # shares of the channels that single cuts remove, in ascending order
    long: int = 4  # which part of training the long fine-tuning is: 4 is a quarter, 1 is all
    norm: bool = True  # whether there is BatchNorm, whose statistics a cut can estimate again
    passes: bool = True  # whether the network is cut in several passes too

    def end(self, ratio: float) -> str:
        """How the names of the stages of a ratio end."""
        return f"-{ratio:g}" if len(self.ratios) > 1 else ""

    def cuts(self) -> dict[str, dict[str, Any]]:
        """The ways to cut that this network allows."""
        return {name: way for name, way in CUTS.items() if self.norm or not way["recalibrate"]}


class Setting(NamedTuple):
    """What all stages of one seed share."""

    base: TrainConfig
    images: str  # digest of the data set
    home: Path  # folder of the runs and checkpoints, which have the names of their stages
    plan: Plan = Plan()


def epochs(base: TrainConfig, tuning: str, long: int = 4) -> int:
    """Epochs of fine-tuning: a 16th of the baseline's if it is short, and a part that `long` tells if it is long."""
    return max(1, base.epochs // 16) if tuning.startswith("tuned-short") else max(2, base.epochs // long)


def stages_of_seed(at: Setting, techniques: bool) -> list[Stage]:
    """All stages of one seed, in order; with `techniques`, also those that neither paper nor reference has.

    Techniques are measured at the largest ratio.
    """
    plan, train, cut = at.plan, functools.partial(training, at), functools.partial(_cut, at)
    planned, source = [train("baseline", l1=0.0)], "sparse"
    as_published = {("", ""): ("tuned-short", "tuned-long")}
    for (pull, way), tunings in (TECHNIQUES if techniques else as_published).items():
        if way not in plan.cuts():
            continue
        if not way:
            planned.append(train(f"sparse{pull}", **PULLS[pull]))
        planned.append(_sweep(at, f"sweep{pull}{way}", f"sparse{pull}", way))
        for ratio in plan.ratios if (pull, way) == ("", "") else plan.ratios[-1:]:
            end = f"{pull}{way}{plan.end(ratio)}"
            planned.append(cut(f"cut{end}", f"sparse{pull}", ratio, way))
            for name in tunings if ratio == plan.ratios[-1] else as_published["", ""]:
                changes = {"l1": 0.0, "epochs": epochs(at.base, name, plan.long), "schedule": TUNINGS[name]}
                planned.append(train(f"{name}{end}", f"cut{end}", **changes))
    passes = ("pass-1", "pass-2", "pass-3", "pass-4")  # the paper's multi-pass scheme: cut, train on, cut again
    for name in passes if plan.passes else ():
        planned.append(cut(f"{name}-cut", source))
        planned.append(train(name, f"{name}-cut", epochs=epochs(at.base, name)))
        source = name
    return planned


def training(at: Setting, name: str, source: str | None = None, **changes: Any) -> Stage:
    """The stage that trains `at.base` with `changes`, from new parameters or from the result of the stage `source`."""
    folder, start = at.home / name, str(at.home / source) if source else None
    config = dataclasses.replace(at.base, **changes, name=name, workdir=str(folder), init_from=start)
    free = {*MAY_DIFFER, "dataset"}  # the digest stands for the data set
    fields = {field: value for field, value in dataclasses.asdict(config).items() if field not in free}

    def work() -> dict[str, Any]:
        trained = loop.train(config)
        module, variables, meta = checkpoint.load(trained.folder)
        size = count(module.apply, variables, np.zeros((1, *meta["image_shape"]), np.float32))
        accuracy = {"accuracy": trained.metrics["accuracy"], "best_accuracy": trained.best["accuracy"]}
        return {**accuracy, **size._asdict(), "small_scales": trained.metrics.get("small_scales")}

    spec = {**fields, "init_from": source, "images": at.images}
    return Stage(name, spec, work, (source,) if source else (), lambda: check_folder(folder, config))


def _cut(at: Setting, name: str, source: str, ratio: float | None = None, way: str = "") -> Stage:
    """Cut at a ratio. Without a ratio, cut all scales up to their median, but at most half of each layer."""

    def work() -> dict[str, Any]:
        data, options = {"dataset": at.base.dataset, "data_dir": at.base.data_dir}, CUTS[way].copy()
        if ratio is None:
            scales = np.sort(scale_values(checkpoint.load(at.home / source).variables))
            options |= {"threshold": float(scales[len(scales) // 2 - 1]), "max_layer_ratio": 0.5}
        cut_once(at.home / source, at.home / name, ratio, data=data, **options)
        _, accuracy, _ = accuracies(at.home / source, at.home / name, **data)
        module, _, meta = checkpoint.load(at.home / name)
        return {"accuracy": accuracy, **meta["cost"], "architecture": architecture(module)}

    return Stage(name, {"source": source, "ratio": ratio, "images": at.images, **CUTS[way]}, work, (source,))


def _sweep(at: Setting, name: str, source: str, way: str) -> Stage:
    ratios = sorted({*RATIOS, *at.plan.ratios})

    def work() -> dict[str, Any]:
        cuts = sweep(checkpoint.load(at.home / source), at.base, load(at.base), ratios, **CUTS[way])
        return {"rows": [dataclasses.asdict(cut.row) for cut in cuts]}

    return Stage(name, {"source": source, "ratios": ratios, "images": at.images, **CUTS[way]}, work, (source,))
