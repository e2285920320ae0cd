"""Reshapes: axes that merge into one, and axes that one splits into."""

import math
from itertools import pairwise
from typing import Any

import numpy as np

from jaxslim.core.value import Axis, Value, combined, free_axes, free_axis, index_along, lines, unknown_axis
from jaxslim.core.walk import Product, Rule, Walk, because
from jaxslim.errors import InputError


def _reshape(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    new = eqn.outvars[0].aval.shape
    if 0 in new:
        return [Value(free_axes(new), value.const)]
    order = eqn.params.get("dimensions") or range(len(value.axes))  # a transposition before
    old = tuple(len(value.axes[k]) for k in order)
    axes = [free_axis(n) for n in new]
    for take, give in blocks(old, new):
        took = [order[k] for k in take if old[k] > 1]
        gave = [k for k in give if new[k] > 1]
        for k in take:
            if old[k] == 1:
                walk.fix(value.axes[order[k]].ids, because(eqn, expected=True))
        if all(value.axes[k].free for k in took):
            continue
        copies = {k for k in took if value.axes[k].free}  # what a copy holds, no parameter tells
        value = walk.own(0, took)
        took_axes = [unknown_axis(value.axes[k].ids) if k in copies else value.axes[k] for k in took]
        made = _regroup(walk, eqn, took_axes, [new[k] for k in gave])
        for k, axis in zip(gave, made, strict=True):
            axes[k] = axis
    vector = None
    if value.vector is not None:
        vector = next((k for k, axis in enumerate(axes) if axis is value.axes[value.vector]), None)
    return [Value(tuple(axes), value.const, vector=vector, normed=value.normed)]


def blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair the smallest runs of old and new axes with equal products, from the last axis on."""
    pairs = []
    i, j = len(old), len(new)
    while i or j:
        start, stop = max(i - 1, 0), max(j - 1, 0)
        while (have := math.prod(old[start:i])) != (want := math.prod(new[stop:j])):
            if min(start, stop) < 0:
                raise InputError(
                    f"A reshape of {old} to {new} fits some open sizes only; export with a fixed batch size."
                )
            if have < want:
                start -= 1
            else:
                stop -= 1
        pairs.append(([*range(start, i)], [*range(stop, j)]))
        i, j = start, stop
    return pairs


def _regroup(walk: Walk, eqn: Any, axes: list[Axis], lengths: list[int]) -> list[Axis]:
    """The axes of these lengths that the elements of `axes` make up, both longer than 1 and equal in product."""
    if len(axes) == len(lengths) == 1:
        return axes
    chain = refinement([len(axis) for axis in axes], lengths)
    if chain is None:  # (2, 3) to (3, 2), for example
        return split(walk, eqn, merge(walk, eqn, axes), lengths)
    parts = [part for axis, own in zip(axes, groups(chain, [len(a) for a in axes]), strict=True)
             for part in split(walk, eqn, axis, own)]  # fmt: skip
    made, start = [], 0
    for own in groups(chain, lengths):
        made.append(merge(walk, eqn, parts[start : start + len(own)]))
        start += len(own)
    return made


def refinement(one: list[int], other: list[int]) -> list[int] | None:
    """The coarsest lengths of which both lists are products of neighbours; None if there are none."""
    ends = sorted({*np.cumprod(one[::-1]).tolist(), *np.cumprod(other[::-1]).tolist(), 1})
    pairs = list(pairwise(ends))
    return [b // a for a, b in pairs][::-1] if all(b % a == 0 for a, b in pairs) else None


def groups(chain: list[int], lengths: list[int]) -> list[list[int]]:
    """`chain` in runs of neighbours whose products are `lengths`."""
    rest, runs = list(chain), []
    for n in lengths:
        run = [rest.pop(0)]
        while math.prod(run) < n:
            run.append(rest.pop(0))
        runs.append(run)
    return runs


def split(walk: Walk, eqn: Any, axis: Axis, lengths: list[int]) -> list[Axis]:
    """Several axes out of one, all longer than 1: an element goes if its index along any of them goes."""
    if len(lengths) == 1:
        return [axis]
    if not axis.open:
        return [Axis(axis.ids[:n], axis.zeroed[:n], axis.alone[:n]) for n in lengths]
    grid = axis.ids.reshape(lengths)
    for k in range(len(lengths)):
        rows = lines(grid, k)
        if (rows == rows[0]).all():  # repeated along all others, whose lengths stay
            fixed = [walk.fixed_axis(n, because(eqn)) for n in lengths]
            fixed[k] = _line(axis, rows[0], lengths, k)
            return fixed
    axes = [_line(axis, walk.new_ids(n), lengths, k) for k, n in enumerate(lengths)]
    _record(walk, eqn, axis.ids, axes)
    return axes


def _line(axis: Axis, ids: np.ndarray, lengths: list[int], k: int) -> Axis:
    def common(holds: np.ndarray) -> np.ndarray:
        rows = lines(holds.reshape(lengths), k)
        return np.where((rows == rows[0]).all(0), rows[0], math.nan)

    return axis.map(common, ids)


def merge(walk: Walk, eqn: Any, axes: list[Axis]) -> Axis:
    """One axis out of several: an element goes if its index along any of them goes."""
    if len(axes) == 1:
        return axes[0]
    lengths = [len(axis) for axis in axes]
    can_go = [k for k, axis in enumerate(axes) if axis.open]
    places = {k: index_along(lengths, k) for k in can_go}
    if not can_go:
        return Axis(np.full(math.prod(lengths), axes[0].ids[0]), *2 * (np.full(math.prod(lengths), math.nan),))
    if len(can_go) == 1:
        return axes[can_go[0]][places[can_go[0]]]
    merged = combined(_common, walk.new_ids(math.prod(lengths)), *(axes[k][place] for k, place in places.items()))
    _record(walk, eqn, merged.ids, axes)
    return merged


def _common(*held: np.ndarray) -> np.ndarray:
    return np.where(np.all([one == held[0] for one in held], axis=0), held[0], math.nan)


def _record(walk: Walk, eqn: Any, grid: np.ndarray, axes: list[Axis]) -> None:
    walk.products.append(Product(grid, tuple(axis.ids for axis in axes), because(eqn)))
    walk.reduced += [ids[ids >= 0] for ids in (grid, *(axis.ids for axis in axes))]


RESHAPE: dict[str, Rule] = {"reshape": _reshape}
