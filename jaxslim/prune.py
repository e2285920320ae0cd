"""Cut the channels of a plan out of a network. The command is `python -m jaxslim.prune`."""

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from jaxslim import absorption, recalibration
from jaxslim.channels import ChannelGraph, trace
from jaxslim.cli import check_out, run
from jaxslim.cost import count
from jaxslim.errors import InputError, first_line
from jaxslim.selection import Plan, check_switch, plan
from jaxslim.sparsity import bn_scales
from jaxslim.surgery import cut, zero


class Pruned(NamedTuple):
    """A narrower network."""

    module: Any
    variables: Any
    plan: Plan


def prune(
    module: Any, variables: Any, ratio: float | None, images: Any, *, absorb: bool = False, **options: Any
) -> Pruned:
    """Trace, score by |BatchNorm scale|, plan and cut a network, and build the module of the new widths.

    Args:
      module: Linen module with a method `resized(variables)` that returns it with the widths of `variables`, as `VGG`
        has.
      variables: its `params` and `batch_stats`.
      ratio: share of the channels to cut, in [0, 1).
      images: array or `ShapeDtypeStruct` of an input, (n, height, width, channels).
      absorb: move what the channels that go pass on, relu(bias), into the layers behind them first; see
        `jaxslim.absorb`. `images` are an array then.
      **options: of `plan`. `jaxslim.recalibrate` is a step of its own, since it needs training images.

    Returns:
      `Pruned(module, variables, plan)`.

    Raises:
      InputError: as `plan` and `cut`, `absorb` is no bool, or the module cannot be resized.
    """
    if not hasattr(module, "apply"):
        raise InputError(f"The module is of type {type(module).__name__}; pass a Linen module, as load(path) gives.")
    check_switch("absorb", absorb)
    graph = trace(module.apply, variables, images)
    chosen = plan(graph, bn_scales(variables), ratio, **options)
    if absorb:
        variables = absorption.absorb(module.apply, variables, graph, chosen, images)
    return apply_plan(module, variables, graph, chosen, images)


def apply_plan(module: Any, variables: Any, graph: ChannelGraph, plan: Plan, images: Any) -> Pruned:
    """Cut the variables of a Linen module, build the module of the new widths, and see that they fit each other.

    Raises:
      InputError: the module has no `resized`, or cannot be applied after the cut.
    """
    if not hasattr(module, "resized"):
        raise InputError(
            f"{type(module).__name__} does not say how to build a narrower self: give it a method resized(variables) "
            "that returns self.clone(...) with the widths of variables, or use trace, plan and cut."
        )
    smaller = cut(graph, variables, plan)
    try:
        narrower = module.resized(smaller)
        jax.eval_shape(narrower.apply, smaller, images)
    except Exception as error:  # whatever the module and JAX find wrong
        raise InputError(
            f"{type(module).__name__} cannot be applied after the cut ({first_line(error)}): it takes a width from "
            "other than its parameters' shapes, or its resized is no self.clone. Name the layers concerned in leave."
        ) from error
    return Pruned(narrower, smaller, plan)


def difference(module: Any, variables: Any, pruned: Pruned, graph: ChannelGraph, images: Any) -> float:
    """Largest difference of the cut network's logits from the full network's with the units that go at zero.

    Relative to the largest logit of the full network. Float noise for exact units; anything for inexact ones.
    """
    full = jax.jit(module.apply)(zero(graph, variables, pruned.plan), images)
    small = jax.jit(pruned.module.apply)(pruned.variables, images)
    return float(jnp.max(jnp.abs(full - small)) / jnp.maximum(jnp.max(jnp.abs(full)), 1e-6))


class _CallableModule(types.ModuleType):
    """`jaxslim.prune` names this module, since it is a command, and the function: so the module can be called."""

    def __call__(self, module: Any, variables: Any, ratio: float | None, images: Any, **options: Any) -> Pruned:
        return prune(module, variables, ratio, images, **options)


sys.modules[__name__].__class__ = _CallableModule


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
    options = tyro.cli(Options, args=argv, prog="python -m jaxslim.prune")
    if not options.out:
        raise InputError("--out is empty; give a folder to make.")
    if Path(options.out).exists():
        raise InputError(f"{options.out} exists already and checkpoints are never overwritten; choose another --out.")
    chosen = dataclasses.asdict(options)
    arguments = {name: value for name, value in chosen.items() if name not in ("checkpoint", "out", "ratio")}
    pruned, meta = save_cut(options.checkpoint, options.out, options.ratio, **arguments)
    show(pruned, meta)
    print(f"Saved {options.out}. Next: python -m jaxslim.train configs/..._finetune.py --init-from {options.out}")


