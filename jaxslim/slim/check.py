"""Comparing a cut network with the full one by numbers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxslim.core.paths import leaf_paths
from jaxslim.errors import InputError

NOISE = 1e-4
"""A difference that float32 can always make, as a share of the largest output."""


def examples(inputs: Any) -> Any:
    """The inputs, with random arrays in place of `ShapeDtypeStruct`s: normal floats, integers 0 or 1, true."""
    rng = np.random.default_rng(0)

    def example(x: Any) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), x.shape)
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return jnp.asarray(rng.normal(size=x.shape), x.dtype)
        return jnp.asarray(rng.integers(1 if x.dtype == bool else 0, 2, x.shape), x.dtype)

    return jax.tree.map(example, inputs)


def outputs(run: Callable[..., Any], variables: Any, inputs: Sequence[Any]) -> list[np.ndarray]:
    """All arrays that `run(variables, *inputs)` returns, computed as precisely as the device can."""
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.tree.leaves(jax.jit(run)(variables, *inputs)))


def difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """How far two lists of outputs are apart, as a share of the largest value of the same output.

    Integers count only where there are no floats, by the share that differs. Outputs of other shapes, such as new
    statistics, are left out. Equal infinities and two NaN are no difference.
    """
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True) if np.shape(a) == np.shape(b)]
    floats = [pair for pair in pairs if jnp.issubdtype(pair[0].dtype, jnp.inexact)]
    if not floats:
        return max((float(np.mean(a != b)) for a, b in pairs if a.size), default=0.0)
    wide = [[values.astype(np.promote_types(values.dtype, np.float64)) for values in pair] for pair in floats]
    largest = [np.max(np.abs(a[np.isfinite(a)]), initial=0.0) for a, _ in wide]
    least = max(0.01 * max(largest), 1e-6)  # an output of zeros is compared with the others
    return float(max(_largest_gap(a, b) / max(scale, least) for (a, b), scale in zip(wide, largest, strict=True)))


def _largest_gap(one: np.ndarray, other: np.ndarray) -> float:
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(one - other))
    return float(np.max(np.where(np.isnan(gap), math.inf, gap), initial=0.0))


def last_place(run: Callable[..., Any], variables: Any, inputs: Sequence[Any]) -> float:
    """The last place of the coarsest floats that a program computes, as a share of 1."""
    dtypes = _floats(jax.make_jaxpr(run)(variables, *inputs))
    return max((float(jnp.finfo(dtype).eps) for dtype in dtypes), default=0.0)


def rounding(run: Callable[..., Any], variables: Any, inputs: Sequence[Any]) -> float:
    """The difference that rounding can make: that by a change of all variables in the last place of the computation.

    The last place is that of the coarsest floats in the program, whatever the variables are kept in.
    """
    last = last_place(run, variables, inputs)
    rng = np.random.default_rng(0)

    def nudge(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return (leaf * (1 + last * rng.choice([-1, 1], np.shape(leaf)))).astype(leaf.dtype)

    nudged = outputs(run, jax.tree.map(nudge, variables), inputs)
    return max(6.4 * last, 10 * difference(outputs(run, variables, inputs), nudged))


def _floats(jaxpr: Any) -> set[Any]:
    """The dtypes of the floats that a program computes, those of its inner programs included."""
    found: set[Any] = set()
    for eqn in jaxpr.eqns:
        dtypes = {var.aval.dtype for var in eqn.outvars if hasattr(var.aval, "dtype")}
        found |= {dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)}
        inner = (leaf for leaf in jax.tree.leaves(eqn.params) if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr))
        found = found.union(*map(_floats, inner))
    return found


def check_finite(small: Any, masked_outputs: Sequence[np.ndarray], full_outputs: Callable[[], Any]) -> None:
    """Refuse NaN in the variables after a cut, infinities in them that reach the outputs, and NaN that masking makes.

    Raises:
      InputError: it names the variable, or says that the cut makes NaN.
    """
    finite = all(np.isfinite(out).all() for out in _inexact(masked_outputs))
    for path, leaf in leaf_paths(small):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            values = np.asarray(leaf)
            nans, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            if nans or (infinite and not finite):
                held = f"{'NaN' if nans else 'infinities'} in what stays ({nans or infinite} of {values.size} numbers)"
                raise InputError(f"{'/'.join(path)} holds {held}; take an earlier checkpoint.")
    if (nans := _nans(masked_outputs)) and nans > _nans(full_outputs()):
        advice = "cut fewer channels, or name layers to spare in leave."
        raise InputError(f"Without these channels the network computes NaN, which it does not with them; {advice}")


def _inexact(outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [out for out in outputs if jnp.issubdtype(out.dtype, jnp.inexact)]


def _nans(outputs: Sequence[np.ndarray]) -> int:
    return sum(int(np.isnan(out).sum()) for out in _inexact(outputs))
