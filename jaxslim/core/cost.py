"""Parameters and multiply-accumulates, counted from the traced program."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxslim.core.programs import program
from jaxslim.errors import InputError


class Cost(NamedTuple):
    """What a network costs."""

    params: int
    """Numbers that training adjusts; running statistics are not among them."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products for one example; FLOPs are about twice as many."""


def count(apply: Callable[..., Any], variables: Any, *inputs: Any, trained: str = "params") -> Cost:
    """Count parameters and multiply-accumulates of a network.

    A convolution costs the positions of its output times the elements of its kernel, so padding counts as pixels do.
    A transposed one costs the positions of its input instead: the zeros between pixels do not count. XLA's cost
    analysis agrees, with one multiply-accumulate for two FLOPs, but leaves out products with padding. A branch costs
    what the dearest does; what each device does under `shard_map` is added up.

    Args:
      apply: `apply(variables, *inputs)` -> any pytree.
      variables: pytree of arrays or `ShapeDtypeStruct`s.
      *inputs: pytrees of arrays, `ShapeDtypeStruct`s, scalars and random keys. Where all arrays have the same leading
        axis, that is the batch, and the count is for one example whatever the batch is: the program's at a batch of 1,
        or an even share of it in a network that runs at its own batch size only. Where leading axes differ, nothing
        says which is the batch, and the count is for the inputs as they are; pass those of one example.
      trained: the collection of `variables` that training adjusts. All arrays of floats are counted if there is no such
        one.

    Returns:
      `Cost(params, macs)`.

    Raises:
      InputError: `apply` does not run with these variables and inputs, or multiplies in a loop of unknown rounds.

    Example:
      >>> count(lambda w, x: x @ w, jax.ShapeDtypeStruct((3, 2), "float32"), jax.ShapeDtypeStruct((8, 3), "float32"))
      Cost(params=6, macs=6)
    """
    adjusted = variables[trained] if isinstance(variables, Mapping) and trained in variables else variables
    floats = [x for x in jax.tree.leaves(adjusted) if jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.inexact)]
    return Cost(sum(math.prod(np.shape(x)) for x in floats), _macs_of_one(apply, variables, inputs))


def _macs_of_one(apply: Callable[..., Any], variables: Any, inputs: Any) -> int:
    """Multiply-accumulates for one example of a batch, or for the inputs as they are if they are no batch."""

    def macs(batch: int | None) -> int:
        given = jax.tree.map(lambda leaf: _described(leaf, batch), inputs)
        return _macs(program(apply, variables, *given)[0])

    lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(inputs) if _is_batched(leaf)}
    if len(lengths) != 1:
        return macs(None)
    try:
        return macs(1)
    except InputError:
        return round(macs(None) / max(lengths.pop(), 1))


def _is_batched(leaf: Any) -> bool:
    """Whether an input has a leading axis that can be a batch: scalars have none, and neither have random keys."""
    shape = np.shape(leaf)
    is_key = bool(shape) and shape in ((2,), (4,)) and leaf.dtype == np.uint32  # one of `jax.random.PRNGKey`
    return bool(shape) and not is_key


def _described(leaf: Any, batch: int | None) -> Any:
    """The shape of an input, with another leading axis if it has one; a number of Python stays what it is."""
    if not hasattr(leaf, "dtype"):
        return leaf
    shape = leaf.shape if batch is None or not _is_batched(leaf) else (batch, *leaf.shape[1:])
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.ShapeDtypeStruct(shape, leaf.dtype if is_key else jax.dtypes.canonicalize_dtype(leaf.dtype))


def _macs(jaxpr: Any) -> int:
    return sum(map(equation_macs, jaxpr.eqns))


def equation_macs(eqn: Any) -> int:
    """Multiply-accumulates of one equation, those of the programs inside included."""
    name, params = eqn.primitive.name, eqn.params
    if name in ("dot_general", "scaled_dot"):
        return _product_macs(eqn, params["dimension_numbers"], ())
    if name == "ragged_dot_general":
        dimensions = params["ragged_dot_dimension_numbers"]
        return _product_macs(eqn, dimensions.dot_dimension_numbers, dimensions.rhs_group_dimensions)
    if name == "conv_general_dilated":
        return _convolution_macs(eqn)
    if name == "custom_linear_solve":
        return _macs(params["jaxprs"].solve)  # the others serve its derivatives
    inner = [_macs(leaf) for leaf in jax.tree.leaves(params) if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr)]
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        problem = "The network multiplies inside a while loop, whose rounds cannot be counted"
        raise InputError(f"{problem}; use scan or fori_loop with constant bounds.")
    return sum(inner) * times(name, params)


def times(name: str, params: Mapping[str, Any]) -> int:
    """How often an equation runs the programs inside it."""
    if name == "scan":
        return int(params["length"])
    if name == "shard_map":
        axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _product_macs(eqn: Any, dimension_numbers: Any, groups: tuple[int, ...]) -> int:
    """Each element of the left side meets, in its own group if there are groups, the free axes of the right."""
    (_, contracted), (_, batch) = dimension_numbers
    left, right = (var.aval.shape for var in eqn.invars[:2])
    free = (n for axis, n in enumerate(right) if axis not in (*contracted, *batch, *groups))
    return math.prod(left) * math.prod(free)


def _convolution_macs(eqn: Any) -> int:
    left, kernel, out = (var.aval.shape for var in (*eqn.invars, *eqn.outvars))
    axes, params = eqn.params["dimension_numbers"], eqn.params
    macs = out[axes.out_spec[0]] * kernel[axes.rhs_spec[0]] * kernel[axes.rhs_spec[1]]
    for k, (low, _) in enumerate(params["padding"]):
        pixels, taps, positions = left[axes.lhs_spec[k + 2]], kernel[axes.rhs_spec[k + 2]], out[axes.out_spec[k + 2]]
        stride, between, reach = (params[name][k] for name in ("window_strides", "lhs_dilation", "rhs_dilation"))
        # Tap t of position o lies on pixel i where o stride + t reach - low = i between.
        products = _multiples(positions, stride, taps, reach, -low, between)
        if positions > pixels:
            products = min(products, _multiples(pixels, between, taps, -reach, low, stride))
        macs *= products
    return int(macs)


def _multiples(n: int, step: int, m: int, reach: int, start: int, of: int) -> int:
    """How many of the sums of `start`, a step of the first n and a reach of the first m are multiples."""
    ahead = np.bincount(step * np.arange(n) % of, minlength=of)
    behind = np.bincount(-(reach * np.arange(m) + start) % of, minlength=of)
    return int(ahead @ behind)
