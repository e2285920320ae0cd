"""Primitives that move, join and cut axes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from jaxslim.core.walk import (
    FIXED,
    FREE,
    Rule,
    Value,
    Walk,
    depends_on,
    fix_axes,
    lines,
    live,
    opaque,
    repeat_factor,
    settle,
    unknown,
)


def _pass(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    return [value._replace(leaf=None) for value in ins]


def _broadcast_in_dim(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    ids = [np.full(n, FREE) for n in shape]
    dead = [unknown(n) for n in shape]
    for axis, place in enumerate(places):
        if value.shape[axis] == shape[place]:
            ids[place], dead[place] = value.ids[axis], value.dead[axis]
        else:
            walk.fix(settle(value.ids[axis]))
    return [Value(tuple(ids), tuple(dead), value.const)]


def _pick_axes(value: Value, axes: Any) -> Value:
    return Value(tuple(value.ids[a] for a in axes), tuple(value.dead[a] for a in axes), value.const)


def _transpose(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    return [_pick_axes(value, eqn.params["permutation"])]


def _squeeze(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    gone = eqn.params["dimensions"]
    for axis in gone:
        walk.fix(settle(value.ids[axis]))
    return [_pick_axes(value, [axis for axis in range(len(value.ids)) if axis not in gone])]


def _rev(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    def turn(axes: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(axis[::-1] if i in eqn.params["dimensions"] else axis for i, axis in enumerate(axes))

    return [Value(turn(value.ids), turn(value.dead), value.const)]


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest runs of old and new axes with equal products, from the last axis on."""
    blocks = []
    i, j = len(old), len(new)
    while i or j:
        take, give = [], []
        have = want = 1
        if i:
            i -= 1
            take, have = [i], old[i]
        if j:
            j -= 1
            give, want = [j], new[j]
        while have != want:
            if have < want:
                i -= 1
                take.insert(0, i)
                have *= old[i]
            else:
                j -= 1
                give.insert(0, j)
                want *= new[j]
        blocks.append((take, give))
    return blocks


