"""Cut channels out of a checkpoint: `jaxslim prune CHECKPOINT --ratio 0.7 --out FOLDER`."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from jaxslim.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Cut channels out of a checkpoint's network and save the smaller one as a new checkpoint."""

    checkpoint: tyro.conf.Positional[str]
    """Folder of a checkpoint, RUN/best, RUN/latest, or a run, which stands for its latest."""
    out: str
    """Folder to make for the smaller network's checkpoint."""
    ratio: float | None = None
    """Share of the channels to cut, over all layers together, in [0, 1)."""
    threshold: float | None = None
    """Cut the channels whose |scale| is at most this, instead of a ratio."""
    min_channels: int = 1
    """Each layer keeps at least this many, its best ones."""
    max_layer_ratio: float = 1.0
    """Largest share of the channels of one layer that may go."""
    multiple_of: int = 1
    """Round the channels that each layer keeps up to a multiple of this."""
    reference_ties: bool = False
    """The PyTorch reference's rule for the threshold: one channel more, and every tie with it, goes."""
    leave: tuple[str, ...] = ()
    """Layers that lose nothing, by the names of the table, for example bn0 bn1."""
    absorb: bool = False
    """Move the relu(bias) that cut channels passed on into the layers behind them, which the reference drops."""
    recalibrate: int = 0
    """Estimate the BatchNorm statistics of the cut network again on this many training batches; 20 are plenty."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets, for --recalibrate."""


def main(argv: list[str]) -> None:
    """The command: load, cut, check, save."""
    options = tyro.cli(Options, args=argv, prog="jaxslim prune")
    if not options.out:
        raise InputError("--out is empty; give a folder to make.")
    if Path(options.out).exists():
        raise InputError(f"{options.out} exists already and checkpoints are never overwritten; choose another --out.")
    from jaxslim.experiments.cutting import save_cut

    chosen = dataclasses.asdict(options)
    arguments = {name: value for name, value in chosen.items() if name not in ("checkpoint", "out", "ratio")}
    pruned, meta = save_cut(options.checkpoint, options.out, options.ratio, **arguments)
    show(pruned, meta)
    print(f"Saved {options.out}. Next: jaxslim train configs/..._finetune.py --init-from {options.out}")


def show(pruned: Any, meta: dict[str, Any]) -> None:
    """Print what `save_cut` did: layers, size, and the check."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("layer", "channels", "after", "cut", "protected")
    for column in table.columns[1:4]:
        column.justify = "right"
    for layer in pruned.plan.layers:
        table.add_row(
            Text(layer.name),  # a plain string may hold rich's markup
            str(layer.before),
            str(layer.after),
            f"{1 - layer.after / layer.before:.0%}",
            "yes" if layer.protected else "",
        )
    Console().print(table)
    full, small, check = meta["full_cost"], meta["cost"], meta["check"]
    requested = "by threshold" if meta["plan"]["requested"] is None else f"requested {meta['plan']['requested']:.2%}"
    lines = (
        f"channels    {requested}, cut {pruned.plan.achieved:.2%}",
        f"parameters  {full['params']:,} -> {small['params']:,} ({small['params'] / full['params']:.1%})",
        f"MACs        {full['macs']:,} -> {small['macs']:,} ({small['macs'] / full['macs']:.1%})",
        f"check       logits within {check['logits_difference']:.1e} of the full network's with those channels at zero"
        + ("" if check["exact"] else " (inexact units: cutting and zeroing differ)"),
        *([f"absorbed    into {meta['absorbed_into']} vectors"] if meta["plan"]["absorb"] else []),
        *([f"statistics  of {batches} training batches"] if (batches := meta["recalibrated_on"]) else []),
    )
    for line in lines:
        print(line)
