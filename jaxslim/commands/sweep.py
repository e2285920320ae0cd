"""Accuracy, parameters, MACs and widths against the ratio of channels cut: tables and plots for one checkpoint."""

import dataclasses
import shutil
from pathlib import Path

import tyro

from jaxslim.errors import InputError
from jaxslim.files import LOCK, check_out, locked
from jaxslim.training.config import RATIOS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Cut a checkpoint's network at several ratios and report what is left of it."""

    checkpoint: tyro.conf.Positional[str]
    """Folder of a checkpoint, RUN/best, RUN/latest, or a run, which stands for its latest."""
    ratios: tuple[float, ...] = RATIOS
    """Shares of the channels to cut."""
    out: str | None = None
    """Folder of the report; by default RUN-sweep beside the run."""
    finetune_epochs: int = 0
    """Also fine-tune the network of each ratio for so many epochs, by the checkpoint's own recipe without
    sparsity. It starts at the full learning rate, so very few epochs do harm; the reference takes 10 to 40."""
    verify: bool = False
    """Evaluate each really cut network too, to see that it agrees with zeroed channels."""
    min_channels: int = 1
    """Each layer keeps at least this many."""
    absorb: bool = False
    """Move the relu(bias) that cut channels passed on into the layers behind them."""
    recalibrate: int = 0
    """Training batches to estimate the BatchNorm statistics of each cut network again on; 0 keeps the old ones."""
    baseline: str | None = None
    """Checkpoint trained without sparsity, whose scales are drawn beside this one's."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets."""


def main(argv: list[str]) -> None:
    """The command: sweep, fine-tune if asked, report."""
    options = tyro.cli(Options, args=argv, prog="jaxslim sweep")
    if options.finetune_epochs < 0:
        raise InputError(f"finetune_epochs is {options.finetune_epochs}; it must be at least 0.")
    if options.recalibrate < 0:
        raise InputError(f"recalibrate is {options.recalibrate}; it must be a number of batches, 0 or more.")
    from jaxslim.experiments import sweep
    from jaxslim.reporting import report
    from jaxslim.storage import checkpoint

    path = checkpoint.find(options.checkpoint)
    home = path.parents[1] if path.parent.name == "checkpoints" else path
    out = Path(options.out) if options.out else home.with_name(f"{home.name}-sweep")
    chosen = dataclasses.asdict(options)
    arguments = {name: value for name, value in chosen.items() if name not in ("checkpoint", "out")}
    check_out(out)
    if (out / "config.json").exists() and (out / "checkpoints").exists():
        raise InputError(f"{out} holds a training run; choose another --out.")
    new = not out.exists()
    with locked(out, "--out"):
        try:
            result = sweep.study(str(path), out, **arguments)
        except InputError:
            if new and [*out.iterdir()] == [out / LOCK]:  # nothing was done
                shutil.rmtree(out)
            raise
        report.show(result)
        report.write(result, out)
    print(f"Report: {out}/report.md")
