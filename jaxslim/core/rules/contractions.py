"""Convolutions, matrix products and reductions: where channels are summed over."""

from typing import Any

import numpy as np

from jaxslim.core.rules.reshape import split
from jaxslim.core.value import Axis, Value, combined, free_axis, unknown_axis
from jaxslim.core.walk import Rule, Walk, because, opaque


def _dot_general(walk: Walk, eqn: Any, lhs: Value, rhs: Value, *_: Value) -> list[Value]:
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    lhs, rhs = _owned(walk, lhs_sum, lhs_batch, rhs_sum, rhs_batch)
    for a, b in zip(lhs_sum, rhs_sum, strict=True):
        walk.contract(lhs.axes[a], rhs.axes[b])
    axes = [_product(walk, lhs.axes[a], rhs.axes[b]) for a, b in zip(lhs_batch, rhs_batch, strict=True)]
    for value, used in ((lhs, (*lhs_sum, *lhs_batch)), (rhs, (*rhs_sum, *rhs_batch))):
        axes += map(_linear, value.without(used))
    return [Value(tuple(axes))]


def _owned(walk: Walk, lhs_sum: Any, lhs_batch: Any, rhs_sum: Any, rhs_batch: Any) -> tuple[Value, Value]:
    """Both factors; where one is free along an axis that both have, and the other is not, the free one gets ids."""
    for a, b in (*zip(lhs_sum, rhs_sum, strict=True), *zip(lhs_batch, rhs_batch, strict=True)):
        if walk.ins[0].axes[a].free != walk.ins[1].axes[b].free:
            walk.own(0, [a])
            walk.own(1, [b])
    return walk.ins[0], walk.ins[1]


def _linear(axis: Axis) -> Axis:
    """An axis after a linear function, under which 0 stays 0."""
    return axis.map(lambda holds: np.where(holds == 0, 0.0, np.nan))


def _product(walk: Walk, one: Axis, other: Axis) -> Axis:
    """An axis that both factors of a product have."""
    ids = walk.unite(one.ids, other.ids)
    return combined(lambda a, b: np.where((a == 0) | (b == 0), 0.0, np.nan), ids, one, other)