def save_cut(
    path: str | Path,
    out: str | Path,
    ratio: float | None,
    *,
    absorb: bool = False,
    recalibrate: int = 0,
    data_dir: str | None = None,
    **options: Any,
) -> tuple[Pruned, dict[str, Any]]:
    """`prune` the network of a checkpoint, check the result, and save it as a checkpoint of its own.

    Args:
      path: what `checkpoint.load` takes.
      out: folder to make.
      ratio: of `plan`.
      absorb: of `prune`.
      recalibrate: training batches to estimate the BatchNorm statistics of the cut network on; 0 keeps the old ones.
      data_dir: where TFDS keeps its data sets, for `recalibrate`.
      **options: of `plan`.

    Returns:
      The smaller network, and the metadata saved with it: cost, plan, and the check, which is the `difference` on
      random images from the full network with the units that go at zero, before any recalibration.

    Raises:
      InputError: as `load`, `plan` and `save`, `out` cannot be written to, or the check failed although every unit that
        went is exact.
    """
    from jaxslim import checkpoint
    from jaxslim.description import check_image_shape

    if recalibrate < 0:
        raise InputError(f"recalibrate is {recalibrate}; it must be a number of batches, 0 or more.")
    check_switch("absorb", absorb)
    check_out(Path(out))
    path = checkpoint.find(path)
    module, variables, meta = loaded = checkpoint.load(path)
    if "image_shape" not in meta:
        raise InputError(f"{path} does not name its images' shape; save it with meta={{'image_shape': [32, 32, 3]}}.")
    check_image_shape(meta, path)
    images = jax.random.normal(jax.random.key(0), (64, *meta["image_shape"]))
    graph = trace(module.apply, variables, images)
    chosen = plan(graph, bn_scales(variables), ratio, **options)
    full = variables
    if absorb:
        variables = absorption.absorb(module.apply, full, graph, chosen, images)
    pairs = zip(jax.tree.leaves(variables), jax.tree.leaves(full), strict=True)
    absorbed = sum(new is not old and not jnp.allclose(new, old, rtol=0, atol=1e-6) for new, old in pairs)
    pruned = apply_plan(module, variables, graph, chosen, images)
    gap = difference(module, variables, pruned, graph, images)
    exact = bool(graph.exact[~chosen.keep].all())
    if exact and not gap <= tolerance(module):
        raise InputError(
            f"The cut network's logits differ from the zeroed full network's by {gap:.2g} of the largest; nothing was "
            "saved. The network takes a width from something other than its parameters' shapes."
        )
    batches = _training_batches(loaded, path, recalibrate, data_dir) if recalibrate else []
    if batches:
        pruned = pruned._replace(variables=recalibration.recalibrate(pruned.module, pruned.variables, batches))
    described: dict[str, Any] = {
        "kind": "pruned",
        **{name: meta[name] for name in ("config", "class_names", "image_shape") if name in meta},
        "parent": checkpoint.parent(path, meta),
        "cost": count(pruned.module.apply, pruned.variables, images)._asdict(),
        "full_cost": count(module.apply, variables, images)._asdict(),
        "plan": {
            **options,
            "absorb": absorb,
            "recalibrate": recalibrate,
            "requested": ratio,
            "achieved": chosen.achieved,
            "layers": [layer._asdict() for layer in chosen.layers],
        },
        "check": {"logits_difference": gap, "exact": exact},
        "absorbed_into": absorbed,
        "recalibrated_on": len(batches),
    }
    checkpoint.save(out, pruned.module, pruned.variables, described)
    return pruned, described


def _training_batches(loaded: Any, path: Path, count: int, data_dir: str | None) -> list[Any]:
    from jaxslim import data, steps
    from jaxslim.description import check_images, training_config

    config = training_config(loaded.meta, data_dir=data_dir)
    images = data.load(config.dataset, data_dir=config.data_dir, image_size=config.image_size, channels=config.channels)
    check_images(loaded, images, path)
    return steps.training_batches(config, images, count)


def tolerance(module: Any) -> float:
    """Largest `difference` that float noise explains in the precision that `module` computes in."""
    dtype = getattr(module, "dtype", None)
    return max(1e-4, 6.4 * float(jnp.finfo(jnp.float32 if dtype is None else dtype).eps))


def show(pruned: Pruned, meta: dict[str, Any]) -> None:
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


if __name__ == "__main__":
    run(main)
