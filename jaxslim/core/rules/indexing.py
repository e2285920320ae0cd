"""Primitives that take or put a part of an axis: slices, splits, gathers, scatters."""

import math
from typing import Any

import jax
import numpy as np
from jax.lax import GatherScatterMode

from jaxslim.core.symbols import Equation
from jaxslim.core.value import Axis, Value, agreed, combined, free_axes, free_axis, unknown_axis
from jaxslim.core.walk import Rule, Walk, because


def _slice(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    parts = [slice(*bounds) for bounds in zip(starts, limits, strides, strict=True)]
    axes = tuple(axis[part] for axis, part in zip(value.axes, parts, strict=True))
    return [Value(axes, value.const)]


def _split(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    along, ends = eqn.params["axis"], np.cumsum(eqn.params["sizes"]).tolist()
    axis, outs = value.axes[along], []
    for start, end in zip([0, *ends], ends, strict=False):
        outs.append(Value((*value.axes[:along], axis[start:end], *value.axes[along + 1 :]), value.const))
    return outs


def _dynamic_slice(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    axes = list(value.axes)
    for k, n in enumerate(eqn.params["slice_sizes"]):
        if n != len(axes[k]):
            walk.fix(axes[k].ids, because(eqn, "at an index that is computed", expected=True))
            axes[k] = free_axis(n) if axes[k].free else walk.fixed_axis(n, because(eqn))
    return [Value(tuple(axes), value.const)]


def _dynamic_update_slice(walk: Walk, eqn: Any, operand: Value, update: Value, *_: Value) -> list[Value]:
    axes = []
    for k, (whole, part) in enumerate(zip(operand.axes, update.axes, strict=True)):
        if len(whole) == len(part):
            axes.append(_both(walk, operand, whole, update, part))
        else:
            reason = because(eqn, "at an index that is computed", expected=True)
            operand, update = walk.own(0, [k]), walk.own(1, [k])
            walk.fix(operand.axes[k].ids, reason)
            walk.fix(update.axes[k].ids, reason)
            axes.append(walk.fixed_axis(len(whole), reason))
    return [Value(tuple(axes))]


def _both(walk: Walk, one: Value, own: Axis, other: Value, others: Axis) -> Axis:
    """An axis of an array that holds elements of two."""
    ids = walk.unite(own.ids, others.ids)
    known = (_with_const(axis, value.const) for axis, value in ((own, one), (others, other)))
    return combined(lambda a, b: np.where((a == 0) & (b == 0), 0.0, math.nan), ids, *known)


def _with_const(axis: Axis, const: float) -> Axis:
    return axis.map(lambda holds: np.where(np.isnan(holds), const, holds))


def _gather(walk: Walk, eqn: Any, value: Value, indices: Value) -> list[Value]:
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
    batching = tuple(numbers.operand_batching_dims)
    axes: list[Axis | None] = [None] * len(shape)
    outer = [k for k in range(len(shape)) if k not in numbers.offset_dims]
    for operand_axis, index_axis in zip(batching, numbers.start_indices_batching_dims, strict=True):
        ids = walk.unite(
            walk.own(0, [operand_axis]).axes[operand_axis].ids, walk.own(1, [index_axis]).axes[index_axis].ids
        )
        axes[outer[index_axis]] = unknown_axis(ids)
    value = walk.ins[0]
    window = [k for k in range(len(value.axes)) if k not in (*numbers.collapsed_slice_dims, *batching)]
    for k, place in zip(window, numbers.offset_dims, strict=True):
        if sizes[k] == len(value.axes[k]):
            axes[place] = value.axes[k].map(lambda holds: _filled(eqn, holds))
    chosen = chosen_indices(eqn, value, indices)
    passed = [k for k, place in zip(window, numbers.offset_dims, strict=True) if axes[place] is not None]
    if chosen is not None:
        along = numbers.start_index_map[0]
        passed.append(along)
        part = value.axes[along][chosen]
        if len(indices.axes) > 1:
            axes[outer[0]] = part
        elif along in window:
            axes[numbers.offset_dims[window.index(along)]] = part
        else:
            walk.fix(part.ids, because(eqn, "takes this index alone", expected=True))
    for k in range(len(value.axes)):
        if k not in (*passed, *batching):
            walk.fix(value.axes[k].ids, because(eqn, "at indices that are computed", expected=True))
    for k, axis in enumerate(walk.ins[1].axes[:-1]):
        if axes[outer[k]] is None:
            axes[outer[k]] = unknown_axis(axis.ids)
    made = [free_axis(n) if axis is None and value.free else axis for axis, n in zip(axes, shape, strict=True)]
    return [Value(tuple(axis or walk.fixed_axis(n, because(eqn)) for axis, n in zip(made, shape, strict=True)))]


def chosen_indices(eqn: Any, value: Value, indices: Value) -> np.ndarray | None:
    """The constant indices (n,) that a gather takes whole slices at, along one axis that can be cut."""
    numbers = eqn.params["dimension_numbers"]
    along = numbers.start_index_map[0] if len(numbers.start_index_map) == 1 else None
    if along is None or not value.axes[along].open or numbers.operand_batching_dims or len(indices.axes) > 2:
        return None
    is_single = along in numbers.collapsed_slice_dims
    if not is_single and len(indices.axes) != 1:
        return None
    if (known := number_of(indices)) is None:
        return None
    starts = np.asarray(known).reshape(-1)
    chosen = starts if is_single else starts[0] + np.arange(eqn.params["slice_sizes"][along])
    inside = (chosen >= 0) & (chosen < len(value.axes[along]))
    return chosen if inside.all() else None


def number_of(value: Value) -> Any:
    """The numbers of a constant; None for what is none. They are computed only where they are asked for."""
    if value.origin is None:
        return None
    if len(value.origin) == 1:
        return value.origin[0]
    eqn, ins, number = value.origin
    known = [number_of(one) for one in ins]
    if any(one is None for one in known) or isinstance(eqn, Equation):
        return None
    with jax.ensure_compile_time_eval():
        outs = eqn.primitive.bind(*known, **eqn.params)
    return np.asarray((outs if eqn.primitive.multiple_results else [outs])[number])


def _filled(eqn: Any, holds: np.ndarray) -> np.ndarray:
    """What a cut channel holds after a gather. The default fill is NaN for every channel, so it changes nothing."""
    fill = eqn.params["fill_value"]
    if eqn.params["mode"] != GatherScatterMode.FILL_OR_DROP:
        return holds
    if np.issubdtype(eqn.outvars[0].aval.dtype, np.inexact) and (fill is None or math.isnan(fill)):
        return holds
    return agreed(holds, math.nan if fill is None else fill)


def _scatter(walk: Walk, eqn: Any, operand: Value, indices: Value, updates: Value) -> list[Value]:
    """Whole axes of the window pass; the axes that are indexed stay."""
    reason = because(eqn, "at indices that are computed")
    numbers = eqn.params["dimension_numbers"]
    batching = tuple(numbers.operand_batching_dims)
    index_batching = tuple(numbers.scatter_indices_batching_dims)
    outer = [k for k in range(len(updates.axes)) if k not in numbers.update_window_dims]
    window = [k for k in range(len(operand.axes)) if k not in (*numbers.inserted_window_dims, *batching)]
    pairs = [(k, place) for k, place in zip(window, numbers.update_window_dims, strict=True)
             if len(operand.axes[k]) == len(updates.axes[place])
             and k not in numbers.scatter_dims_to_operand_dims]  # fmt: skip
    pairs += [(k, outer[own]) for k, own in zip(batching, index_batching, strict=True)]
    for k, own in zip(batching, index_batching, strict=True):
        walk.unite(walk.own(0, [k]).axes[k].ids, walk.own(1, [own]).axes[own].ids)
    axes: list[Axis | None] = [None] * len(operand.axes)
    for k, place in pairs:
        axes[k] = _both(walk, operand, walk.ins[0].axes[k], updates, updates.axes[place])
    for k in range(len(operand.axes)):
        if axes[k] is None:
            walk.fix(operand.axes[k].ids, reason)
            axes[k] = unknown_axis(operand.axes[k].ids) if not operand.axes[k].free else free_axis(len(operand.axes[k]))
    for place in range(len(updates.axes)):
        if place in outer and indices.axes[outer.index(place)].ids is not updates.axes[place].ids:
            walk.unite(walk.own(1).axes[outer.index(place)].ids, walk.own(2, [place]).axes[place].ids)
        elif place not in [pair[1] for pair in pairs]:
            walk.fix(updates.axes[place].ids, reason)
    return [Value(tuple(axis for axis in axes if axis is not None))]


def _bitcast(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    """The bits of each element as another type; one axis more or less where the sizes of the types differ."""
    rank = len(eqn.outvars[0].aval.shape)
    kept = [unknown_axis(axis.ids) for axis in value.axes[:rank]]
    for axis in value.axes[rank:]:
        walk.fix(axis.ids, because(eqn))
    return [Value((*kept, *free_axes(eqn.outvars[0].aval.shape[len(kept) :])))]


_SCATTERS = ("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-min", "scatter_min")
_MORE_SCATTERS = ("scatter-max", "scatter_max", "scatter-sub", "scatter_sub")

INDEXING: dict[str, Rule] = {
    **dict.fromkeys((*_SCATTERS, *_MORE_SCATTERS), _scatter),
    "bitcast_convert_type": _bitcast,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "slice": _slice,
    "split": _split,
}
