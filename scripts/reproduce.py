"""The tables of network slimming, measured: all stages from the baseline to the fine-tuned network, and a report."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from jaxslim.commands.cli import run
from jaxslim.errors import InputError
from jaxslim.experiments.stages import Stage, check
from jaxslim.experiments.stages import run as run_stages
from jaxslim.files import check_out, locked, replacing, write_whole
from jaxslim.training.config import TrainConfig

QUICK_IMAGES = 3000
FULL: dict[str, Any] = {"model": "vgg19", "width": 1.0, "epochs": 160, "l1": 1e-4}
QUICK: dict[str, Any] = {"model": "vgg11", "width": 0.125, "epochs": 2, "l1": 1e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train, sparsify, cut and fine-tune VGG-19 on CIFAR-10 as the paper does, and report it beside what is published.

    The same command goes on where it was stopped, and writes the report again.
    """

    out: str = "runs/reproduce"
    """Folder of the runs, results and the report."""
    dataset: str = "cifar10"
    """Or the path of the CIFAR binary archive, which needs no TensorFlow to prepare, or of other images."""
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
    if not 1 <= options.seeds <= 1000:
        raise InputError(f"seeds is {options.seeds}; it must lie between 1 and 1000.")
    if not options.out:
        raise InputError("--out is empty; give a folder to make.")
    if not 0 < width <= 1:
        raise InputError(f"width is {width}; it must lie in (0, 1], for example 0.25.")
    out = Path(options.out).absolute()
    check_out(out)
    import reproduce_report
    import reproduce_stages

    from jaxslim import data
    from jaxslim.models import WIDTHS
    from jaxslim.reporting import report
    from jaxslim.storage.integrity import digest
    from jaxslim.training import steps

    part = out / "quick" / "images.npz"
    if options.quick and Path(options.dataset).absolute() == part:
        raise InputError(f"{part} is what --quick writes; give the images that it was taken from.")
    base = TrainConfig(
        widths=tuple("M" if size == "M" else max(1, round(int(size) * width)) for size in WIDTHS[chosen["model"]]),
        epochs=chosen["epochs"],
        l1=chosen["l1"],
        dtype=options.dtype,
        save_every=max(1, chosen["epochs"] // 16),  # or saving takes longer than an epoch on a fast GPU
        dataset=str(part) if options.quick else options.dataset,
        data_dir=options.data_dir,
    )
    images = data.load(options.dataset, data_dir=options.data_dir)  # fails at once where there is none
    count = min(QUICK_IMAGES, len(images.train_labels)) if options.quick else len(images.train_labels)
    steps.check_batches(base, count, steps.device_mesh())
    published = reproduce_report.published()
    content = digest({name: value for name, value in images._asdict().items() if isinstance(value, np.ndarray)})
    plans = {}
    for seed in range(options.seeds):
        setting = reproduce_stages.Setting(dataclasses.replace(base, seed=seed), content, out / f"seed-{seed}")
        plans[setting.home] = reproduce_stages.stages(setting, techniques)
    for folder, stages in plans.items():
        check(folder, stages)
    with locked(out, "--out"):
        if options.quick:
            _write_part(images, part)
        found = [run_stages(folder, stages, _announcer(folder, stages)) for folder, stages in plans.items()]
        command = shlex.join(["python", "scripts/reproduce.py", *argv])
        part_of = f"{count:,} images of {images.name}, a rehearsal: the accuracies mean nothing"
        try:
            result = reproduce_report.gather(
                base, part_of if options.quick else images.name, list(plans), found, command, published
            )
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"A result in {out} is not what its stage writes ({type(error).__name__}: {error}); delete it, and "
                "those of the stages behind it, to have them done again."
            ) from None
        report.show(result)
        report.write(result, out / "report")
        numbers = [{name: outcome.result for name, outcome in outcomes.items()} for outcomes in found]
        write_whole(out / "report" / "results.json", json.dumps(numbers, indent=1) + "\n")
    print(f"Report: {out}/report/report.md (with CSV, JSON and plots beside it)")
    if failed := reproduce_report.failures(found):
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


if __name__ == "__main__":
    run(main, sys.argv[1:])
