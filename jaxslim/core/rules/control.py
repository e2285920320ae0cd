"""Programs inside the program: calls, loops, branches."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxslim.core.value import Axis, Value, agreed, fixed_axis
from jaxslim.core.walk import CALLS, Rule, Walk, opaque


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
    axes = tuple(
        Axis(walk.unite(a.ids, b.ids), agreed(a.zeroed, b.zeroed)) for a, b in zip(one.axes, other.axes, strict=True)
    )
    return Value(axes, float(agreed(one.const, other.const)))


def _loop(walk: Walk, body: Callable[[list[Value]], list[Value]], start: list[Value]) -> list[Value]:
    """The outputs of a loop's last round: ids are tied once; what is known of the carry shrinks for some rounds."""
    carry = []
    for value in start:
        own = value._replace(axes=tuple(Axis(walk.new_ids(len(axis)), axis.zeroed) for axis in value.axes), leaf=None)
        carry.append(_either(walk, own, value))
    while True:
        outs = body(carry)
        after = list(map(functools.partial(_either, walk), carry, outs))
        if all(map(_equally_known, carry, after)):
            return [*after, *outs[len(carry) :]]
        carry = after


def _equally_known(one: Value, other: Value) -> bool:
    before, after = (np.concatenate([*(axis.zeroed for axis in v.axes), [v.const]]) for v in (one, other))
    return np.array_equal(before, after, equal_nan=True)


def _scan(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    consts, start, scanned = _scan_inputs(eqn.params, ins)
    slices = []
    for value in scanned:
        layers, *axes = value.axes
        walk.fix(layers.ids)
        if value.leaf is not None and len(axes) == 1:  # a vector in each round
            axes = [Axis(axes[0].ids, np.zeros(len(axes[0])))]
        slices.append(value._replace(axes=tuple(axes)))
    outs = _loop(walk, lambda carry: walk.follow(eqn.params["jaxpr"], [*consts, *carry, *slices]), start)
    rows = [Value((fixed_axis(eqn.params["length"]), *value.axes), value.const) for value in outs[len(start) :]]
    return [*outs[: len(start)], *rows]


def _scan_inputs(params: Any, ins: tuple[Value, ...]) -> list[list[Value]]:
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


CONTROL: dict[str, Rule] = {**dict.fromkeys(CALLS, _call), "cond": _cond, "scan": _scan, "while": _while}