def _ragged_dot(walk: Walk, eqn: Any, lhs: Value, rhs: Value, sizes: Value) -> list[Value]:
    """Rows (m, k) times one matrix (k, n) of several (g, k, n) each: the groups are chosen by number, so they stay."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (lhs_sum, rhs_sum), batch = numbers.dot_dimension_numbers
    ragged, group = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    if any(batch) or len(ragged) != 1 or ragged[0] in lhs_sum or len(group) != 1:
        return opaque(walk, eqn, lhs, rhs, sizes)
    lhs, rhs = _owned(walk, lhs_sum, (), rhs_sum, ())
    for a, b in zip(lhs_sum, rhs_sum, strict=True):
        walk.contract(lhs.axes[a], rhs.axes[b])
    for axis in (lhs.axes[ragged[0]], rhs.axes[group[0]], *sizes.axes):
        walk.fix(axis.ids, because(eqn, "groups", expected=True))
    return [Value((*map(_linear, lhs.without(lhs_sum)), *map(_linear, rhs.without((*rhs_sum, *group)))))]


def _conv(walk: Walk, eqn: Any, image: Value, kernel: Value) -> list[Value]:
    numbers, count = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return opaque(walk, eqn, image, kernel)
    image, kernel = walk.own(0, [numbers.lhs_spec[1]]), walk.own(1)
    batch, feature, *space = (image.axes[axis] for axis in numbers.lhs_spec)
    outputs, inputs, *window = (kernel.axes[axis] for axis in numbers.rhs_spec)
    for axis in (*space, *window):
        walk.fix(axis.ids, because(eqn, "window", expected=True))
    outputs = _linear(outputs)
    if count == 1:
        walk.contract(feature, inputs)
    else:
        outputs = _grouped(walk, eqn, feature, inputs, outputs, count)
    shape = eqn.outvars[0].aval.shape
    axes = [walk.fixed_axis(n, because(eqn, "window", expected=True)) for n in shape]
    axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = _linear(batch), outputs
    return [Value(tuple(axes))]


def _grouped(walk: Walk, eqn: Any, feature: Axis, inputs: Axis, outputs: Axis, count: int) -> Axis:
    """Whole groups can go, and the same offsets of every group."""
    group, *offset = split(walk, eqn, feature, [n for n in (count, len(inputs)) if n > 1])
    out_group, *_ = split(walk, eqn, outputs, [n for n in (count, len(outputs) // count) if n > 1])
    if offset:
        walk.contract(offset[0], inputs)
    else:
        walk.fix(inputs.ids, because(eqn, "window", expected=True))
    ids = walk.unite(group.ids, out_group.ids)
    if len(outputs) == count:
        return _product(walk, Axis(ids, group.zeroed, group.alone), outputs)
    return outputs


def _reduced(name: str, axis: Axis) -> Axis:
    """An axis that stays when others are reduced."""
    if name in _INDICES:
        return unknown_axis(axis.ids)
    selects = "max" in name or "min" in name or name in ("reduce_or", "reduce_and")
    return axis if selects else _linear(axis)


def _reduce(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    """Sums, products, extrema: inexact for the channels they run over, unless these hold what changes nothing."""
    name, gone = eqn.primitive.name, eqn.params["axes"]
    neutral = _NEUTRAL.get(name, np.nan)
    for axis in (value.axes[k] for k in gone):
        walk.reduced.append(axis.ids[axis.ids >= 0])
        walk.meets(axis.ids, axis.zeroed != neutral, axis.alone != neutral)
        if name in _INDICES:
            walk.fix(axis.ids, because(eqn, "counts the channels before the extremum"))
    return [Value(tuple(_reduced(name, axis) for axis in value.without(gone)))] * len(eqn.outvars)


def _reduce_window(walk: Walk, eqn: Any, value: Value, *_: Value) -> list[Value]:
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    has_empty_window = "sum" not in name and _has_empty_window(eqn)
    axes, windows = [], zip(eqn.params["window_dimensions"], eqn.params["window_strides"], strict=True)
    for axis, n, (window, stride) in zip(value.axes, shape, windows, strict=True):
        if window == stride == 1 and n == len(axis):
            axes.append(unknown_axis(axis.ids) if has_empty_window else _reduced(name, axis))
        elif axis.free:
            axes.append(free_axis(n))
        else:
            walk.fix(axis.ids, because(eqn, "window"))
            axes.append(walk.fixed_axis(n, because(eqn, "window", expected=True)))
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
    for position, value in enumerate(ins):
        if not all(other.axes[along].free for other in ins):
            value = walk.own(position, [along])
        walk.fix(value.axes[along].ids, because(eqn, "along the channels"))
    return _over(walk, eqn, [along])


def _fft(walk: Walk, eqn: Any, value: Value) -> list[Value]:
    """Fourier transforms run over the last axes."""
    rank = len(value.axes)
    along = list(range(rank - len(eqn.params["fft_lengths"]), rank))
    value = walk.own(0, along)
    for k in along:
        walk.fix(value.axes[k].ids, because(eqn, "along the channels"))
    return [Value(tuple(_linear(a) for a in out.axes)) for out in _over(walk, eqn, along)]


def _over(walk: Walk, eqn: Any, along: list[int]) -> list[Value]:
    """Outputs whose axes `along` have lengths of their own; the other axes are those of all inputs."""
    outs = []
    for var in eqn.outvars:
        axes = []
        for k, n in enumerate(var.aval.shape):
            own = [value.axes[k] for value in walk.ins]
            if k in along:
                axes.append(free_axis(n) if own[0].free else walk.fixed_axis(n, because(eqn, expected=True)))
                continue
            ids = own[0].ids
            for axis in own[1:]:
                ids = walk.unite(ids, axis.ids)
            axes.append(own[0] if len(own) == 1 and eqn.primitive.name == "fft" else unknown_axis(ids))
        outs.append(Value(tuple(axes)))
    return outs


_INDICES = ("argmax", "argmin")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor")
_NEUTRAL = {"reduce_sum": 0.0, "reduce_prod": 1.0, "reduce_or": 0.0, "reduce_xor": 0.0}
_ALONG = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k", "approx_top_k")

CONTRACTIONS: dict[str, Rule] = {
    **dict.fromkeys((*_REDUCTIONS, *_INDICES), _reduce),
    **dict.fromkeys(_ALONG, _along_axis),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _reduce_window),
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "fft": _fft,
    "ragged_dot_general": _ragged_dot,
}
