"""The one call: trace, score, plan and cut a network, and compare what is left with the full network."""

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
    """A narrower network, and what made it. It unpacks as `module, variables, plan`."""

    module: Any
    """The module with the smaller widths."""
    variables: Any
    """Its variables."""
    plan: Plan
    """Which units survive."""
    graph: ChannelGraph
    """Graph of the full network."""
    full: Any
    """The full network's variables that were cut: after absorption, if there was one."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.module, self.variables, self.plan))


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
      absorb: first move the constants that the channels pass on, relu(bias), into the layers behind them; see
        `jaxslim.absorb`. This needs `images` as an array.
      **options: of `plan`. `jaxslim.recalibrate` is a step of its own, since it needs training images.

    Returns:
      `Pruned(module, variables, plan, graph, full)`.

    Raises:
      InputError: as `plan` and `cut`, or the module cannot be resized.
    """
    graph = trace(module.apply, variables, images)
    chosen = plan(graph, bn_scales(variables), ratio, **options)
    if absorb:
        variables = absorb_constants(module.apply, variables, graph, chosen, images)
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
    return Pruned(narrower, smaller, plan, graph, variables)


def difference(module: Any, pruned: Pruned, images: Any) -> float:
    """Largest difference of the cut network's logits from those of the full `module` with the cut units at zero.

    The difference is relative to the full network's largest logit: float noise for exact units, anything for inexact
    ones.
    """
    full = jax.jit(module.apply)(zero(pruned.graph, pruned.full, pruned.plan), images)
    small = jax.jit(pruned.module.apply)(pruned.variables, images)
    return float(jnp.max(jnp.abs(full - small)) / jnp.maximum(jnp.max(jnp.abs(full)), 1e-6))


def tolerance(module: Any) -> float:
    """Largest `difference` that float noise explains in the precision that `module` computes in."""
    dtype = getattr(module, "dtype", None)
    return max(1e-4, 6.4 * float(jnp.finfo(jnp.float32 if dtype is None else dtype).eps))
