"""Elements that are taken at places known beforehand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxslim.core.flat import Node
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor, is_open, relabelled


def taken(emitter: Emitter, node: Node) -> tuple[int, np.ndarray] | None:
    """The one axis along which an equation takes elements, and their places; None if it does something else."""
    name, params, shape = node.eqn.primitive.name, node.eqn.params, emitter.shape(node.ins[0])
    if name == "slice":
        strides = params["strides"] or (1,) * len(shape)
        ranges = list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))
        cut = [k for k, n in enumerate(shape) if not _is_whole(ranges[k], n)]
        if len(cut) == 1 and not is_open([shape[cut[0]], *ranges[cut[0]]]):
            return cut[0], np.arange(*ranges[cut[0]])
        return None
    if name != "gather" or (indices := emitter.known(node.ins[1])) is None:
        return None
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    axis = numbers.start_index_map[0]
    whole = all(str(n) == str(sizes[k]) for k, n in enumerate(shape) if k != axis)
    if len(numbers.start_index_map) != 1 or numbers.collapsed_slice_dims != (axis,) or indices.ndim != 2 or not whole:
        return None
    outer = tuple(k for k in range(len(shape)) if k not in numbers.offset_dims)
    if outer != (axis,) or numbers.operand_batching_dims or is_open([shape[axis]]):
        return None
    places = indices[:, 0]
    return (axis, places) if ((places >= 0) & (places < shape[axis])).all() else None


def _is_whole(limits: tuple[Any, Any, Any], n: Any) -> bool:
    start, limit, stride = limits
    return str(start) == "0" and str(limit) == str(n) and stride == 1


def take(emitter: Emitter, number: int, axis: int, places: np.ndarray) -> Tensor:
    """Elements of a value at some places of an axis: a slice if they lie evenly."""
    graph, value = emitter.graph, emitter.values[number]
    present = emitter.present(number)
    thin = value.thin if isinstance(value, Tensor) else frozenset[int]()
    name = emitter.tensor(number, present, thin=True)
    if axis not in present or axis in thin:
        return Tensor(name, present, thin)
    position, steps = present.index(axis), np.diff(places)
    if len(places) and (steps == (steps[0] if len(steps) else 1)).all() and (not len(steps) or steps[0] != 0):
        step = int(steps[0]) if len(steps) else 1
        end = int(places[-1]) + (1 if step > 0 else -1)
        ends = graph.integers([end if end >= 0 else np.iinfo(np.int64).min])
        limits = (graph.integers([int(places[0])]), ends, graph.integers([position]), graph.integers([step]))
        return Tensor(graph.one("Slice", name, *limits), present, thin)
    return Tensor(graph.one("Gather", name, graph.integers(places.tolist()), axis=position), present, thin)


def _slice(emitter: Emitter, node: Node) -> Sequence[Held]:
    if (found := taken(emitter, node)) is not None:
        return [take(emitter, node.ins[0], *found)]
    params, graph, number = node.eqn.params, emitter.graph, node.ins[0]
    shape, value = emitter.shape(number), emitter.values[number]
    present, thin = emitter.present(number), value.thin if isinstance(value, Tensor) else frozenset[int]()
    strides = params["strides"] or (1,) * len(shape)
    ranges = list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    cut = [k for k in present if k not in thin and not _is_whole(ranges[k], shape[k])]
    name = emitter.tensor(number, present, thin=True)
    if cut:
        starts, ends, steps = (graph.shape([ranges[k][part] for k in cut]) for part in range(3))
        name = graph.one("Slice", name, starts, ends, graph.integers([present.index(k) for k in cut]), steps)
    return [Tensor(name, present, thin)]


def _rev(emitter: Emitter, node: Node) -> Sequence[Held]:
    number, graph = node.ins[0], emitter.graph
    present, value = emitter.present(number), emitter.values[number]
    thin = value.thin if isinstance(value, Tensor) else frozenset[int]()
    over = [present.index(axis) for axis in node.eqn.params["dimensions"] if axis in present and axis not in thin]
    name = emitter.tensor(number, present, thin=True)
    if over:
        least = np.iinfo(np.int64).min
        limits = (graph.integers([numbers] * len(over)) for numbers in (-1, int(least)))
        name = graph.one("Slice", name, *limits, graph.integers(over), graph.integers([-1] * len(over)))
    return [Tensor(name, present, thin)]


def _split(emitter: Emitter, node: Node) -> Sequence[Held]:
    start, found = 0, []
    for size in node.eqn.params["sizes"]:
        found.append(take(emitter, node.ins[0], node.eqn.params["axis"], np.arange(start, start + size)))
        start += size
    return found


def _unstack(emitter: Emitter, node: Node) -> Sequence[Held]:
    axis, graph, found = node.eqn.params["axis"], emitter.graph, []
    for number, out in enumerate(node.outs):
        row = take(emitter, node.ins[0], axis, np.arange(number, number + 1))
        position = row.axes.index(axis) if axis in row.axes else None
        name = row.name if position is None else graph.one("Squeeze", row.name, graph.integers([position]))
        kept = Tensor(name, tuple(k for k in row.axes if k != axis), row.thin - {axis})
        places = {k: place for place, k in enumerate(k for k in range(len(emitter.shape(out)) + 1) if k != axis)}
        found.append(relabelled(kept, places))
    return found


SLICES: dict[str, Rule] = {"slice": _slice, "rev": _rev, "split": _split, "unstack": _unstack}
