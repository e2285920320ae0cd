"""Convolutions, matrix products and reductions: where channels are summed over."""

import math
from typing import Any

import numpy as np

from jaxslim.core.walk import FIXED, Rule, Value, Walk, fix_axes, opaque, settle, still_zero, unknown


def _dot_general(walk: Walk, eqn: Any, lhs: Value, rhs: Value, *_: Value) -> list[Value]:
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    for a, b in zip(lhs_sum, rhs_sum, strict=True):
        walk.contract(lhs.ids[a], lhs.dead[a], rhs.ids[b], rhs.dead[b])
    ids, dead = [], []
    for a, b in zip(lhs_batch, rhs_batch, strict=True):
        ids.append(walk.unite(lhs.ids[a], rhs.ids[b]))
        dead.append(np.where((lhs.dead[a] == 0) | (rhs.dead[b] == 0), 0.0, math.nan))
    for value, used in ((lhs, (*lhs_sum, *lhs_batch)), (rhs, (*rhs_sum, *rhs_batch))):
        for axis in range(len(value.ids)):
            if axis not in used:
                ids.append(value.ids[axis])
                dead.append(still_zero(value.dead[axis]))
    return [Value(tuple(ids), tuple(dead))]


def _conv(walk: Walk, eqn: Any, image: Value, kernel: Value) -> list[Value]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    batch, feature, *space = numbers.lhs_spec
    out_axis, in_axis, *window = numbers.rhs_spec
    if eqn.params["batch_group_count"] != 1:
        return opaque(walk, eqn, image, kernel)
    for value, axes in ((image, space), (kernel, window)):
        for axis in axes:
            walk.fix(settle(value.ids[axis]))
    ins, dead_in = image.ids[feature], image.dead[feature]
    outs, dead_out = kernel.ids[out_axis], still_zero(kernel.dead[out_axis])
    each = len(outs) // groups
    if groups > 1 and groups == len(ins):
        # Depthwise: the network has one group a channel, so a channel takes its group with it.
        walk.fix(settle(kernel.ids[in_axis]))
        outs = walk.unite(outs, np.repeat(ins, each))
        dead_out = np.where(np.repeat(dead_in, each) == 0, 0.0, dead_out)
    else:
        # The number of groups stays, so every group loses the same offsets.
        shared = np.tile(kernel.ids[in_axis], groups)
        walk.contract(ins, dead_in, shared, np.tile(kernel.dead[in_axis], groups))
        if groups > 1:
            outs = walk.tie(outs, groups, across=0)
    out = walk.fixed(eqn.outvars[0].aval.shape)
    ids, dead = list(out.ids), list(out.dead)
    out_batch, out_feature, *_ = numbers.out_spec
    ids[out_batch], dead[out_batch] = image.ids[batch], still_zero(image.dead[batch])
    ids[out_feature], dead[out_feature] = outs, dead_out
    return [Value(tuple(ids), tuple(dead))]


def _reduced(name: str, dead: np.ndarray) -> np.ndarray:
    """What reducing other axes makes of the value that a dropped channel holds."""
    if "max" in name or "min" in name or name in ("reduce_or", "reduce_and"):
        return dead
    return still_zero(dead)


def _reduce(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    axes, name = eqn.params["axes"], eqn.primitive.name
    outs = []
    for value in ins:
        for axis in axes:
            if name.startswith("arg"):
                walk.fix(settle(value.ids[axis]))
            else:
                walk.inexact.append(value.ids[axis][value.ids[axis] > FIXED])
        kept = [axis for axis in range(len(value.ids)) if axis not in axes]
        dead = [unknown(len(value.ids[a])) if name.startswith("arg") else _reduced(name, value.dead[a]) for a in kept]
        outs.append(Value(tuple(value.ids[axis] for axis in kept), tuple(dead)))
    return outs


def _reduce_window(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    windows, strides = eqn.params["window_dimensions"], eqn.params["window_strides"]
    empty = "sum" not in eqn.primitive.name and _some_window_is_empty(eqn)
    ids, dead = [], []
    for axis, n in enumerate(shape):
        if windows[axis] == strides[axis] == 1 and n == len(value.ids[axis]):
            ids.append(value.ids[axis])
            dead.append(unknown(n) if empty else _reduced(eqn.primitive.name, value.dead[axis]))
        else:
            walk.fix(settle(value.ids[axis]))
            ids.append(np.full(n, FIXED))
            dead.append(unknown(n))
    return [Value(tuple(ids), tuple(dead))]


def _some_window_is_empty(eqn: Any) -> bool:
    """Whether a window of a pooling lies in the padding, or between the elements, with all that it sees."""
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    for old, new, size, stride, (low, _), apart, step in zip(
        eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, *(eqn.params[name] for name in names), strict=True
    ):
        at = np.arange(new)[:, None] * stride - low + np.arange(size) * step
        if not np.all(np.any((at >= 0) & (at <= (old - 1) * apart) & (at % apart == 0), axis=1)):
            return True
    return False


def _along_axis(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    """Cumulative sums, sorts: the axis itself is fixed, the others pass."""
    along = eqn.params.get("axis", eqn.params.get("dimension", len(ins[0].ids) - 1))
    joined = list(ins[0].ids)
    for value in ins:
        fix_axes(walk, eqn.primitive.name, value, [along])
        joined = [walk.unite(a, b) for a, b in zip(joined, value.ids, strict=True)]
    outs = []
    for var in eqn.outvars:
        shape = var.aval.shape
        ids = tuple(np.full(n, FIXED) if a == along else joined[a] for a, n in enumerate(shape))
        outs.append(Value(ids, tuple(unknown(n) for n in shape)))
    return outs


_REDUCTIONS = [
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
    "argmax",
    "argmin",
]
_ALONG = ["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k"]

CONTRACTIONS: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_ALONG, _along_axis),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _reduce_window),
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
}
