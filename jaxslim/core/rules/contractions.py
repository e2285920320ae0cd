"""Convolutions, matrix products and reductions: where channels are summed over."""

from typing import Any

import numpy as np

from jaxslim.core.value import FIXED, Axis, Value, fixed_axes, fixed_axis, unknown_axis
from jaxslim.core.walk import Rule, Walk, fix_axes, opaque


def _dot_general(walk: Walk, eqn: Any, lhs: Value, rhs: Value, *_: Value) -> list[Value]:
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    for a, b in zip(lhs_sum, rhs_sum, strict=True):
        walk.contract(lhs.axes[a], rhs.axes[b])
    axes = [_product(walk, lhs.axes[a], rhs.axes[b]) for a, b in zip(lhs_batch, rhs_batch, strict=True)]
    for value, used in ((lhs, (*lhs_sum, *lhs_batch)), (rhs, (*rhs_sum, *rhs_batch))):
        axes += map(_linear, value.without(used))
    return [Value(tuple(axes))]


def _linear(axis: Axis) -> Axis:
    """An axis after a linear function, under which 0 stays 0."""
    return Axis(axis.ids, np.where(axis.zeroed == 0, 0.0, np.nan))


def _product(walk: Walk, one: Axis, other: Axis) -> Axis:
    """An axis that both factors of a product have."""
    is_zero = (one.zeroed == 0) | (other.zeroed == 0)
    return Axis(walk.unite(one.ids, other.ids), np.where(is_zero, 0.0, np.nan))


def _conv(walk: Walk, eqn: Any, image: Value, kernel: Value) -> list[Value]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    batch, feature, *space = (image.axes[axis] for axis in numbers.lhs_spec)
    outputs, inputs, *window = (kernel.axes[axis] for axis in numbers.rhs_spec)
    if eqn.params["batch_group_count"] != 1:
        return opaque(walk, eqn, image, kernel)
    for axis in (*space, *window):
        walk.fix(axis.ids)
    outputs = _linear(outputs)
    if groups > 1 and groups == len(feature):
        # Depthwise: the network has one group a channel, so a channel takes its group with it.
        walk.fix(inputs.ids)
        outputs = _product(walk, outputs, feature[np.repeat(np.arange(groups), len(outputs) // groups)])
    else:
        # The number of groups stays, so every group loses the same offsets.
        walk.contract(feature, inputs[np.tile(np.arange(len(inputs)), groups)])
        if groups > 1:
            outputs = Axis(walk.tie(outputs.ids, groups, across=0), outputs.zeroed)
    axes = list(fixed_axes(eqn.outvars[0].aval.shape))
    axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = _linear(batch), outputs
    return [Value(tuple(axes))]


def _reduced(name: str, axis: Axis) -> Axis:
    """An axis that stays when others are reduced."""
    if name in _INDICES:
        return unknown_axis(axis.ids)
    selects = "max" in name or "min" in name or name in ("reduce_or", "reduce_and")
    return axis if selects else _linear(axis)


def _reduce(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    """Sums, products, extrema: inexact for the channels they run over."""
    name, gone = eqn.primitive.name, eqn.params["axes"]
    for ids in (value.axes[axis].ids for axis in gone):
        walk.inexact.append(ids[ids > FIXED])
        if name in _INDICES:  # the index of an extremum counts the channels before it
            walk.fix(ids)
    return [Value(tuple(_reduced(name, axis) for axis in value.without(gone)))]


def _reduce_window(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    has_empty_window = "sum" not in name and _has_empty_window(eqn)
    axes, windows = [], zip(eqn.params["window_dimensions"], eqn.params["window_strides"], strict=True)
    for axis, n, (window, stride) in zip(value.axes, shape, windows, strict=True):
        if window == stride == 1 and n == len(axis):
            axes.append(unknown_axis(axis.ids) if has_empty_window else _reduced(name, axis))
        else:
            walk.fix(axis.ids)
            axes.append(fixed_axis(n))
    return [Value(tuple(axes))]


def _has_empty_window(eqn: Any) -> bool:
    """Whether some window of a pooling sees only padding, or only gaps between dilated elements."""
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    for old, new, size, stride, (low, _), gap, step in zip(
        eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, *(eqn.params[name] for name in names), strict=True
    ):
        seen = np.arange(new)[:, None] * stride - low + np.arange(size) * step
        if not np.all(np.any((seen >= 0) & (seen <= (old - 1) * gap) & (seen % gap == 0), axis=1)):
            return True
    return False


def _along_axis(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    """Cumulative sums, sorts: the axis they run along is fixed, the others pass."""
    along = eqn.params.get("axis", eqn.params.get("dimension", len(ins[0].axes) - 1))
    joined = [axis.ids for axis in ins[0].axes]
    for value in ins:
        fix_axes(walk, eqn, value, [along])
        joined = [walk.unite(ids, axis.ids) for ids, axis in zip(joined, value.axes, strict=True)]
    axes = list(map(unknown_axis, joined))
    shapes = [var.aval.shape for var in eqn.outvars]
    return [Value((*axes[:along], fixed_axis(shape[along]), *axes[along + 1 :])) for shape in shapes]


_INDICES = ("argmax", "argmin")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor")
_ALONG = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k")

CONTRACTIONS: dict[str, Rule] = {
    **dict.fromkeys((*_REDUCTIONS, *_INDICES), _reduce),
    **dict.fromkeys(_ALONG, _along_axis),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _reduce_window),
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
}
