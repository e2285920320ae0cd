"""Accuracy and size against the ratio: `jaxslim sweep CHECKPOINT`, the same as `python scripts/ratio_sweep.py`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from jaxslim.commands.arguments import OfCut, absolute, code_of, data_of, parse
from jaxslim.commands.cli import command_line, folder_beside, start_jax
from jaxslim.errors import InputError
from jaxslim.files import locked
from jaxslim.training.config import RATIOS

EXAMPLES = (
    "jaxslim sweep runs/digits-sparse",
    "jaxslim sweep runs/digits-sparse --ratios 0 0.5 0.7 --finetune-epochs 5",
    "jaxslim sweep runs/cifar10-sparse/best --baseline runs/cifar10-baseline",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(OfCut):
    """Cut a checkpoint's network at several ratios, and report the accuracy and size that each leaves."""

    ratios: tuple[float, ...] = RATIOS
    """Shares of the channels to cut."""
    out: str | None = None
    """Folder of the report; by default RUN-sweep beside the run."""
    finetune_epochs: int = 0
    """Also fine-tune the network of each ratio for so many epochs, without L1; the reference takes 10 to 40."""
    learning_rate: float | None = None
    """Learning rate of fine-tuning in the first epoch; by default a tenth of the rate of the checkpoint's training."""
    schedule: Literal["step", "cosine", "one-cycle"] = "cosine"
    """How the rate of fine-tuning falls, as for `jaxslim train`."""
    verify: bool = False
    """Also evaluate each network that was really cut, to see that it agrees with zeroed channels."""
    baseline: str | None = None
    """Checkpoint trained without sparsity, whose scales are drawn beside this one's."""


def main(argv: list[str]) -> None:
    """The command: sweep, fine-tune if asked, report."""
    options = parse(Options, argv, prog="jaxslim sweep", examples=EXAMPLES)
    if options.finetune_epochs < 0:
        raise InputError(f"finetune_epochs is {options.finetune_epochs}; it must be at least 0.")
    if options.learning_rate is not None and not options.finetune_epochs:
        raise InputError("learning_rate is of fine-tuning; give --finetune-epochs too, for example 10.")
    if options.out == "":
        raise InputError("--out is empty; give a folder for the report.")
    from jaxslim.experiments import sweep
    from jaxslim.experiments.finetuning import home
    from jaxslim.reporting import report

    start_jax(options)
    chosen = dataclasses.asdict(options)
    code = code_of(chosen)
    data, path, out = data_of(chosen), absolute(chosen.pop("checkpoint")), chosen.pop("out")
    epochs, rate, schedule = map(chosen.pop, ("finetune_epochs", "learning_rate", "schedule"))
    finetune = {"epochs": epochs, "schedule": schedule} | ({} if rate is None else {"learning_rate": rate})
    run = home(path)
    out = folder_beside(run, out, "sweep")
    with locked(out, "--out"):
        result = sweep.study(path, out, finetune=finetune if epochs else None, data=data, **chosen)
        report.show(result)
        report.write(result, out)
    print(f"Report: {out}/report.md")
    if all(row.ratio for row in result.sweep):
        return  # without ratio 0, nothing says what a cut costs
    ratio, when = _largest_harmless(result.sweep), "after" if epochs else "before"
    if ratio:
        print(f"Ratio {ratio:g} is the largest within a point of the best accuracy {when} fine-tuning.")
        cut = {"ratio": ratio, "out": run.with_name(f"{run.name}-pruned")}
        tuned = command_line("evaluate", out / f"ratio-{ratio:g}-finetuned", **data, **code)
        print(f"Next: {tuned if epochs else command_line('prune', path, **cut, **data, **code)}")
    else:
        print(f"Each cut costs more than a point of accuracy {when} fine-tuning.")
        if not epochs:
            print(f"Next: {command_line('sweep', path, finetune_epochs=10, **data, **code)}")


def _largest_harmless(rows: Sequence[Any]) -> float:
    """The largest ratio whose accuracy is within a point of the best, after fine-tuning if there was any."""
    accuracy = {row.ratio: row.accuracy if row.finetuned_accuracy is None else row.finetuned_accuracy for row in rows}
    return max(ratio for ratio, share in accuracy.items() if share >= max(accuracy.values()) - 0.01)
