"""Measure the tables of network slimming: every stage from the baseline to the fine-tuned network, and a report."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import reproduce_recipes
import reproduce_report
import reproduce_stages
from reproduce_recipes import Recipe

from jaxslim.commands.arguments import parse
from jaxslim.commands.cli import run, start_jax
from jaxslim.data.archives import write_part
from jaxslim.errors import InputError
from jaxslim.experiments import stages
from jaxslim.files import check_out, check_path, locked, write_whole
from jaxslim.reporting import report
from jaxslim.storage.integrity import digest
from jaxslim.training.config import TrainConfig
from jaxslim.training.network import load

QUICK_IMAGES = 3000
QUICK: dict[str, Any] = {"width": 0.125, "epochs": 2, "l1": 1e-3}
EXAMPLES = (
    "python scripts/reproduce.py --network resnet164 --dataset cifar100",
    "python scripts/reproduce.py --network densenet40 --quick",
    "python scripts/reproduce.py --techniques --width 0.25 --epochs 12 --l1 1e-3",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train, sparsify, cut and fine-tune a network as the paper does, and report it beside published figures. The same
    command continues where it was stopped, and writes the report again."""

    network: str = dataclasses.field(default="vgg19", metadata={"metavar": "NAME"})
    """One of the paper's, vgg19, resnet164, densenet40, vgg_a or mlp, or any other that `jaxslim train --model` takes,
    for which there are no published figures. Recipe and ratios follow from network and data set."""
    out: str | None = None
    """Folder of the runs, the results and the report; by default runs/reproduce/NETWORK-DATASET."""
    dataset: str = "cifar10"
    """cifar10, cifar100, svhn_cropped+extra, mnist, digits or another TFDS name; or the path of a folder of ImageNet,
    of a CIFAR binary archive (which needs no TensorFlow) or of other images."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets; the default is the variable TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    seeds: int = 1
    """Number of seeds, from 0 on. The report gives means and deviations over them."""
    quick: bool = False
    """Rehearse every stage with a small network of the same kind, 3,000 images and 2 epochs. The accuracies mean
    nothing."""
    techniques: bool = False
    """Also measure absorption, recalibration, proximal L1 and other schedules, alone and together."""
    width: float = 1.0
    """Share of the network's widths."""
    epochs: int | None = None
    """Epochs of the baseline and of sparse training, by default the recipe's. Fine-tuning takes a 16th of them and a
    quarter, or a 16th and all where published figures do."""
    l1: float | None = None
    """Strength of the L1 pull, by default the recipe's. Fewer epochs need a stronger pull."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation."""


def main(argv: list[str]) -> None:
    """The command."""
    default = Options(**QUICK) if "--quick" in argv else Options()
    options = parse(Options, argv, prog="python scripts/reproduce.py", examples=EXAMPLES, default=default)
    if not 1 <= options.seeds <= 1000:
        raise InputError(f"seeds is {options.seeds}; it must lie between 1 and 1000.")
    ending = "-quick" if options.quick else ""
    data = Path(options.dataset).name.partition(".")[0]
    name = f"runs/reproduce/{options.network}-{data}{ending}" if options.out is None else options.out
    check_path(name)
    out = Path(name).absolute()
    check_out(out)
    start_jax()
    recipe = reproduce_recipes.recipe(options.network, options.dataset)
    base = _base(options, recipe)
    images = load(base)  # fails at once where there is none
    described = images.name
    if options.quick:
        base = dataclasses.replace(base, dataset=str(out / "quick" / "images.npz"))
        count = min(QUICK_IMAGES, len(images.train_labels))
        described = f"{count:,} images of {images.name}, a rehearsal: the accuracies mean nothing"
    content = digest({name: value for name, value in images._asdict().items() if isinstance(value, np.ndarray)})
    planned = {}
    for seed in range(options.seeds):
        setting = reproduce_stages.Setting(
            dataclasses.replace(base, seed=seed), content, out / f"seed-{seed}", recipe.plan
        )
        planned[setting.home] = reproduce_stages.stages_of_seed(setting, options.techniques or options.quick)
        stages.check(setting.home, planned[setting.home])
    with locked(out, "--out"):
        if options.quick:
            write_part(images, Path(base.dataset), QUICK_IMAGES, QUICK_IMAGES // 3)
        outcomes = {folder: _run(folder, of_seed) for folder, of_seed in planned.items()}
        command = shlex.join(["python", "scripts/reproduce.py", *argv])
        result = reproduce_report.compose(recipe, base, described, outcomes, command)
        report.show(result)
        report.write(result, out / "report")
        numbers = [{name: one.result for name, one in of_seed.items()} for of_seed in outcomes.values()]
        write_whole(out / "report" / "results.json", json.dumps(numbers, indent=1) + "\n")
    print(f"Report: {out}/report/report.md (with CSV, JSON and plots beside it)")
    if failed := reproduce_report.failures(list(outcomes.values())):
        raise SystemExit(f"jaxslim: failed: {'; '.join(failed)}. The same command tries these stages again.")


def _run(folder: Path, of_seed: Sequence[stages.Stage]) -> dict[str, stages.Outcome]:
    numbers = {stage.name: f"{number} of {len(of_seed)}" for number, stage in enumerate(of_seed, start=1)}
    return stages.run(
        folder, of_seed, lambda name: print(f"\n--- {folder.name}: {name} ({numbers[name]}) ---", flush=True)
    )


def _base(options: Options, recipe: Recipe) -> TrainConfig:
    """What all trainings share."""
    given = {name: getattr(options, name) for name in ("epochs", "l1") if getattr(options, name) is not None}
    network = reproduce_recipes.model_of(recipe.network, options.width, options.quick)
    epochs = given.get("epochs", recipe.config.epochs)
    save_every = max(1, epochs // 16)  # on a fast GPU, saving takes longer than an epoch
    shared: dict[str, Any] = {"dtype": options.dtype, "data_dir": options.data_dir, "save_every": save_every}
    if options.quick:
        shared["image_size"] = min(recipe.config.image_size, reproduce_recipes.SMALL_IMAGE)
    return dataclasses.replace(recipe.config, **network, **shared, **given)


if __name__ == "__main__":
    run(main, sys.argv[1:])
