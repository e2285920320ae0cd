"""Primitives that move, repeat, join and pad axes."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from jaxslim.core.value import Axis, Value, agreed, combined, concatenated, free_axis
from jaxslim.core.walk import Rule, Walk, because


def _pass(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    return [value._replace(leaf=None) for value in ins]


def _broadcast_in_dim(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    axes, places = [free_axis(n) for n in eqn.params["shape"]], eqn.params["broadcast_dimensions"]
    for axis, place in zip(value.axes, places, strict=True):
        if len(axis) == len(axes[place]):
            axes[place] = axis
        else:
            walk.fix(axis.ids, because(eqn, expected=True))
    vector = None if value.vector is None else places[value.vector]
    return [Value(tuple(axes), value.const, vector=vector, normed=value.normed)]


def _transpose(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    order = eqn.params["permutation"]
    vector = None if value.vector is None else order.index(value.vector)
    return [Value(tuple(value.axes[axis] for axis in order), value.const, vector=vector)]


def _drop_axes(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    """Squeeze and unstack: the axes that go have to keep their length."""
    gone = eqn.params.get("dimensions", (eqn.params.get("axis"),))
    for axis in gone:
        walk.fix(value.axes[axis].ids, because(eqn, expected=True))
    vector = None if value.vector in (None, *gone) else value.vector - sum(k < value.vector for k in gone)
    return [Value(value.without(gone), value.const, vector=vector)] * len(eqn.outvars)


def _rev(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    axes = enumerate(value.axes)
    return [Value(tuple(axis[::-1] if k in eqn.params["dimensions"] else axis for k, axis in axes), value.const)]


def _stack(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    along = eqn.params["axis"]
    axes = joined_axes(walk, [value.axes for value in ins], [value.const for value in ins])
    return [Value((*axes[:along], free_axis(len(ins)), *axes[along:]))]


def _concatenate(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    along = eqn.params["dimension"]
    if not all(value.axes[along].free for value in ins):
        ins = tuple(walk.own(position, [along]) for position in range(len(ins)))
    axes = joined_axes(walk, [value.without([along]) for value in ins], [value.const for value in ins])
    together = concatenated([value.axes[along] for value in ins])
    return [Value((*axes[:along], together, *axes[along:]))]


def joined_axes(walk: Walk, rows: Sequence[Sequence[Axis]], consts: Sequence[float]) -> tuple[Axis, ...]:
    """The axes that several arrays have in common."""
    axes = []
    for parts in zip(*rows, strict=True):
        known = [
            part.map(lambda holds, const=const: np.where(np.isnan(holds), const, holds))
            for part, const in zip(parts, consts, strict=True)
        ]
        ids = reduce(walk.unite, [part.ids for part in parts])
        axes.append(combined(lambda *held: reduce(agreed, held), ids, *known))
    return tuple(axes)


def _tile(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    repeats = list(zip(value.axes, eqn.params["reps"], strict=True))
    return [Value(tuple(axis if n == 1 else concatenated([axis] * n) for axis, n in repeats), value.const)]


def _pad(walk: Walk, eqn: Any, value: Value, filler: Value) -> list[Value]:
    filled = any(max(amounts) > 0 for amounts in eqn.params["padding_config"])
    axes = []
    for k, (low, high, inner) in enumerate(eqn.params["padding_config"]):
        axis = value.axes[k]
        own = axis.map(lambda holds: agreed(holds, filler.const)) if filled and not axis.free else axis
        if inner and not axis.free:
            walk.fix(axis.ids, because(eqn))
            axes.append(walk.fixed_axis(len(axis) + low + high + inner * max(len(axis) - 1, 0), because(eqn)))
        elif axis.free:
            axes.append(free_axis(len(axis) + low + high + inner * max(len(axis) - 1, 0)))
        else:
            kept = own[max(-low, 0) : len(axis) - max(-high, 0)]
            axes.append(concatenated([_padding(walk, low, filler), kept, _padding(walk, high, filler)]))
    return [Value(tuple(axes))]


def _padding(walk: Walk, n: int, filler: Value) -> Axis:
    """Padded indices: like those of a constant, each can go where it meets a channel that goes."""
    holds = np.full(max(n, 0), filler.const)
    return Axis(walk.new_ids(max(n, 0)), holds, holds)


def _drawn(walk: Walk, eqn: Any, keys: Value, *_: Value) -> list[Value]:
    """Random bits: drawn in full, so that each channel draws what it drew before the cut."""
    return [
        Value(tuple(keys.axes[k] if k < len(keys.axes) else free_axis(n) for k, n in enumerate(var.aval.shape)))
        for var in eqn.outvars
    ]


AXES: dict[str, Rule] = {
    "random_bits": _drawn,
    **dict.fromkeys(("device_put", "name", "optimization_barrier", "reshard", "layout_constraint"), _pass),
    **dict.fromkeys(("squeeze", "unstack"), _drop_axes),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "pad": _pad,
    "rev": _rev,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
