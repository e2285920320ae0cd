"""Programs inside the program: calls, loops, branches."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxslim.core.walk import CALLS, FIXED, Rule, Value, Walk, opaque, settle, unknown


def inner_program(eqn: Any) -> Any:
    """The program that an equation calls once with its inputs as they are; None for other equations."""
    if eqn.primitive.name not in CALLS:
        return None
    return next((eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params), None)


def _call(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    inner = inner_program(eqn)
    return opaque(walk, eqn, *ins) if inner is None else walk.follow(inner, list(ins))


def _join(walk: Walk, one: Value, other: Value) -> Value:
    """The value that is either of two: tied, and known for dropped channels where both agree."""
    ids = tuple(walk.unite(a, b) for a, b in zip(one.ids, other.ids, strict=True))
    dead = tuple(np.where(a == b, a, math.nan) for a, b in zip(one.dead, other.dead, strict=True))
    return Value(ids, dead, one.const if one.const == other.const else math.nan)


def _loop(walk: Walk, body: Callable[[list[Value]], list[Value]], start: list[Value]) -> list[Value]:
    """Follow a loop's carry to a fixed point; the ids are tied once, the held values settle in a few rounds."""
    carry = [_join(walk, Value(tuple(map(walk.fresh, value.shape)), value.dead, value.const), value) for value in start]
    while True:
        after = [_join(walk, old, new) for old, new in zip(carry, body(carry), strict=True)]
        if all(map(_same_held, carry, after)):
            return after
        carry = after


def _same_held(one: Value, other: Value) -> bool:
    held, after = (np.concatenate([*value.dead, [value.const]]) for value in (one, other))
    return np.array_equal(held, after, equal_nan=True)


def _scan(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    consts, start, scanned = _scan_inputs(eqn.params, ins)
    slices = []
    for value in scanned:
        walk.fix(settle(value.ids[0]))
        dead = value.dead[1:]
        if value.leaf is not None and len(value.ids) == 2:
            dead = (np.zeros(len(value.ids[1])),)
        slices.append(Value(value.ids[1:], dead, value.const, value.leaf))
    stacked: list[Value] = []

    def body(carry: list[Value]) -> list[Value]:
        nonlocal stacked
        outs = walk.follow(eqn.params["jaxpr"], [*consts, *carry, *slices])
        stacked = outs[len(start) :]
        return outs[: len(start)]

    carry = _loop(walk, body, start)
    n = eqn.params["length"]
    rows = [Value((np.full(n, FIXED), *v.ids), (unknown(n), *v.dead), v.const) for v in stacked]
    return [*carry, *rows]


def _scan_inputs(params: Any, ins: tuple[Value, ...]) -> tuple[list[Value], list[Value], list[Value]]:
    """Constants, carry and what is scanned; JAX 0.12 describes them by a tree, JAX 0.10 by two numbers."""
    if "ft_in" in params:
        consts, carry, scanned = params["ft_in"].update(ins).unpack()
        return list(consts), list(carry), list(scanned)
    carry_at = params["num_consts"]
    scanned_at = carry_at + params["num_carry"]
    return list(ins[:carry_at]), list(ins[carry_at:scanned_at]), list(ins[scanned_at:])


def _while(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts, start = ins[:n_cond], ins[n_cond : n_cond + n_body], ins[n_cond + n_body :]
    carry = _loop(walk, lambda c: walk.follow(eqn.params["body_jaxpr"], [*body_consts, *c]), list(start))
    walk.follow(eqn.params["cond_jaxpr"], [*cond_consts, *carry])
    return carry


def _cond(walk: Walk, eqn: Any, _: Value, *ins: Value) -> list[Value]:
    outs, *others = [walk.follow(branch, list(ins)) for branch in eqn.params["branches"]]
    for other in others:
        outs = [_join(walk, a, b) for a, b in zip(outs, other, strict=True)]
    return outs


CONTROL: dict[str, Rule] = {**dict.fromkeys(CALLS, _call), "cond": _cond, "scan": _scan, "while": _while}