def _reshape(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    new = eqn.outvars[0].aval.shape
    ids = [np.full(n, FREE) for n in new]
    dead = [unknown(n) for n in new]
    if 0 in new:
        return opaque(walk, eqn, value)
    for take, give in _blocks(value.shape, new):
        merged, held = _merge(walk, [value.ids[a] for a in take], [value.dead[a] for a in take])
        if not give:
            walk.fix(settle(merged))
            continue
        for axis, (own_ids, own_dead) in zip(give, _spread(walk, merged, held, [new[a] for a in give]), strict=True):
            ids[axis], dead[axis] = own_ids, own_dead
    return [Value(tuple(ids), tuple(dead), value.const)]


def _merge(walk: Walk, ids: list[np.ndarray], dead: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One axis out of several: the ids of the only live factor, repeated.

    Where several may be live (a kernel's window is, until something fixes it), what the rest of the program ties
    together decides, so it is left to the end.
    """
    lengths = [len(axis) for axis in ids]
    n = math.prod(lengths)
    alive = [k for k, axis in enumerate(ids) if live(axis)]
    free = [k for k, axis in enumerate(ids) if np.all(axis == FREE)]
    if len(alive) > 1:
        return walk.defer_merge(ids), unknown(n)
    if not alive and math.prod(lengths[k] for k in free) == n:
        return np.full(n, FREE), unknown(n)
    if not alive and len(free) == 1:  # so many copies as fit: every fixed index has equally many
        ids = [walk.fresh(len(axis)) if k in free else axis for k, axis in enumerate(ids)]
        alive = free
    if not alive:
        return np.full(n, FIXED), unknown(n)
    return repeat_factor(ids, alive[0]), repeat_factor(dead, alive[0])


def _spread(walk: Walk, ids: np.ndarray, dead: np.ndarray, lengths: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Several axes out of one: the axis along which alone the ids change, else equal offsets of the last are tied."""
    grid = ids.reshape(lengths)

    def result(k: int, own: np.ndarray, held: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        free = FREE if np.all(ids == FREE) else FIXED
        return [(own, held) if i == k else (np.full(n, free), unknown(n)) for i, n in enumerate(lengths)]

    last = len(lengths) - 1
    k = next((k for k in reversed(range(len(lengths))) if depends_on(grid, k)), None)
    if k is None:
        k = last
        walk.tie(ids, math.prod(lengths[:last]), across=0)
    own, held = (lines(array.reshape(lengths), k) for array in (ids, dead))
    return result(k, own[0], np.where(np.all(held == held[0], axis=0), held[0], math.nan))


def _concatenate(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    return [_concatenated(walk, ins, eqn.params["dimension"])]


def _stack(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    along = eqn.params["axis"]
    return [_concatenated(walk, [_with_axis(value, along) for value in ins], along)]


def _with_axis(value: Value, axis: int) -> Value:
    def insert(axes: tuple[np.ndarray, ...], new: np.ndarray) -> tuple[np.ndarray, ...]:
        return (*axes[:axis], new, *axes[axis:])

    return Value(insert(value.ids, np.full(1, FIXED)), insert(value.dead, unknown(1)), value.const)


def _concatenated(walk: Walk, ins: Sequence[Value], along: int) -> Value:
    ids, dead = [], []
    for axis in range(len(ins[0].ids)):
        if axis == along:
            ids.append(np.concatenate([settle(value.ids[axis]) for value in ins]))
            dead.append(np.concatenate([value.dead[axis] for value in ins]))
            continue
        joined, held = ins[0].ids[axis], _held(ins[0], axis)
        for value in ins[1:]:
            joined = walk.unite(joined, value.ids[axis])
            held = np.where(held == _held(value, axis), held, math.nan)
        ids.append(joined)
        dead.append(held)
    return Value(tuple(ids), tuple(dead))


def _unstack(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    along = eqn.params["axis"]
    walk.fix(settle(value.ids[along]))
    return [_pick_axes(value, [axis for axis in range(len(value.ids)) if axis != along]) for _ in eqn.outvars]


def _tile(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    ids, dead = [], []
    for own, held, times in zip(value.ids, value.dead, eqn.params["reps"], strict=True):
        ids.append(own if times == 1 else np.tile(settle(own), times))
        dead.append(np.tile(held, times))
    return [Value(tuple(ids), tuple(dead), value.const)]


def _held(value: Value, axis: int) -> np.ndarray:
    return np.where(np.isnan(value.dead[axis]), value.const, value.dead[axis])


def _cut_axis(walk: Walk, name: str, ids: np.ndarray, start: int, limit: int, stride: int) -> None:
    """Keep a slice of a live axis meaningful in the narrower network, whose slice is taken at the same share of it.

    Equal parts lose equal offsets and strides lose whole periods; with any other slice the axis is fixed.
    """
    n, taken = len(ids), limit - start
    if not live(ids) or (taken == n and stride == 1):
        return
    if stride == 1 and n % taken == 0 and start % taken == 0:
        walk.tie(ids, n // taken, across=0)
    elif stride > 1 and n % stride == 0 and start < stride and limit > n - stride + start:
        walk.tie(ids, n // stride, across=1)
    else:
        walk.fix(settle(ids))
        walk.opaque[name] = None


def _slice(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    for ids, *bounds in zip(value.ids, starts, limits, strides, strict=True):
        _cut_axis(walk, "slice", ids, *bounds)
    parts = [slice(*bounds) for bounds in zip(starts, limits, strides, strict=True)]
    kept = tuple(axis[part] for axis, part in zip(value.ids, parts, strict=True))
    return [Value(kept, tuple(axis[part] for axis, part in zip(value.dead, parts, strict=True)), value.const)]


def _split(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    along, sizes = eqn.params["axis"], [int(size) for size in eqn.params["sizes"]]
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        _cut_axis(walk, "split", value.ids[along], int(start), int(end), 1)

    def part(axes: tuple[np.ndarray, ...], start: int, end: int) -> tuple[np.ndarray, ...]:
        return tuple(axis[start:end] if i == along else axis for i, axis in enumerate(axes))

    return [
        Value(part(value.ids, start, end), part(value.dead, start, end), value.const)
        for start, end in zip((ends - sizes).tolist(), ends.tolist(), strict=True)
    ]


def _pad(walk: Walk, eqn: Any, value: Value, filler: Value) -> list[Value]:
    ids, dead = [], []
    filled = any(max(amounts) > 0 for amounts in eqn.params["padding_config"])
    for own, held, (low, high, inner) in zip(value.ids, value.dead, eqn.params["padding_config"], strict=True):
        if filled:
            held = np.where(held == filler.const, held, math.nan)
        n = len(own) + low + high + inner * max(len(own) - 1, 0)
        if (low, high, inner) == (0, 0, 0):
            ids.append(own)
            dead.append(held)
        elif live(own) and min(low, high) >= 0 and inner == 0:
            ids.append(np.concatenate([np.full(low, FIXED), settle(own), np.full(high, FIXED)]))
            dead.append(np.concatenate([unknown(low), held, unknown(high)]))
        else:
            ids.append(np.full(n, FIXED))
            dead.append(unknown(n))
            if live(own):
                walk.fix(settle(own))
                walk.opaque["pad"] = None
    return [Value(tuple(ids), tuple(dead))]


def _gather(walk: Walk, eqn: Any, value: Value, indices: Value) -> list[Value]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batching = getattr(numbers, "operand_batching_dims", ())
    offsets = [a for a in range(len(value.ids)) if a not in numbers.collapsed_slice_dims and a not in batching]
    whole = {a for a in offsets if sizes[a] == len(value.ids[a]) and a not in numbers.start_index_map}
    fix_axes(walk, "gather", value, [a for a in range(len(value.ids)) if a not in whole])
    fix_axes(walk, "gather", indices, range(len(indices.ids)))
    out = walk.fixed(eqn.outvars[0].aval.shape)
    ids, dead = list(out.ids), list(out.dead)
    for axis, place in zip(offsets, numbers.offset_dims, strict=True):
        if axis in whole:
            ids[place], dead[place] = value.ids[axis], _filled(eqn, value.dead[axis])
    return [Value(tuple(ids), tuple(dead))]


def _filled(eqn: Any, dead: np.ndarray) -> np.ndarray:
    """What dropped channels hold where some indices may lie outside: NaN, if nothing is said, tells nothing apart."""
    filler = eqn.params["fill_value"]
    if eqn.params["mode"] != GatherScatterMode.FILL_OR_DROP:
        return dead
    if np.issubdtype(eqn.outvars[0].aval.dtype, np.inexact) and (filler is None or math.isnan(filler)):
        return dead
    return unknown(len(dead)) if filler is None else np.where(dead == filler, dead, math.nan)


def _dynamic_slice(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    sizes = eqn.params["slice_sizes"]
    cut = [axis for axis, n in enumerate(sizes) if n != len(value.ids[axis])]
    fix_axes(walk, "dynamic_slice", value, cut)
    ids = tuple(np.full(n, FIXED) if a in cut else value.ids[a] for a, n in enumerate(sizes))
    return [Value(ids, tuple(unknown(n) if a in cut else value.dead[a] for a, n in enumerate(sizes)), value.const)]


AXES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "device_put": _pass,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "name": _pass,
    "optimization_barrier": _pass,
    "pad": _pad,
    "reshape": _reshape,
    "reshard": _pass,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
}
