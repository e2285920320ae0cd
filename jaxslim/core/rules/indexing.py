"""Primitives that take a part of an axis: slices, splits and gathers."""

import math
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from jaxslim.core.value import FIXED, Axis, Value, agreed, fixed_axes, fixed_axis
from jaxslim.core.walk import Rule, Walk, fix_axes


def _slice(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    parts = [slice(*bounds) for bounds in zip(starts, limits, strides, strict=True)]
    return [Value(tuple(_part(walk, eqn, *pair) for pair in zip(value.axes, parts, strict=True)), value.const)]


def _split(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    along, ends = eqn.params["axis"], np.cumsum(eqn.params["sizes"]).tolist()
    outs = []
    for start, end in zip([0, *ends], ends, strict=False):
        part = _part(walk, eqn, value.axes[along], slice(start, end, 1))
        outs.append(Value((*value.axes[:along], part, *value.axes[along + 1 :]), value.const))
    return outs


def _part(walk: Walk, eqn: Any, axis: Axis, part: slice) -> Axis:
    """Take `part` of an axis; the network takes the same share of the narrower axis after a cut.

    One of several equal parts ties equal offsets, a stride ties whole periods, and any other part fixes the axis.
    """
    n, taken = len(axis), part.stop - part.start
    if np.any(axis.ids > FIXED) and taken and (taken, part.step) != (n, 1):
        if part.step == 1 and n % taken == 0 and part.start % taken == 0:
            walk.tie(axis.ids, n // taken, across=0)
        elif part.step > 1 and n % part.step == 0 and part.start < part.step and taken > n - part.step:
            walk.tie(axis.ids, n // part.step, across=1)
        else:
            walk.fix_named(eqn.primitive.name, axis.ids)
    return axis[part]


def _dynamic_slice(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    sizes = eqn.params["slice_sizes"]
    partial = [k for k, n in enumerate(sizes) if n != len(value.axes[k])]
    fix_axes(walk, eqn, value, partial)
    axes = tuple(fixed_axis(n) if k in partial else value.axes[k] for k, n in enumerate(sizes))
    return [Value(axes, value.const)]


def _gather(walk: Walk, eqn: Any, value: Value, indices: Value) -> list[Value]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ()))
    places = zip((k for k in range(len(value.axes)) if k not in gone), numbers.offset_dims, strict=True)
    whole = {k: place for k, place in places if sizes[k] == len(value.axes[k]) and k not in numbers.start_index_map}
    fix_axes(walk, eqn, value, [k for k in range(len(value.axes)) if k not in whole])
    fix_axes(walk, eqn, indices, range(len(indices.axes)))
    axes = list(fixed_axes(eqn.outvars[0].aval.shape))
    for k, place in whole.items():
        axes[place] = Axis(value.axes[k].ids, _filled(eqn, value.axes[k].zeroed))
    return [Value(tuple(axes))]


def _filled(eqn: Any, zeroed: np.ndarray) -> np.ndarray:
    """What a cut channel holds after a gather. The default fill is NaN for every channel, so it changes nothing."""
    fill = eqn.params["fill_value"]
    if eqn.params["mode"] != GatherScatterMode.FILL_OR_DROP:
        return zeroed
    if np.issubdtype(eqn.outvars[0].aval.dtype, np.inexact) and (fill is None or math.isnan(fill)):
        return zeroed
    return agreed(zeroed, math.nan if fill is None else fill)


INDEXING: dict[str, Rule] = {"dynamic_slice": _dynamic_slice, "gather": _gather, "slice": _slice, "split": _split}
