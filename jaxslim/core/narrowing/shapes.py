"""Primitives whose parameters hold lengths, positions or numbers of groups."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.replay import Narrow, Program, bind, take_at
from jaxslim.core.rules.elementwise import ELEMENTWISE
from jaxslim.core.rules.indexing import chosen_indices
from jaxslim.core.walk import Step


def _elementwise(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    axes = step.outs[0].axes
    fitted = [
        program.to(array, value, axes) if value.axes else array for array, value in zip(arrays, step.ins, strict=True)
    ]
    return bind(eqn, fitted)


def _broadcast_in_dim(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    shape = _lengths(program, step.outs[0].axes, eqn.params["shape"])
    return bind(eqn, arrays, shape=shape)


def _lengths(program: Program, axes: Sequence[Any], shape: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(program.length(axis, n) for axis, n in zip(axes, shape, strict=True))


def _reshape(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    sizes = _lengths(program, step.outs[0].axes, eqn.params["new_sizes"])
    return bind(eqn, program.ready(step, arrays), new_sizes=sizes)


def _slice(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    starts, limits = list(eqn.params["start_indices"]), list(eqn.params["limit_indices"])
    strides = list(eqn.params["strides"] or (1,) * len(starts))
    later = {}
    for k, axis in enumerate(step.ins[0].axes):
        alive = program.alive(axis)
        if alive is None:
            continue
        wanted = np.arange(starts[k], limits[k], strides[k])
        later[k] = _places(alive, wanted[alive[wanted]])
        starts[k], limits[k], strides[k] = 0, np.shape(arrays[0])[k], 1
    (array,) = bind(eqn, arrays, start_indices=tuple(starts), limit_indices=tuple(limits), strides=tuple(strides))
    for k, places in later.items():
        array = take_at(array, places, k)
    return [array]


def _places(alive: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where surviving indices lie among those that survive."""
    return (np.cumsum(alive) - 1)[wanted]


def _split(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    along = eqn.params["axis"]
    sizes = (program.length(out.axes[along], n) for out, n in zip(step.outs, eqn.params["sizes"], strict=True))
    return bind(eqn, arrays, sizes=tuple(sizes))


def _concatenate(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    along = eqn.params.get("dimension", eqn.params.get("axis"))
    fitted = []
    for array, value in zip(program.ready(step, arrays), step.ins, strict=True):
        axes = [own if k == along else out for k, (own, out) in
                enumerate(zip(value.axes, step.outs[0].axes, strict=True))]  # fmt: skip
        fitted.append(program.to(array, value, axes))
    return bind(eqn, fitted)


def _stack(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    along = eqn.params["axis"]
    axes = step.outs[0].without([along])
    return bind(eqn, [program.to(array, value, axes) for array, value in zip(arrays, step.ins, strict=True)])


def _pad(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    config, array = [], arrays[0]
    for k, (low, high, inner) in enumerate(eqn.params["padding_config"]):
        out = step.outs[0].axes[k]
        alive = program.alive(out)
        if alive is None or (len(out) == len(step.ins[0].axes[k]) and low == high == 0):
            config.append((low, high, inner))
            continue
        own = program.kept(step.ins[0].axes[k])
        before = int(alive[:low].sum()) if low > 0 else -int(own[: max(-low, 0)].sum())
        after = int(alive[len(out) - high :].sum()) if high > 0 else -int(own[len(own) - max(-high, 0) :].sum())
        config.append((before, after, inner))
    return bind(eqn, [array, arrays[1]], padding_config=tuple(config))


def _gather(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    value, indices = step.ins
    array, places = program.ready(step, arrays)
    chosen = chosen_indices(eqn, value, indices)
    if chosen is None:
        return bind(eqn, [array, places], slice_sizes=_whole(program, eqn, step, array))
    numbers = eqn.params["dimension_numbers"]
    along = numbers.start_index_map[0]
    alive = program.kept(value.axes[along])
    array = take_at(array, _places(alive, chosen[alive[chosen]]), along)
    for k, n in enumerate(_whole(program, eqn, step, array)):
        if k != along and n is not np.shape(array)[k]:
            array = jax.lax.slice_in_dim(array, 0, n, axis=k)
    if along not in numbers.collapsed_slice_dims:
        return [array]
    if len(indices.axes) == 1:
        return [jax.lax.squeeze(array, [along])]
    (outer,) = (k for k in range(array.ndim) if k not in numbers.offset_dims)
    return [jnp.moveaxis(array, along, outer)]


def _whole(program: Program, eqn: Any, step: Step, array: Any) -> tuple[Any, ...]:
    """Slice sizes: whole axes stay whole."""
    return tuple(
        n if program.alive(axis) is None or n != len(axis) else np.shape(array)[k]
        for k, (n, axis) in enumerate(zip(eqn.params["slice_sizes"], step.ins[0].axes, strict=True))
    )


def _dynamic_slice(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    return bind(eqn, arrays, slice_sizes=_whole(program, eqn, step, arrays[0]))


def _meeting(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    """Arrays that are put into another one."""
    arrays = program.ready(step, arrays)
    return bind(eqn, [program.to(arrays[0], step.ins[0], step.outs[0].axes), *_updates(program, eqn, step, arrays)])


def _updates(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> list[Any]:
    out = step.outs[0]
    if eqn.primitive.name == "dynamic_update_slice":
        update = step.ins[1]
        axes = [o if len(o) == len(u) else u for o, u in zip(out.axes, update.axes, strict=True)]
        return [program.to(arrays[1], update, axes), *arrays[2:]]
    numbers, updates = eqn.params["dimension_numbers"], step.ins[2]
    batching = tuple(numbers.operand_batching_dims)
    window = [k for k in range(len(out.axes)) if k not in (*numbers.inserted_window_dims, *batching)]
    axes = list(updates.axes)
    for k, place in zip(window, numbers.update_window_dims, strict=True):
        if len(out.axes[k]) == len(axes[place]) and k not in numbers.scatter_dims_to_operand_dims:
            axes[place] = out.axes[k]
    return [arrays[1], program.to(arrays[2], updates, axes)]


def _conv(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    image, kernel = program.ready(step, arrays)
    if groups > 1:
        feature = program.kept(step.ins[0].axes[numbers.lhs_spec[1]])
        groups = int(feature.reshape(groups, -1).any(1).sum())
    return bind(eqn, [image, kernel], feature_group_count=groups)


SHAPES: dict[str, Narrow] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul"), _meeting),
    **dict.fromkeys(("scatter-min", "scatter_min", "scatter-max", "scatter_max", "scatter-sub"), _meeting),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _meeting,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "stack": _stack,
}
