"""Network slimming from start to end on real images that need no download: train, look, cut, fine-tune, report."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from jaxslim.commands.arguments import parse
from jaxslim.commands.cli import command_line, run, start_jax
from jaxslim.errors import InputError
from jaxslim.experiments.configs import load_config

HOME = Path(__file__).resolve().parents[1]
EXAMPLES = ("scripts/demo", "scripts/demo --ratio 0.5 --out /tmp/demo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train a small VGG on handwritten digits without and with sparsity, sweep the ratios, cut it and fine-tune it."""

    out: Path = HOME / "runs" / "demo"
    """Folder of the runs and the report; what it holds already is not done again."""
    ratio: float = 0.7
    """Share of the channels to cut before fine-tuning."""
    epochs: int | None = None
    """Epochs of each training; by default what each config says."""


def main(argv: list[str]) -> None:
    """The command."""
    options = parse(Options, argv, prog="scripts/demo", examples=EXAMPLES)
    out, folder = options.out.absolute(), options.out.absolute() / "report"
    if not 0 < options.ratio < 1:
        raise InputError(f"The ratio is {options.ratio}; it must lie in (0, 1), for example 0.7.")
    command = " ".join(["scripts/demo", *argv])
    old = folder / "report.md"
    if old.exists() and f"- command: {command}" in old.read_text(errors="replace").splitlines():
        print(old.read_text())
        print(f"Done before; delete {out} to start over. Report: {old}")
        return
    from jaxslim.commands.prune import show
    from jaxslim.experiments import sweep
    from jaxslim.experiments.cutting import cut_once, save_cut
    from jaxslim.experiments.finetuning import finetuning
    from jaxslim.reporting import report
    from jaxslim.training.loop import train

    start_jax()
    started = time.perf_counter()
    changes: dict[str, Any] = {} if options.epochs is None else {"epochs": options.epochs}
    runs = {"baseline": out / "baseline", "sparse": out / "sparse", "fine-tuned": out / f"finetuned-{options.ratio:g}"}
    pruned, ratio = out / f"pruned-{options.ratio:g}", options.ratio

    def announce(step: str, *words: object, **options: object) -> None:
        print(f"\n--- {step}: {command_line(*words, **options)} ---", flush=True)

    def trained(name: str) -> Any:
        return train(dataclasses.replace(load_config(f"digits-{name}"), **changes, workdir=str(runs[name])))

    announce("1/5 baseline", "train", "digits-baseline", workdir=runs["baseline"])
    baseline = trained("baseline")
    announce("2/5 sparse training", "train", "digits-sparse", workdir=runs["sparse"])
    sparse = trained("sparse")
    announce("3/5 ratio sweep", "sweep", runs["sparse"], baseline=runs["baseline"])
    ratios = tuple(sorted({*sweep.RATIOS, ratio}))
    found = sweep.study(sparse.folder, out / "sweep", ratios=ratios, absorb=True, baseline=baseline.folder)
    announce("4/5 cut", "prune", runs["sparse"], ratio=ratio, out=pruned)
    if not pruned.exists():
        show(*save_cut(sparse.folder, pruned, ratio, absorb=True))
    cut_once(sparse.folder, pruned, ratio, absorb=True)  # refuses one of another checkpoint
    announce("5/5 fine-tuning", "train", "digits-finetune", init_from=pruned, workdir=runs["fine-tuned"])
    tuned = train(finetuning(pruned, load_config("digits-finetune"), **changes, workdir=str(runs["fine-tuned"])))

    rows = {row.ratio: row for row in found.sweep}
    full, cut = rows[0], rows[ratio]
    rows[ratio] = dataclasses.replace(cut, finetuned_accuracy=tuned.metrics["accuracy"])
    steps = (
        ("Baseline", baseline.metrics["accuracy"], full),
        ("Trained with sparsity", sparse.metrics["accuracy"], full),
        (f"Cut at {ratio:g}", cut.accuracy, cut),
        ("Fine-tuned", tuned.metrics["accuracy"], cut),
    )
    result = dataclasses.replace(
        found,
        title="Network slimming on handwritten digits",
        pipeline=tuple(
            report.PipelineRow(name=name, accuracy=accuracy, params=size.params, macs=size.macs)
            for name, accuracy, size in steps
        ),
        sweep=tuple(rows.values()),
        curves={
            name: [*map(json.loads, (run / "metrics.jsonl").read_text().splitlines())] for name, run in runs.items()
        },
        notes={**found.notes, "run time": f"{time.perf_counter() - started:.0f} s", "command": command},
    )
    print("\n--- what was measured ---", flush=True)
    report.show(result)
    report.write(result, folder)
    print(f"Report: {folder}/report.md (with CSV, JSON and plots beside it)")


if __name__ == "__main__":
    run(main, sys.argv[1:])
