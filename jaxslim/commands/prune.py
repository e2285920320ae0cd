"""Cut channels out of a checkpoint: `jaxslim prune CHECKPOINT --ratio 0.7 --out FOLDER`."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from jaxslim.commands.arguments import OfCut, code_of, data_of, parse
from jaxslim.commands.cli import command_line, start_jax
from jaxslim.errors import InputError

Criterion = Literal[
    "bn_scale", "scale", "magnitude", "taylor", "fisher", "activation", "geometric_median", "lamp", "random"
]
EXAMPLES = (
    "jaxslim prune runs/digits-sparse --ratio 0.7 --out runs/digits-pruned",
    "jaxslim prune runs/digits-sparse --threshold 0.01 --out runs/digits-pruned",
    "jaxslim prune runs/digits-sparse --ratios runs/digits-sparse-sensitivity/sensitivity.json --out runs/cut",
    "jaxslim prune runs/cifar10-sparse/best --ratio 0.7 --recalibrate 20 --out runs/cut",
    "jaxslim prune runs/digits-sparse --macs 0.5 --criterion taylor --out runs/half",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(OfCut):
    """Cut channels out of a checkpoint's network and save the smaller one as a new checkpoint."""

    out: str
    """Folder to make for the smaller network's checkpoint."""
    ratio: float | None = None
    """Share of the channels to cut, over all layers together, in [0, 1)."""
    threshold: float | None = None
    """Cut the channels whose score, by default |scale|, is at most this, instead of a ratio."""
    macs: float | None = None
    """Cut until at most this share of the multiply-accumulates is left, instead of a ratio."""
    params: float | None = None
    """Cut until at most this share of the parameters is left, instead of a ratio."""
    latency: str | None = dataclasses.field(default=None, metadata={"metavar": "SHARE|TIME"})
    """Cut until 16 images take at most this on this device, instead of a ratio: a share of the full network's time such
    as 0.5, or a time such as 2ms."""
    criterion: Criterion | None = dataclasses.field(default=None, metadata={"metavar": "|".join(get_args(Criterion))})
    """What says which channels matter, a function of jaxslim.criteria; by default the scales of BatchNorm. In a network
    without, the scales that training with L1 pulled on, or else the magnitude of the weights."""
    scope: Literal["global", "layer", "alike"] = "global"
    """Which channels compete: all of them, those of one layer, or those of alike layers."""
    ratios: str | None = dataclasses.field(default=None, metadata={"metavar": "FILE"})
    """JSON file with a ratio for each of some layers, as `jaxslim sensitivity` writes; other options decide about the
    layers that it leaves out."""
    max_layer_ratio: float = 1.0
    """Largest share of the channels of one layer that may go."""
    multiple_of: int = 1
    """Round the channels that each layer keeps up to a multiple of this."""
    leave: tuple[str, ...] = ()
    """Layers that lose nothing, by the names of the table, for example bn0 bn1."""


def main(argv: list[str]) -> None:
    """The command: load, cut, check, save, measure."""
    options = parse(Options, argv, prog="jaxslim prune", examples=EXAMPLES)
    if not options.out:
        raise InputError("--out is empty; give a folder to make.")
    if Path(options.out).exists():
        raise InputError(f"{options.out} exists already and checkpoints are never overwritten; choose another --out.")
    from jaxslim.experiments.cutting import accuracies, save_cut
    from jaxslim.experiments.sensitivity import read_ratios

    start_jax(options)
    chosen = dataclasses.asdict(options)
    path, out, ratio = map(chosen.pop, ("checkpoint", "out", "ratio"))
    with contextlib.suppress(TypeError, ValueError):  # a time is text
        chosen["latency"] = float(chosen["latency"])
    data, code = data_of(chosen), code_of(chosen)
    if (ratios := chosen.pop("ratios")) is not None:
        chosen["ratios"] = read_ratios(ratios)
    out = Path(out).absolute()
    pruned, meta = save_cut(path, out, ratio, data=data, **chosen)
    show(pruned, meta)
    try:
        full, cut, images = accuracies(path, out, **data)
        print(f"accuracy    {full:.2%} -> {cut:.2%} on {images}, before fine-tuning")
    except InputError as error:
        print(f"accuracy    not measured: {error}")
        data = {}  # training would not find or take it either
    print(f"Saved {out}.")
    if "config" in meta:
        print(f"Next: {command_line('train', init_from=out, **data, **code)}")


def show(pruned: Any, meta: dict[str, Any]) -> None:
    """Print what `save_cut` did: layers, size, and the check."""
    print(pruned.plan.table())
    full, small, check = meta["full_cost"], meta["cost"], meta["check"]
    requested = _requested(meta["plan"])
    agreed = f"logits within {check['logits_difference']:.1e} of the full network's with those channels at zero"
    inexact = "" if check["exact"] else " (inexact units: cutting and zeroing differ)"
    constants = f"absorbed    constants into {meta['absorbed_into']} biases and running means"
    lines = (
        f"channels    {requested}, cut {pruned.plan.achieved:.2%}",
        f"parameters  {full['params']:,} -> {small['params']:,} ({small['params'] / full['params']:.1%})",
        f"MACs        {full['macs']:,} -> {small['macs']:,} ({small['macs'] / full['macs']:.1%})",
        f"check       {agreed}{inexact}",
        *([constants] if meta["plan"]["absorb"] else []),
        *([f"statistics  of {batches} training batches"] if (batches := meta["recalibrated_on"]) else []),
    )
    print("\n".join(lines))


def _requested(plan: dict[str, Any]) -> str:
    """How many channels were to go, in words."""
    if "target" in plan:
        return str(plan["target"])
    others = "by ratios of layers, " if plan.get("ratios") else ""
    if plan["requested"] is not None:
        return f"{others}requested {plan['requested']:.2%}"
    return f"{others}by threshold" if plan.get("threshold") is not None else others.removesuffix(", ")
