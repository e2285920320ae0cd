"""Compare the criteria on the same trained networks: accuracy against MACs, before and after a short fine-tuning."""

import dataclasses
import functools
import itertools
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from reproduce_stages import Setting, training

from jaxslim import models
from jaxslim.commands.arguments import parse
from jaxslim.commands.cli import run, start_jax
from jaxslim.data.archives import write_part
from jaxslim.errors import InputError
from jaxslim.experiments import stages
from jaxslim.experiments.comparison import by_criterion, in_steps
from jaxslim.experiments.hardware import machine
from jaxslim.files import check_out, locked, write_whole
from jaxslim.models.vgg import max_pool
from jaxslim.reporting.comparison import CutRow, StepsRow, cuts_table, plot, steps_table, summary_table
from jaxslim.reporting.report import markdown
from jaxslim.reporting.results import Report
from jaxslim.storage.integrity import digest
from jaxslim.training.config import DIGITS, TrainConfig
from jaxslim.training.network import load

CRITERIA = (
    *("bn_scale", "magnitude", "magnitude_mean", "lamp", "geometric_median"),
    *("taylor", "fisher", "activation", "random"),
)
TRAININGS = ("plain", "group_lasso", "l1")
CIFAR10 = (8, "M", 16, "M", 32, 32, "M", 64, 64)
TRAIN_IMAGES, TEST_IMAGES = 5000, 2000


