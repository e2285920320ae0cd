"""Running statistics of BatchNorm, estimated again: those of a cut network are still the full network's."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim.errors import InputError
from jaxslim.lowering import compiler_options


def recalibrate(module: Any, variables: Any, batches: Iterable[Any], **arguments: Any) -> Any:
    """Replace the running statistics by the means of the batch statistics over `batches`; nothing is trained.

    What momentum the layers have does not matter: their update is linear in the old statistics, and its two ends, from
    zeros and from ones, give the batch's statistics and the momentum.

    Args:
      module: Linen module with BatchNorm layers.
      variables: `params` and `batch_stats`.
      batches: normalised images (n, ...), augmented or not as in training; all of one size, 20 of 100 are plenty.
      **arguments: of `module.apply` in training; `train=True` if none are given.

    Returns:
      Variables with other `batch_stats`; the old ones are untouched.

    Raises:
      InputError: there are no batches or no `batch_stats`.
    """
    return recalibrator(module, **arguments)(variables, batches)


def recalibrator(module: Any, **arguments: Any) -> Callable[[Any, Iterable[Any]], Any]:
    """Build `recalibrate(variables, batches)` for several variables of one module; it compiles once."""

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def of_batch(variables: Any, images: Any) -> Any:
        def updated(value: float) -> Any:
            start = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), variables["batch_stats"])
            changed = {**variables, "batch_stats": start}
            return module.apply(changed, images, mutable=["batch_stats"], **(arguments or {"train": True}))[1]

        def statistics(from_zeros: jax.Array, from_ones: jax.Array) -> jax.Array:
            momentum = jnp.median(from_ones - from_zeros)  # which large statistics round away in single channels
            return from_zeros / (1 - momentum)

        return jax.tree.map(statistics, updated(0.0)["batch_stats"], updated(1.0)["batch_stats"])

    def run(variables: Any, batches: Iterable[Any]) -> Any:
        if not variables.get("batch_stats"):
            raise InputError("The variables hold no batch_stats, and only networks with BatchNorm can be recalibrated.")
        total, count = None, 0
        for images in batches:
            found = of_batch(variables, images)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
            count += 1
        if not count:
            raise InputError("There are no batches to estimate the running statistics on; give at least one.")
        return {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf / count, total)}

    return run
