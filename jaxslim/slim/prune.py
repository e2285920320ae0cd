"""Pruning in one call: trace, score, plan and cut a network, and compare it with the full one."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim.core.cut import cut, zero
from jaxslim.core.graph import ChannelGraph, trace
from jaxslim.core.plan import Plan, plan
from jaxslim.errors import InputError, first_line
from jaxslim.slim.absorb import absorb as absorb_constants
from jaxslim.slim.criteria import bn_scales


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A narrower network and where it came from. It unpacks as `module, variables, plan`."""

    module: Any
    """The module of the smaller widths."""
    variables: Any
    """Its variables."""
    plan: Plan
    """Which units survive."""
    graph: ChannelGraph
    """Graph of the full network."""
    full: Any
    """Variables of the full network just before the cut, so after absorption."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.module, self.variables, self.plan))


def prune(
    module: Any, variables: Any, ratio: float | None, images: Any, *, absorb: bool = False, **options: Any
) -> Pruned:
    """Trace, score by |BatchNorm scale|, plan and cut a network, and build the module of the new widths.

    Args:
      module: Linen module with a method `resized(variables)` that returns the module with the widths of `variables`;
        `VGG` has one.
      variables: `params` and `batch_stats` of the module.
      ratio: share of the channels to cut, in [0, 1).
      images: array or `ShapeDtypeStruct` of an input, (n, height, width, channels).
      absorb: first move relu(bias), the constant that a channel outputs, into the layers behind; see `jaxslim.absorb`.
        This needs `images` as an array.
      **options: further arguments of `plan`. Call `jaxslim.recalibrate` separately, as it needs training images.

    Returns:
      `Pruned(module, variables, plan, graph, full)`.

    Raises:
      InputError: as for `plan` and `cut`, or the module cannot be resized.
    """
    graph = trace(module.apply, variables, images)
    chosen = plan(graph, bn_scales(variables), ratio, **options)
    if absorb:
        variables = absorb_constants(module.apply, variables, graph, chosen, images)
    return apply_plan(module, variables, graph, chosen, images)


def apply_plan(module: Any, variables: Any, graph: ChannelGraph, plan: Plan, images: Any) -> Pruned:
    """Cut the variables of a Linen module, build the module of the new widths, and check that the two fit.

    Raises:
      InputError: the module has no `resized`, or cannot be applied after the cut.
    """
    if not hasattr(module, "resized"):
        advice = "that returns self.clone(...) with the widths of variables, or use trace, plan and cut."
        problem = f"{type(module).__name__} does not say how to build a narrower self"
        raise InputError(f"{problem}: give it a method resized(variables) {advice}")
    smaller = cut(graph, variables, plan)
    try:
        narrower = module.resized(smaller)
        jax.eval_shape(narrower.apply, smaller, images)
    except Exception as error:  # whatever the module and JAX find wrong
        raise InputError(
            f"{type(module).__name__} cannot be applied after the cut ({first_line(error)}). It takes a width from "
            "something else than its parameters, or resized does not return self.clone(...). Mend that, or name the "
            "layers to spare in leave."
        ) from error
    return Pruned(narrower, smaller, plan, graph, variables)


def difference(module: Any, pruned: Pruned, images: Any) -> float:
    """How far the logits of the cut network are from those of the full `module` with the cut units at zero.

    Returns:
      The largest difference, as a share of the full network's largest logit. It is float noise where all cut units are
      exact.
    """
    full = jax.jit(module.apply)(zero(pruned.graph, pruned.full, pruned.plan), images)
    small = jax.jit(pruned.module.apply)(pruned.variables, images)
    return float(jnp.max(jnp.abs(full - small)) / jnp.maximum(jnp.max(jnp.abs(full)), 1e-6))


def tolerance(module: Any) -> float:
    """The largest `difference` that float noise can make in the precision of `module`."""
    return max(1e-4, 6.4 * float(jnp.finfo(getattr(module, "dtype", None) or jnp.float32).eps))
