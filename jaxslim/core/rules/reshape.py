"""Reshapes: axes that merge into one, and axes that one splits into."""

import math
from typing import Any

import numpy as np

from jaxslim.core.value import FIXED, FREE, Axis, Value, fixed_axis, free_axis, index_along, lines, unknown_axis
from jaxslim.core.walk import Rule, Walk, opaque


def _reshape(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    if 0 in shape:
        return opaque(walk, eqn, value)
    axes = [free_axis(n) for n in shape]
    for old, new in _blocks(value.shape, shape):
        merged = _merged(walk, [value.axes[k] for k in old])
        if not new:
            walk.fix(merged.ids)
            continue
        for k, axis in zip(new, _split(walk, merged, [shape[k] for k in new]), strict=True):
            axes[k] = axis
    return [Value(tuple(axes), value.const)]


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair the smallest runs of old and new axes with equal products, from the last axis on."""
    blocks = []
    i, j = len(old), len(new)
    while i or j:
        start, stop = max(i - 1, 0), max(j - 1, 0)
        while (have := math.prod(old[start:i])) != (want := math.prod(new[stop:j])):
            if have < want:
                start -= 1
            else:
                stop -= 1
        blocks.append(([*range(start, i)], [*range(stop, j)]))
        i, j = start, stop
    return blocks


def _merged(walk: Walk, axes: list[Axis]) -> Axis:
    """One axis out of several: the only one that can be cut, repeated along the others.

    Where several can be cut, the walk chooses at its end: a later convolution, for example, fixes its kernel's window.
    """
    lengths = [len(axis) for axis in axes]
    n = math.prod(lengths)
    free = [k for k, axis in enumerate(axes) if np.all(axis.ids == FREE)]
    variable = [k for k, axis in enumerate(axes) if np.any(axis.ids > FIXED)]
    if len(variable) > 1:
        return unknown_axis(walk.merge([axis.ids for axis in axes]))
    if variable:
        return axes[variable[0]][index_along(lengths, variable[0])]
    if math.prod(lengths[k] for k in free) == n:
        return free_axis(n)
    if len(free) == 1:  # copies of fixed indices: of each, the same copies can go
        return unknown_axis(walk.new_ids(lengths[free[0]]))[index_along(lengths, free[0])]
    return fixed_axis(n)


def _split(walk: Walk, axis: Axis, lengths: list[int]) -> list[Axis]:
    """Several axes out of one: the ids go to the only one they vary along, else to the last, where equal places tie."""
    rows = [lines(axis.ids.reshape(lengths), k) for k in range(len(lengths))]
    along = max((k for k, own in enumerate(rows) if np.all(own == own[0])), default=None)
    if along is None:
        along = len(lengths) - 1
        walk.tie(axis.ids, math.prod(lengths[:-1]), across=0)
    zeroed = lines(axis.zeroed.reshape(lengths), along)
    own = Axis(rows[along][0], np.where(np.all(zeroed == zeroed[0], axis=0), zeroed[0], math.nan))
    other = free_axis if np.all(axis.ids == FREE) else fixed_axis
    return [own if k == along else other(n) for k, n in enumerate(lengths)]


RESHAPE: dict[str, Rule] = {"reshape": _reshape}
