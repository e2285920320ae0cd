"""Running statistics of BatchNorm, estimated again: those of a cut network are still the full network's."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim.errors import InputError, first_line
from jaxslim.ops import compiler_options


def recalibrate(module: Any, variables: Any, batches: Iterable[Any], **arguments: Any) -> Any:
    """Replace the running statistics by the means of the batch statistics over `batches`; nothing is trained.

    What momentum the layers have does not matter: their update is linear in the old statistics, so two updates from
    different ones give the batch's statistics and the momentum. A layer that training does not update keeps its own,
    and so does whatever in `batch_stats` is not called mean or var.

    Args:
      module: Linen module with BatchNorm layers.
      variables: `params` and `batch_stats`.
      batches: normalised images (n, ...), augmented or not as in training; all of one size, 20 of 100 are plenty.
      **arguments: of `module.apply` in training; `train=True` if none are given.

    Returns:
      Variables with other `batch_stats`; the old ones are untouched.

    Raises:
      InputError: there are no batches or no `batch_stats`, or the module does not take the arguments.
    """
    return recalibrator(module, **arguments)(variables, batches)


def recalibrator(module: Any, **arguments: Any) -> Callable[[Any, Iterable[Any]], Any]:
    """Build `recalibrate(variables, batches)` for several variables of one module; it compiles once."""

    how = arguments or {"train": True}

    def updated(variables: Any, images: Any, start: Any) -> Any:
        changed = {**variables, "batch_stats": start}
        return module.apply(changed, images, mutable=["batch_stats"], **how)[1]["batch_stats"]

    @jax.jit
    def still(variables: Any, images: Any) -> Any:
        """Which statistics training does not update."""
        start = jax.tree.map_with_path(
            lambda path, leaf: jnp.ones_like(leaf) if _is_running(path) else leaf, variables["batch_stats"]
        )
        after = updated(variables, images, start)
        return jax.tree.map_with_path(lambda path, leaf: jnp.all(leaf == 1) | (not _is_running(path)), after)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=compiler_options())
    def of_batch(fixed: tuple[bool, ...], variables: Any, images: Any) -> Any:
        old, structure = jax.tree.flatten(variables["batch_stats"])

        def update(start: list[Any]) -> list[Any]:
            chosen = [leaf if keep else other for keep, leaf, other in zip(fixed, old, start, strict=True)]
            return jax.tree.leaves(updated(variables, images, jax.tree.unflatten(structure, chosen)))

        from_zeros = update([jnp.zeros_like(leaf) for leaf in old])
        # As large as the statistics, or the momentum would drown in their rounding.
        start = [jnp.full_like(leaf, jnp.maximum(1, jnp.abs(leaf).max())) for leaf in from_zeros]
        found = []
        for keep, leaf, zero, one, size in zip(fixed, old, from_zeros, update(start), start, strict=True):
            momentum = jnp.median((one - zero) / size)
            found.append(leaf if keep else zero / (1 - momentum))
        return jax.tree.unflatten(structure, found)

    def run(variables: Any, batches: Iterable[Any]) -> Any:
        if not isinstance(variables, Mapping) or not variables.get("batch_stats"):
            raise InputError("The variables hold no batch_stats, and only networks with BatchNorm can be recalibrated.")
        if hasattr(batches, "shape") or not isinstance(batches, Iterable):
            raise InputError("The batches are one array or none; pass a list of arrays (n, height, width, channels).")
        total, count = None, 0
        fixed: tuple[bool, ...] = ()
        for images in batches:
            if not getattr(images, "size", 0):
                raise InputError("A batch is no array of images, or an empty one; pass images without labels.")
            try:
                fixed = fixed or tuple(map(bool, jax.tree.leaves(still(variables, images))))
            except Exception as error:  # whatever the module, Flax and JAX find wrong
                raise InputError(
                    f"{type(module).__name__} cannot be applied as in training ({first_line(error)}); pass the "
                    "argument that it takes for that, for example use_running_average=False."
                ) from error
            if all(fixed):
                raise InputError(
                    "Applied like this, the module updates no statistics; pass the argument that it takes for training."
                )
            found = of_batch(fixed, variables, images)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
            count += 1
        if not count:
            raise InputError("There are no batches to estimate the running statistics on; give at least one.")
        old, structure = jax.tree.flatten(variables["batch_stats"])
        sums = zip(fixed, old, jax.tree.leaves(total), strict=True)
        means = [leaf if keep else found / count for keep, leaf, found in sums]
        return {**variables, "batch_stats": jax.tree.unflatten(structure, means)}

    return run


def _is_running(path: Any) -> bool:
    """Whether a leaf of `batch_stats` is a running statistic of BatchNorm; other layers keep other things there."""
    return jax.tree_util.keystr(path[-1:], simple=True) in ("mean", "var")
