"""Recalibration: estimates BatchNorm's running statistics again, since a cut network holds those of the full one."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxslim.errors import InputError, first_line
from jaxslim.slim.kinds.adapted import Adapted, InLinen


def recalibrate(module: Any, variables: Any, batches: Iterable[Any], **arguments: Any) -> Any:
    """Replace BatchNorm's running statistics by the mean batch statistics over `batches`; nothing is trained.

    This changes only layers of `nn.BatchNorm` and its subclasses, and of an adapted NNX module those of
    `nnx.BatchNorm`, also within `nn.scan`, `nn.vmap`, `nn.remat` and `nn.jit`. A layer that runs several times in one
    application gets the mean over its runs. Layers that training does not update keep their values, and everything else
    in `batch_stats` does too.

    Args:
      module: Linen module with BatchNorm layers.
      variables: `params` and `batch_stats`.
      batches: normalised images (n, ...), augmented or not as in training; all of one size, 20 of 100 are plenty.
      **arguments: what `module.apply` takes in training; `train=True` and a key for dropout if none are given.

    Returns:
      The variables with new `batch_stats`; the old ones are untouched.

    Raises:
      InputError: there are no batches or no `batch_stats`, or the module does not take the arguments.
    """
    return recalibrator(module, **arguments)(variables, batches)


def recalibrator(module: Any, **arguments: Any) -> Callable[[Any, Iterable[Any]], Any]:
    """Build `recalibrate(variables, batches)` for several variables of one module; it compiles once."""
    arguments = arguments or {"train": True, "rngs": {"dropout": jax.random.key(0)}}

    def updated(variables: Any, stats: Any, images: Any, number: int | None = None) -> Any:
        """`stats` plus what each run of a BatchNorm layer adds: its batch statistics, or `number`."""
        # nn.jit reuses traces made with the same mutable collections. A collection of its own keeps these traces apart.
        mutable = ["batch_stats", f"recalibrate {number}"]
        try:
            with nn.intercept_methods(_adding(number)):
                changed = module.apply({**variables, "batch_stats": stats}, images, mutable=mutable, **arguments)[1]
        except Exception as error:  # whatever the module, Flax and JAX find wrong
            problem = f"{type(module).__name__} cannot be applied as in training ({first_line(error)})"
            advice = "pass the argument that it takes for that, for example use_running_average=False."
            raise InputError(f"{problem}; {advice}") from error
        return changed["batch_stats"]

    @jax.jit
    def of_batch(variables: Any, images: Any) -> tuple[Any, Any]:
        """For each statistic its sum over the runs of its layer, and the number of these runs."""
        old = variables["batch_stats"]
        zeros = jax.tree.map(jnp.zeros_like, old)
        ones, twos = (updated(variables, zeros, images, number) for number in (1, 2))
        # The number changes nothing but BatchNorm's statistics. So all others differ by 0 here, and count no runs.
        runs = jax.tree.map(lambda one, two: two.astype(jnp.float32) - one.astype(jnp.float32), ones, twos)
        start = jax.tree.map(lambda count, zero, own: jnp.where(count > 0, zero, own), runs, zeros, old)
        return updated(variables, start, images), runs

    def mean(count: jax.Array, total: jax.Array, old: Any) -> Any:
        """`old` where nothing ran."""
        if not (count > 0).any():
            return old
        return jnp.where(count > 0, total / jnp.maximum(count, 1), old).astype(jnp.result_type(old))

    @jax.jit
    def of_batch_in_nnx(variables: Any, images: Any) -> tuple[Any, Any]:
        """As `of_batch`, from how statistics move: new = momentum * old + (1 - momentum) * that of the batch."""

        def after(old: float) -> Any:
            stats = jax.tree.map(lambda own: jnp.full_like(own, old), variables["batch_stats"])
            return module.apply({**variables, "batch_stats": stats}, images, mutable=["batch_stats"], **arguments)[1]

        zeros, ones = after(0.0)["batch_stats"], after(1.0)["batch_stats"]
        runs = jax.tree.map(lambda zero, one: (one - zero < 1).astype(jnp.float32), zeros, ones)
        return jax.tree.map(lambda zero, one, run: run * zero / (1 - one + zero + (1 - run)), zeros, ones, runs), runs

    whole = getattr(module, "whole", module)
    if isinstance(whole, Adapted) and not isinstance(whole.form, InLinen):
        of_batch = of_batch_in_nnx

    def run(variables: Any, batches: Iterable[Any]) -> Any:
        if not variables.get("batch_stats"):
            raise InputError("The variables hold no batch_stats, and only networks with BatchNorm can be recalibrated.")
        if hasattr(batches, "shape"):
            raise InputError("The batches are one array; pass a list of arrays (n, height, width, channels).")
        found = None
        for images in batches:
            if not getattr(images, "size", 0):
                raise InputError("A batch is no array of images, or an empty one; pass images without labels.")
            of_this = of_batch(variables, images)
            found = jax.tree.map(jnp.add, found, of_this) if found else of_this
        if found is None:
            raise InputError("There are no batches to estimate the running statistics on; give at least one.")
        totals, runs = found
        if not any((count > 0).any() for count in jax.tree.leaves(runs)):
            advice = "pass the argument that it takes for training. Norms of other classes cannot be recalibrated."
            raise InputError(f"Applied like this, the module updates the statistics of no nn.BatchNorm; {advice}")
        return {**variables, "batch_stats": jax.tree.map(mean, runs, totals, variables["batch_stats"])}

    return run


def _adding(number: int | None) -> Callable[..., Any]:
    """A Flax interceptor: each run of a BatchNorm layer adds its batch statistics, or `number`, to the running ones."""
    innermost = None  # of the runs that lie within each other: a subclass calls its parent, nn.remat calls a copy

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal innermost
        layer: Any = context.module
        if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        this = innermost = object()
        before, momentum = dict(layer.variables["batch_stats"]), layer.momentum
        object.__setattr__(layer, "momentum", 0.0)  # so that the layer stores the batch statistics themselves
        out = call(*args, **kwargs)
        object.__setattr__(layer, "momentum", momentum)
        if innermost is this:
            for name, value in layer.variables["batch_stats"].items():
                if value is not before[name]:  # the layer stores nothing when it uses its running statistics
                    added = value if number is None else jnp.full_like(value, number)
                    layer.put_variable("batch_stats", name, before[name] + added)
        return out

    return intercept
