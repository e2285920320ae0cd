"""The whole of network slimming on real images that need no download: train, look, cut, fine-tune, report."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import tyro

from jaxslim.commands.cli import load_config, run
from jaxslim.errors import InputError
from jaxslim.training.config import TrainConfig

HOME = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Baseline, sparse training, ratio sweep, cut and fine-tuning of a small VGG on handwritten digits."""

    out: Path = HOME / "runs" / "demo"
    """Folder of the runs and the report; what it holds already is not done again."""
    ratio: float = 0.7
    """Share of the channels to cut before fine-tuning."""
    epochs: int | None = None
    """Epochs of each training; the configs' own if not given."""


def main(argv: list[str]) -> None:
    """The command."""
    options = tyro.cli(Options, args=argv, prog="scripts/demo")
    out, folder = options.out.absolute(), options.out.absolute() / "report"
    if not 0 < options.ratio < 1:
        raise InputError(f"The ratio is {options.ratio}; it must lie in (0, 1), for example 0.7.")
    command = " ".join(["scripts/demo", *argv])
    old = folder / "report.md"
    if old.exists() and f"- command: {command}" in old.read_text(errors="replace").splitlines():
        print((folder / "report.md").read_text())
        print(f"Done before; delete {out} to start over. Report: {folder}/report.md")
        return
    import jax

    from jaxslim.commands.prune import show
    from jaxslim.core.cost import count
    from jaxslim.experiments import sweep
    from jaxslim.experiments.cutting import cut_once, save_cut
    from jaxslim.reporting import report
    from jaxslim.storage import checkpoint
    from jaxslim.training.loop import train

    started = time.perf_counter()

    def announce(what: str) -> None:
        print(f"\n--- {what} ---", flush=True)

    def config(name: str, **changes: Any) -> TrainConfig:
        if options.epochs is not None:
            changes["epochs"] = options.epochs
        return dataclasses.replace(load_config(str(HOME / "configs" / f"digits_{name}.py")), **changes)

    announce(f"1/5 baseline: python -m jaxslim.train configs/digits_baseline.py --workdir {out}/baseline")
    baseline = train(config("baseline", workdir=str(out / "baseline")))
    announce(f"2/5 sparse training: python -m jaxslim.train configs/digits_sparse.py --workdir {out}/sparse")
    sparse = train(config("sparse", workdir=str(out / "sparse")))
    announce(f"3/5 ratio sweep: python scripts/ratio_sweep.py {out}/sparse --baseline {out}/baseline")
    ratios = tuple(sorted({*sweep.RATIOS, options.ratio}))
    result = sweep.study(str(sparse.folder / "latest"), out / "sweep", ratios=ratios, baseline=str(baseline.folder))
    pruned = out / f"pruned-{options.ratio:g}"
    announce(f"4/5 cut: jaxslim prune {out}/sparse --ratio {options.ratio:g} --out {pruned}")
    if not pruned.exists():
        show(*save_cut(sparse.folder, pruned, options.ratio))
    cut_once(sparse.folder, pruned, options.ratio, None)  # refuses one of another checkpoint
    announce(f"5/5 fine-tuning: python -m jaxslim.train configs/digits_finetune.py --init-from {pruned}")
    tuned = train(config("finetune", workdir=str(out / f"finetuned-{options.ratio:g}"), init_from=str(pruned)))

    finetuned = {options.ratio: tuned.metrics["accuracy"]}
    sweep_rows = tuple(dataclasses.replace(r, finetuned_accuracy=finetuned.get(r.ratio)) for r in result.sweep)
    cut_row = next(row for row in sweep_rows if row.ratio == options.ratio)
    full = result.sweep[0]
    module, variables, meta = checkpoint.load(tuned.folder)
    small = count(module.apply, variables, jax.ShapeDtypeStruct((1, *meta["image_shape"]), "float32"))
    stages = (
        ("Baseline", baseline.metrics["accuracy"], full),
        ("Trained with sparsity", sparse.metrics["accuracy"], full),
        (f"Cut at {options.ratio:g}", cut_row.accuracy, cut_row),
        ("Fine-tuned", tuned.metrics["accuracy"], small),
    )
    rows = tuple(report.Stage(name=n, accuracy=a, params=size.params, macs=size.macs) for n, a, size in stages)
    notes = {**result.notes, "run time": f"{time.perf_counter() - started:.0f} s", "command": command}
    result = dataclasses.replace(
        result, title="Network slimming on handwritten digits", stages=rows, sweep=sweep_rows, notes=notes
    )
    announce("what was measured")
    report.show(result)
    report.write(result, folder)
    print(f"Report: {folder}/report.md (with CSV, JSON and plots beside it)")


if __name__ == "__main__":
    run(main, sys.argv[1:])
