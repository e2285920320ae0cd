"""Measure the tables of network slimming: every stage from the baseline to the fine-tuned network, and a report."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import reproduce_report
import reproduce_stages

from jaxslim.commands.arguments import parse
from jaxslim.commands.cli import run, start_jax
from jaxslim.data.archives import write_part
from jaxslim.errors import InputError
from jaxslim.experiments import stages
from jaxslim.files import check_out, check_path, locked, write_whole
from jaxslim.models import WIDTHS
from jaxslim.reporting import report
from jaxslim.storage.integrity import digest
from jaxslim.training.config import TrainConfig
from jaxslim.training.network import load

QUICK_IMAGES = 3000
QUICK_NETWORK = "vgg11"
QUICK: dict[str, Any] = {"width": 0.125, "epochs": 2, "l1": 1e-3}
EXAMPLES = (
    "python scripts/reproduce.py --quick --out runs/rehearsal",
    "python scripts/reproduce.py --techniques --width 0.25 --epochs 12 --l1 1e-3",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train, sparsify, cut and fine-tune VGG-19 on CIFAR-10 as the paper does, and report it beside published figures.
    The same command continues where it was stopped, and writes the report again."""

    out: str = "runs/reproduce"
    """Folder of the runs, the results and the report."""
    dataset: str = "cifar10"
    """A TFDS name, or the path of the CIFAR binary archive (which needs no TensorFlow) or of other images."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets; the default is the variable TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    seeds: int = 1
    """Number of seeds, from 0 on. The report gives means and deviations over them."""
    quick: bool = False
    """Rehearse every stage with a small VGG-11, 3,000 images and 2 epochs. The accuracies mean nothing."""
    techniques: bool = False
    """Also measure absorption, recalibration, proximal L1 and other schedules, alone and together."""
    width: float = 1.0
    """Share of the network's widths."""
    epochs: int = 160
    """Epochs of the baseline and of sparse training. Fine-tuning takes a 16th and a quarter."""
    l1: float = 1e-4
    """Strength of the L1 pull. Fewer epochs need a stronger pull."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation."""


def main(argv: list[str]) -> None:
    """The command."""
    default = Options(**QUICK) if "--quick" in argv else Options()
    options = parse(Options, argv, prog="python scripts/reproduce.py", examples=EXAMPLES, default=default)
    if not 1 <= options.seeds <= 1000:
        raise InputError(f"seeds is {options.seeds}; it must lie between 1 and 1000.")
    check_path(options.out)
    out = Path(options.out).absolute()
    check_out(out)
    start_jax()
    base = _base(options)
    images = load(base)  # fails at once where there is none
    described = images.name
    if options.quick:
        base = dataclasses.replace(base, dataset=str(out / "quick" / "images.npz"))
        count = min(QUICK_IMAGES, len(images.train_labels))
        described = f"{count:,} images of {images.name}, a rehearsal: the accuracies mean nothing"
    content = digest({name: value for name, value in images._asdict().items() if isinstance(value, np.ndarray)})
    planned = {}
    for seed in range(options.seeds):
        setting = reproduce_stages.Setting(dataclasses.replace(base, seed=seed), content, out / f"seed-{seed}")
        planned[setting.home] = reproduce_stages.stages_of_seed(setting, options.techniques or options.quick)
        stages.check(setting.home, planned[setting.home])
    with locked(out, "--out"):
        if options.quick:
            write_part(images, Path(base.dataset), QUICK_IMAGES, QUICK_IMAGES // 3)
        outcomes = {folder: _run(folder, of_seed) for folder, of_seed in planned.items()}
        command = shlex.join(["python", "scripts/reproduce.py", *argv])
        result = reproduce_report.compose(base, described, outcomes, command)
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


def _base(options: Options) -> TrainConfig:
    """What all trainings share."""
    if not 0 < options.width <= 1:
        raise InputError(f"width is {options.width}; it must lie in (0, 1], for example 0.25.")
    full = WIDTHS[QUICK_NETWORK if options.quick else "vgg19"]
    widths = [width if isinstance(width, str) else max(1, round(width * options.width)) for width in full]
    save_every = max(1, options.epochs // 16)  # on a fast GPU, saving takes longer than an epoch
    shared = {name: getattr(options, name) for name in ("epochs", "l1", "dtype", "dataset", "data_dir")}
    return TrainConfig(model="vgg", model_args={"widths": widths}, save_every=save_every, **shared)


if __name__ == "__main__":
    run(main, sys.argv[1:])
