"""Programs inside the program: calls, loops, branches, programs on each device of a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxslim.core.rules.axes import joined_axes
from jaxslim.core.value import Axis, Value, agreed, free_axis
from jaxslim.core.walk import CALLS, Rule, Walk, because, opaque


def inner_program(eqn: Any) -> Any:
    """The program that an equation calls once with its inputs as they are; None for other equations."""
    if eqn.primitive.name not in CALLS:
        return None
    return next((eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params), None)


def _call(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    inner = inner_program(eqn)
    return opaque(walk, eqn, *ins) if inner is None else walk.follow(inner, ins)


def _either(walk: Walk, one: Value, other: Value) -> Value:
    """The value that is one of two: their ids are tied, and a number is known where both agree."""
    axes = joined_axes(walk, (one.axes, other.axes), (one.const, other.const))
    return Value(axes, float(agreed(one.const, other.const)))


def _loop(walk: Walk, body: Callable[[list[Value]], list[Value]], start: list[Value]) -> list[Value]:
    """The outputs of a loop's last round: ids are tied once; what is known of the carry shrinks for some rounds."""
    carry = []
    for value in start:
        axes = tuple(axis.map(lambda holds: holds, walk.new_ids(len(axis))) for axis in value.axes)
        carry.append(_either(walk, Value(axes, value.const), value))
    while True:
        outs = body(carry)
        after = list(map(functools.partial(_either, walk), carry, outs))
        if all(map(_equally_known, carry, after)):
            return [*after, *outs[len(carry) :]]
        carry = after


def _equally_known(one: Value, other: Value) -> bool:
    before, after = (
        np.concatenate([*(holds for axis in v.axes for holds in (axis.zeroed, axis.alone)), [v.const]])
        for v in (one, other)
    )
    return np.array_equal(before, after, equal_nan=True)


def _scan(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    consts, start, scanned = scan_inputs(eqn.params, ins)
    slices = []
    for value in scanned:
        layers, *axes = value.axes
        walk.fix(layers.ids, because(eqn, "over the layers or steps", expected=True))
        vector = value.vector
        if value.leaf is not None:  # a vector in each round, perhaps
            long = [k for k, axis in enumerate(axes) if len(axis) > 1]
            vector = long[0] + 1 if len(long) == 1 else None
        vector = vector - 1 if vector else None
        slices.append(value._replace(axes=tuple(axes), vector=vector, origin=None))
    outs = _loop(walk, lambda carry: walk.follow(eqn.params["jaxpr"], [*consts, *carry, *slices]), start)
    rounds = eqn.params["length"]
    rows = [Value((_rounds(walk, eqn, rounds, value), *value.axes), value.const) for value in outs[len(start) :]]
    return [*outs[: len(start)], *rows]


def _rounds(walk: Walk, eqn: Any, n: int, value: Value) -> Axis:
    """The axis along which a scan stacks what its rounds give."""
    return free_axis(n) if value.free else walk.fixed_axis(n, because(eqn, "stacks its rounds", expected=True))


def scan_inputs(params: Any, ins: Any) -> list[list[Any]]:
    """Constants, carry and what is scanned; JAX 0.12 describes them by a tree, JAX 0.10 by two numbers."""
    if "ft_in" in params:
        return [list(part) for part in params["ft_in"].update(ins).unpack()]
    carry_at = params["num_consts"]
    scanned_at = carry_at + params["num_carry"]
    return [list(ins[:carry_at]), list(ins[carry_at:scanned_at]), list(ins[scanned_at:])]


def _while(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts, start = ins[:n_cond], ins[n_cond : n_cond + n_body], ins[n_cond + n_body :]
    carry = _loop(walk, lambda c: walk.follow(eqn.params["body_jaxpr"], [*body_consts, *c]), list(start))
    walk.follow(eqn.params["cond_jaxpr"], [*cond_consts, *carry])
    return carry


def _cond(walk: Walk, eqn: Any, _: Value, *ins: Value) -> list[Value]:
    outs, *others = [walk.follow(branch, ins) for branch in eqn.params["branches"]]
    for other in others:
        outs = list(map(functools.partial(_either, walk), outs, other))
    return outs


def _shard_map(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    """A program on each device: axes that the mesh cuts into shards stay, the others pass."""
    inner = eqn.params["jaxpr"]
    reason = because(eqn, "shards this axis")
    shards = [
        Value(tuple(_shard(walk, axis, n, reason) for axis, n in zip(value.axes, var.aval.shape, strict=True)),
              value.const, leaf=value.leaf, vector=value.vector)
        for value, var in zip(ins, inner.invars, strict=True)
    ]  # fmt: skip
    return [
        Value(tuple(_shard(walk, axis, n, reason) for axis, n in zip(value.axes, var.aval.shape, strict=True)))
        for value, var in zip(walk.follow(inner, shards), eqn.outvars, strict=True)
    ]


def _shard(walk: Walk, axis: Axis, n: int, reason: Any) -> Axis:
    if n == len(axis):
        return axis
    walk.fix(axis.ids, reason)
    return free_axis(n) if axis.free else walk.fixed_axis(n, reason)


def _across(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    """Sums and the like across devices, which keep the shape of each array."""
    gone = [axis for axis in eqn.params.get("axes", ()) if isinstance(axis, int)]  # those that vmap names
    if gone and not eqn.primitive.name.startswith("psum"):
        return opaque(walk, eqn, *ins)
    for axis in (value.axes[k] for value in ins for k in gone):
        walk.meets(axis.ids, axis.zeroed != 0, axis.alone != 0)
    axes = [value.without(gone) for value in ins]
    return [Value(tuple(axis.map(lambda holds: np.where(holds == 0, 0.0, np.nan)) for axis in own)) for own in axes]


_COLLECTIVES = ("psum", "psum2", "psum_invariant", "pmax", "pmin", "pbroadcast", "pvary", "pcast", "ppermute")

CONTROL: dict[str, Rule] = {
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(_COLLECTIVES, _across),
    "cond": _cond,
    "scan": _scan,
    "shard_map": _shard_map,
    "while": _while,
}
