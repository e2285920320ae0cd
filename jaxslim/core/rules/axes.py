"""Primitives that move, repeat, join and pad axes."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from jaxslim.core.value import FIXED, Axis, Value, agreed, concatenated, fixed_axis, free_axis
from jaxslim.core.walk import Rule, Walk


def _pass(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    return [value._replace(leaf=None) for value in ins]


def _broadcast_in_dim(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    axes = [free_axis(n) for n in eqn.params["shape"]]
    for axis, place in zip(value.axes, eqn.params["broadcast_dimensions"], strict=True):
        if len(axis) == len(axes[place]):
            axes[place] = axis
        else:
            walk.fix(axis.ids)
    return [Value(tuple(axes), value.const)]


def _transpose(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    return [Value(tuple(value.axes[axis] for axis in eqn.params["permutation"]), value.const)]


def _drop_axes(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    """Squeeze and unstack: the axes that go have to keep their length."""
    gone = eqn.params.get("dimensions", (eqn.params.get("axis"),))
    for axis in gone:
        walk.fix(value.axes[axis].ids)
    return [Value(value.without(gone), value.const)] * len(eqn.outvars)


def _rev(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    axes = enumerate(value.axes)
    return [Value(tuple(axis[::-1] if k in eqn.params["dimensions"] else axis for k, axis in axes), value.const)]


def _stack(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    along = eqn.params["axis"]
    rows = [value._replace(axes=(*value.axes[:along], fixed_axis(1), *value.axes[along:])) for value in ins]
    return _joined(walk, rows, along)


def _joined(walk: Walk, ins: Sequence[Value], along: int) -> list[Value]:
    axes = []
    for number, parts in enumerate(zip(*(value.axes for value in ins), strict=True)):
        if number == along:
            axes.append(concatenated(parts))
            continue
        known = (
            np.where(np.isnan(part.zeroed), value.const, part.zeroed) for part, value in zip(parts, ins, strict=True)
        )
        axes.append(Axis(reduce(walk.unite, [part.ids for part in parts]), reduce(agreed, known)))
    return [Value(tuple(axes))]


def _tile(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    repeats = zip(value.axes, eqn.params["reps"], strict=True)
    return [Value(tuple(axis if n == 1 else concatenated([axis] * n) for axis, n in repeats), value.const)]


def _pad(walk: Walk, eqn: Any, value: Value, filler: Value) -> list[Value]:
    filled = any(max(amounts) > 0 for amounts in eqn.params["padding_config"])
    axes = []
    for axis, (low, high, inner) in zip(value.axes, eqn.params["padding_config"], strict=True):
        own = Axis(axis.ids, agreed(axis.zeroed, filler.const)) if filled else axis
        if (low, high, inner) == (0, 0, 0):
            axes.append(own)
        elif np.any(axis.ids > FIXED) and min(low, high) >= 0 and inner == 0:
            axes.append(concatenated([fixed_axis(low), own, fixed_axis(high)]))
        else:
            walk.fix_named("pad", axis.ids)
            axes.append(fixed_axis(len(axis) + low + high + inner * max(len(axis) - 1, 0)))
    return [Value(tuple(axes))]


AXES: dict[str, Rule] = {
    **dict.fromkeys(("device_put", "name", "optimization_barrier", "reshard"), _pass),
    **dict.fromkeys(("squeeze", "unstack"), _drop_axes),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda walk, eqn, *ins: _joined(walk, ins, eqn.params["dimension"]),
    "pad": _pad,
    "rev": _rev,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
