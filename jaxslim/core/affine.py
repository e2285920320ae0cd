"""Chains of additions and multiplications by known arrays, as one factor and one shift."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Operand(NamedTuple):
    """A known array that an affine step takes, and how it lies along the axes of the step's result."""

    number: int
    axes: tuple[int, ...]
    """For each axis of the array, the axis of the result; of one of length 1 it does not count."""


class Affine(NamedTuple):
    """One step of a chain: add, sub, mul or div by an operand, or neg."""

    name: str
    operand: Operand | None = None
    reverse: bool = False
    """Whether the operand comes first, as in `operand - x`."""


class Made(NamedTuple):
    """A known value that no equation of the program gives."""

    kernel: int | None
    """The kernel to be scaled; None for the factor or the shift of a chain."""
    chain: tuple[Affine, ...]
    axes: tuple[tuple[int, int], ...]
    """Pairs (axis of the result, axis of the kernel), if the chain follows a kernel."""
    rank: int
    """Number of axes of the chain's result."""
    is_shift: bool
    """Whether the value is what the chain adds, rather than what it multiplies by."""
    dtype: Any

    @property
    def sources(self) -> list[int]:
        """Numbers of the values that it is made from."""
        operands = [step.operand.number for step in self.chain if step.operand is not None]
        return operands if self.kernel is None else [self.kernel, *operands]


def evaluated(made: Made, values: Mapping[int, Any]) -> Any:
    factor, shift = jnp.ones((1,) * made.rank, made.dtype), jnp.zeros((1,) * made.rank, made.dtype)
    for step in made.chain:
        if step.operand is None:
            factor, shift = -factor, -shift
            continue
        operand = _spread(values[step.operand.number], step.operand.axes, made.rank)
        if step.name in ("mul", "div"):
            by = operand if step.name == "mul" else 1 / operand
            factor, shift = factor * by, shift * by
        elif step.reverse and step.name == "sub":
            factor, shift = -factor, operand - shift
        else:
            shift = shift + operand if step.name == "add" else shift - operand
    if made.kernel is None:
        alone = (shift if made.is_shift else factor).astype(made.dtype)
        return alone.reshape(trimmed(alone.shape)) if made.axes else alone
    kernel = values[made.kernel]
    lies = [1] * np.ndim(kernel)
    order = [axis for axis, _ in sorted(made.axes, key=lambda pair: pair[1])]
    for axis, place in made.axes:
        lies[place] = factor.shape[axis]
    rest = [axis for axis in range(made.rank) if axis not in order]
    return (kernel * jnp.transpose(factor, (*order, *rest)).reshape(lies)).astype(made.dtype)


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones in front, as broadcasting needs none."""
    return shape[next((k for k, n in enumerate(shape) if n != 1), len(shape)) :]


def _spread(array: Any, axes: tuple[int, ...], rank: int) -> Any:
    """An array with its axes at the places `axes` of `rank`."""
    sizes = {axis: n for axis, n in zip(axes, np.shape(array), strict=True) if n != 1}
    long = [axis for axis, n in zip(axes, np.shape(array), strict=True) if n != 1]
    lies = jnp.transpose(
        jnp.reshape(array, [sizes[axis] for axis in long]), sorted(range(len(long)), key=long.__getitem__)
    )
    return jnp.reshape(lies, [sizes.get(axis, 1) for axis in range(rank)])