class NoNorm(nn.Module):
    """The VGG without BatchNorm: biases take its place, and He's initial kernels."""

    widths: Any
    num_classes: int = 10
    dtype: Any = np.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in self.widths:
            if width == "M":
                x = max_pool(x)
            else:
                x = nn.relu(nn.Conv(width, (3, 3), kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train a network without a pull, with L1, and with group lasso; cut each by every criterion; fine-tune it shortly.
    The same command continues where it was stopped, and writes the report again."""

    dataset: str = "digits"
    """digits, or another data set, of which 5,000 training and 2,000 test images are taken."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets; the default is the variable TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    out: str | None = None
    """Folder of the runs and results; by default runs/criteria/NAME, where NAME tells data set and network."""
    report: str = "runs/criteria/report"
    """Folder of the report: NAME.json, NAME.md and NAME.png."""
    seeds: int = 3
    """Number of seeds, from 0 on."""
    norm: bool = True
    """Whether the network has BatchNorm. Without it there is no training with L1 and no bn_scale."""
    trainings: tuple[str, ...] = TRAININGS
    """Which trainings: plain, group_lasso, l1."""
    criteria: tuple[str, ...] = CRITERIA
    """Functions of jaxslim.criteria; magnitude is normalised by size, magnitude_mean by the mean of the layer."""
    scopes: tuple[str, ...] = ("global", "alike")
    """Among which channels scores compete."""
    macs: tuple[float, ...] = (0.5, 0.25, 0.125)
    """Shares of the multiply-accumulates that stay."""
    tuned_macs: tuple[float, ...] = (0.25, 0.125)
    """Shares at which the cut networks are fine-tuned too."""
    steps: int = 3
    """Number of steps that is compared with one cut, at the shares with fine-tuning; 1 leaves it out."""
    epochs: int = 20
    """Epochs of training."""
    tune_epochs: int = 2
    """Epochs of fine-tuning; with steps, of each step."""
    learning_rate: float = 0.1
    """Learning rate of training. Fine-tuning starts at a tenth."""
    l1: float = 0.01
    """Strength of the L1 pull."""
    group_lasso: float = 3e-4
    """Strength of the group lasso."""


def main(argv: list[str]) -> None:
    """The command."""
    options = parse(Options, argv, prog="python scripts/criteria.py", examples=["python scripts/criteria.py"])
    if options.seeds < 1 or options.steps < 1:
        raise InputError("seeds and steps must be at least 1.")
    for kind, given, known in (
        ("criterion", options.criteria, CRITERIA),
        ("training", options.trainings, TRAININGS),
        ("scope", options.scopes, ("global", "alike", "layer")),
    ):
        if wrong := [name for name in given if name not in known] or ["empty"] * (not given):
            raise InputError(f"There is no {kind} {wrong[0]}; give some of {', '.join(known)}.")
    name = Path(options.dataset).stem + ("" if options.norm else "-no-norm")
    out = Path(options.out or f"runs/criteria/{name}").absolute()
    check_out(out)
    start_jax()
    models.MODELS["no-norm"] = NoNorm
    with locked(out, "--out"):
        base = _base(options, out)
        images = load(base)
        content = digest({name: value for name, value in images._asdict().items() if isinstance(value, np.ndarray)})
        results: dict[str, list[Any]] = {"cuts": [], "steps": [], "full": []}
        seconds = 0.0
        for seed in range(options.seeds):
            setting = Setting(dataclasses.replace(base, seed=seed), content, out / f"seed-{seed}")
            announce = lambda name: print(f"--- {setting.home.name}: {name} ---", flush=True)  # noqa: B023, E731
            for stage, outcome in stages.run(setting.home, _stages(options, setting), announce).items():
                if outcome.failure:
                    raise SystemExit(f"jaxslim: {stage} of seed {seed} failed: {outcome.failure}")
                seconds += outcome.seconds
                about = {"training": stage.partition("-")[0], "seed": seed}
                if "accuracy" in outcome.result:
                    results["full"].append({**about, "accuracy": outcome.result["accuracy"]})
                for kind in ("cuts", "steps"):
                    results[kind] += [row | about for row in outcome.result.get(kind, [])]
    described = f"{len(images.train_labels):,} training and {len(images.test_labels):,} test images"
    places = ("--out", "--report", "--data-dir")  # what the result does not depend on
    words = [word for before, word in itertools.pairwise(["", *argv]) if not {before, word} & {*places}]
    command = shlex.join(["python", "scripts/criteria.py", *words])
    notes = {"command": command, "data": f"{options.dataset}, {described}"}
    _write(options, name, results, {**notes, "time": f"{seconds / 60:.0f} minutes"}, base)


def _base(options: Options, out: Path) -> TrainConfig:
    """What all trainings share; for other data than digits, a part of the images is written first."""
    changes: dict[str, Any] = {"epochs": options.epochs, "l1": 0.0, "learning_rate": options.learning_rate}
    changes["save_every"] = options.epochs
    widths = DIGITS.model_args["widths"] if options.dataset == "digits" else CIFAR10
    changes |= {"model": "vgg" if options.norm else "no-norm", "model_args": {"widths": widths}}
    if options.dataset == "digits":
        return dataclasses.replace(DIGITS, **changes)
    part = out / "images.npz"
    if not part.exists():
        full = load(TrainConfig(dataset=options.dataset, data_dir=options.data_dir))
        write_part(full, part, TRAIN_IMAGES, TEST_IMAGES)
    return TrainConfig(dataset=str(part), **changes)


def _stages(options: Options, setting: Setting) -> list[stages.Stage]:
    """For each training, the training itself, the cuts by each criterion, and the cuts in steps."""
    pulls: dict[str, dict[str, Any]] = {
        "plain": {},
        "group_lasso": {"group_lasso": options.group_lasso},
        "l1": {"l1": options.l1},
    }
    criteria = [one for one in options.criteria if options.norm or one != "bn_scale"]
    planned = []
    for name in [one for one in options.trainings if options.norm or one != "l1"]:
        path, pull = setting.home / name, pulls[name]
        planned.append(training(setting, name, **pull))
        for criterion in criteria:
            how: dict[str, Any] = {"criterion": criterion, "scopes": options.scopes, "macs": options.macs}
            how |= {"tuned_macs": options.tuned_macs, "epochs": options.tune_epochs}
            work = functools.partial(_cuts, path, how)
            planned.append(stages.Stage(f"{name}-{criterion}", {**how, "images": setting.images}, work, (name,)))
        for share in options.tuned_macs if options.steps > 1 else ():
            how = {"criterion": criteria[0], "macs": share, "epochs": options.steps * options.tune_epochs}
            spec = {**how, "steps": options.steps, "images": setting.images}
            work = functools.partial(_steps, path, options.steps, how)
            planned.append(stages.Stage(f"{name}-steps-{share:g}", spec, work, (name,)))
    return planned


def _cuts(path: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    return {"cuts": [row._asdict() for row in by_criterion(path, **how)]}


def _steps(path: Path, steps: int, how: Mapping[str, Any]) -> dict[str, Any]:
    return {"steps": [in_steps(path, steps=number, **how)._asdict() for number in (1, steps)]}


def _write(
    options: Options, name: str, results: dict[str, list[Any]], notes: dict[str, str], base: TrainConfig
) -> None:
    cuts, steps = [CutRow(**row) for row in results["cuts"]], [StepsRow(**row) for row in results["steps"]]
    tables = [summary_table(cuts, options.tuned_macs[0], scope) for scope in options.scopes if options.tuned_macs]
    for kind in dict.fromkeys(row.training for row in cuts):
        shares = [one["accuracy"] for one in results["full"] if one["training"] == kind]
        title = f"Trained with {kind}: accuracy {100 * np.mean(shares):.2f} % uncut"
        tables.append(cuts_table(title, [row for row in cuts if row.training == kind]))
    if steps:
        tables.append(
            steps_table(f"Cut by {steps[0].criterion}, {steps[0].epochs} epochs of fine-tuning in all", steps)
        )
    pulls = [f"group_lasso {options.group_lasso:g}", *([f"l1 {options.l1:g}"] if options.norm else [])]
    notes = {
        **notes,
        "seeds": str(options.seeds),
        "network": f"widths {base.model_args['widths']}, {'with' if options.norm else 'without'} BatchNorm",
        "training": f"{base.epochs} epochs, rate {base.learning_rate:g}; {', '.join(pulls)}",
        "fine-tuning": f"{options.tune_epochs} epochs, a cosine from {base.learning_rate / 10:g} to 0",
        **machine(),
    }
    title = f"Criteria on {name}"
    text = markdown(Report(title=title, more_tables=tuple(tables), notes=notes))
    folder, content = Path(options.report), json.dumps({**results, "notes": notes}, indent=1)
    picture = plot(f"{title}, scope {options.scopes[0]} (mean over seeds: {options.seeds})", cuts, options.scopes[0])
    for ending, data in (("json", content + "\n"), ("md", f"{text}\n![{title}]({name}.png)\n"), ("png", picture)):
        write_whole(folder / f"{name}.{ending}", data)
    print(f"Report: {folder / name}.md")


if __name__ == "__main__":
    run(main, sys.argv[1:])
