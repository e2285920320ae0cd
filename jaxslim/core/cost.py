"""Parameters and multiply-accumulates, counted from the traced program."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from jaxslim.core.graph import program
from jaxslim.errors import InputError


class Cost(NamedTuple):
    """What a network costs."""

    params: int
    """Numbers that training adjusts; running statistics are not among them."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products for one image; a FLOP count would be about twice it."""


def count(apply: Callable[..., Any], variables: Any, images: Any, *, trained: str = "params") -> Cost:
    """Count parameters and multiply-accumulates of a network.

    Args:
      apply: `apply(variables, images)` -> logits.
      variables: pytree of arrays or `ShapeDtypeStruct`s.
      images: pytree of arrays or `ShapeDtypeStruct`s (n, ...); the count is for one image whatever n is.
      trained: the collection of `variables` that training adjusts. All leaves are counted if there is no such one.

    Returns:
      `Cost(params, macs)`.

    Raises:
      InputError: `apply` does not run with these variables and images, or multiplies in a loop of unknown rounds.

    Example:
      >>> count(lambda w, x: x @ w, jax.ShapeDtypeStruct((3, 2), "float32"), jax.ShapeDtypeStruct((8, 3), "float32"))
      Cost(params=6, macs=6)
    """
    adjusted = variables[trained] if isinstance(variables, Mapping) and trained in variables else variables
    params = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(adjusted))
    dtype = jax.dtypes.canonicalize_dtype
    image = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), dtype(x.dtype)), images)
    return Cost(params, _macs(program(apply, variables, image)))


def _macs(jaxpr: Any) -> int:
    return sum(map(_equation_macs, jaxpr.eqns))


def _equation_macs(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[a] for a in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // outputs
    inner = [_macs(leaf) for leaf in jax.tree.leaves(eqn.params) if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr)]
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        problem = "The network multiplies inside a while loop, whose rounds cannot be counted"
        raise InputError(f"{problem}; use scan or fori_loop with constant bounds.")
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)
