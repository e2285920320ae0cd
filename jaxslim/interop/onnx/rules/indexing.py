"""Gathers, scatters and slices at places that are computed.

Each becomes a gather from, or a scatter to, the array as one line: an element's place there is the sum of its indices
times the strides. The common forms, rows of a table and the like, are operators of their own.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from jaxslim.core.flat import Node
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor, unsupported
from jaxslim.interop.onnx.graph import Graph, onnx_type
from jaxslim.interop.onnx.rules.slices import take, taken


def _gather(emitter: Emitter, node: Node) -> Sequence[Held]:
    if (found := taken(emitter, node)) is not None:
        return [take(emitter, node.ins[0], *found)]
    return _rows(emitter, node) or _any_gather(emitter, node)


def _rows(emitter: Emitter, node: Node) -> Sequence[Held] | None:
    """Whole slices along one axis, as of an embedding table. The runtime refuses an index outside.

    Where the program says what to put in the place of what lies outside, it is taken element by element.
    """
    params, (number, indices), graph = node.eqn.params, node.ins, emitter.graph
    numbers, shape = params["dimension_numbers"], emitter.shape(number)
    axis = numbers.start_index_map[0] if numbers.start_index_map else -1
    whole = all(str(n) == str(shape[k]) for k, n in enumerate(params["slice_sizes"]) if k != axis)
    if len(numbers.start_index_map) != 1 or numbers.collapsed_slice_dims != (axis,) or not whole:
        return None
    is_filled = params["mode"] == GatherScatterMode.FILL_OR_DROP and params["fill_value"] is not None
    if numbers.operand_batching_dims or params["mode"] == GatherScatterMode.CLIP or is_filled:
        return None
    outer = emitter.shape(indices)[:-1]
    places = emitter.tensor(indices, range(len(outer)))
    if np.dtype(emitter.dtype(indices)) not in (np.int32, np.int64):
        places = graph.one("Cast", places, to=onnx_type(np.int64))
    name = graph.one("Gather", emitter.tensor(number), places, axis=axis)
    rank, offset = len(shape) - 1 + len(outer), list(numbers.offset_dims)
    around = [k for k in range(rank) if k not in offset]
    return [Tensor(name, (*offset[:axis], *around, *offset[axis:]))]


def _any_gather(emitter: Emitter, node: Node) -> Sequence[Held]:
    params, (number, indices), graph = node.eqn.params, node.ins, emitter.graph
    numbers, out = params["dimension_numbers"], node.outs[0]
    window = [k for k in range(len(emitter.shape(number)))
              if k not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)]  # fmt: skip
    offsets = dict(zip(window, numbers.offset_dims, strict=True))
    rank = len(emitter.shape(out))
    around = [k for k in range(rank) if k not in numbers.offset_dims]
    batching = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    line = _Line(emitter, emitter.shape(number), rank)
    is_fill = params["mode"] == GatherScatterMode.FILL_OR_DROP
    for k, n in enumerate(emitter.shape(number)):
        if k in numbers.start_index_map:
            start = _component(emitter, indices, numbers.start_index_map.index(k), around, rank)
            line.add_start(k, start, n, params["slice_sizes"][k], is_checked=is_fill)
        if k in batching:
            line.add_range(k, around[batching[k]], n)
        elif k in offsets:
            line.add_range(k, offsets[k], params["slice_sizes"][k])
    flat = graph.reshape(emitter.tensor(number), [math.prod(emitter.shape(number))])
    name = graph.one("Gather", flat, line.places(), axis=0)
    if is_fill:
        name = graph.one("Where", line.inside(), name, graph.constant(_fill(params["fill_value"], emitter.dtype(out))))
    shape = emitter.shape(out)
    name = graph.one("Expand", name, graph.shape(shape))
    return [Tensor(name, tuple(range(rank)))]


def _fill(value: Any, dtype: Any) -> np.ndarray:
    """What a gather gives outside of an array: NaN, the least integer, true."""
    kind = np.dtype(dtype)
    if value is not None:
        return np.asarray(value, dtype)
    if kind.kind == "b":
        return np.asarray(True)
    if kind.kind in "iu":
        return np.asarray(np.iinfo(kind).min if kind.kind == "i" else np.iinfo(kind).max, dtype)
    return np.asarray(np.nan, dtype)


def _component(emitter: Emitter, indices: int, number: int, around: Sequence[int], rank: int) -> str:
    """One component of the indices (int64), with an axis for each of the output."""
    graph, shape = emitter.graph, emitter.shape(indices)
    name = emitter.tensor(indices)
    name = graph.one("Gather", name, graph.constant(np.int64(number)), axis=len(shape) - 1)
    name = graph.one("Cast", name, to=onnx_type(np.int64))
    missing = [k for k in range(rank) if k not in around]
    return graph.one("Unsqueeze", name, graph.integers(missing)) if missing else name


class _Line:
    """Places in an array that is laid out as one line, for elements of another array of `rank` axes."""

    def __init__(self, emitter: Emitter, shape: Sequence[Any], rank: int) -> None:
        self.graph: Graph = emitter.graph
        self.strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
        self.rank = rank
        self.terms: list[str] = []
        self.checks: list[str] = []

    def add_start(self, axis: int, start: str, n: Any, size: Any, *, is_checked: bool) -> None:
        """Indices along an axis of length `n`, at which `size` elements begin: clipped, and checked if asked."""
        graph = self.graph
        zero, last = graph.constant(np.int64(0)), graph.size(n - size)
        if is_checked:
            sides = graph.one("GreaterOrEqual", start, zero), graph.one("LessOrEqual", start, last)
            self.checks.append(graph.one("And", *sides))
        inside = graph.one("Min", graph.one("Max", start, zero), last)
        self.terms.append(graph.one("Mul", inside, graph.size(self.strides[axis])))

    def add_range(self, axis: int, along: int, n: Any) -> None:
        """Indices 0, 1, ... along an axis, for those of the axis `along` of the other array."""
        graph = self.graph
        zero, one = (graph.constant(np.int64(number)) for number in (0, 1))
        counted = graph.constant(np.arange(n)) if isinstance(n, int) else graph.one("Range", zero, graph.size(n), one)
        if missing := [k for k in range(self.rank) if k != along]:
            counted = graph.one("Unsqueeze", counted, graph.integers(missing))
        self.terms.append(graph.one("Mul", counted, graph.size(self.strides[axis])))

    def places(self) -> str:
        """The places, int64, in a shape that broadcasts to that of the other array."""
        found = self.terms[0] if self.terms else self.graph.constant(np.zeros((1,) * self.rank, np.int64))
        for term in self.terms[1:]:
            found = self.graph.one("Add", found, term)
        return found

    def inside(self) -> str:
        """Whether the window of an element lies in the array."""
        found = self.checks[0] if self.checks else self.graph.constant(np.ones((1,) * self.rank, bool))
        for check in self.checks[1:]:
            found = self.graph.one("And", found, check)
        return found


def _scatter(reduction: str) -> Rule:
    def rule(emitter: Emitter, node: Node) -> Sequence[Held]:
        params, (number, indices, updates) = node.eqn.params, node.ins
        numbers, shape = params["dimension_numbers"], emitter.shape(number)
        rank = len(emitter.shape(updates))
        around = [k for k in range(rank) if k not in numbers.update_window_dims]
        outside = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        window = [k for k in range(len(shape)) if k not in outside]
        offsets = dict(zip(window, numbers.update_window_dims, strict=True))
        batching = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
        is_dropped = params["mode"] in (GatherScatterMode.FILL_OR_DROP, None)
        line = _Line(emitter, shape, rank)
        for k, n in enumerate(shape):
            size = emitter.shape(updates)[offsets[k]] if k in offsets else 1
            if k in numbers.scatter_dims_to_operand_dims:
                position = numbers.scatter_dims_to_operand_dims.index(k)
                line.add_start(k, _component(emitter, indices, position, around, rank), n, size, is_checked=is_dropped)
            if k in batching:
                line.add_range(k, around[batching[k]], n)
            elif k in offsets:
                line.add_range(k, offsets[k], size)
        return [_scattered(emitter, node, line, reduction, is_dropped and bool(line.checks))]

    return rule


def _scattered(emitter: Emitter, node: Node, line: _Line, reduction: str, is_dropped: bool) -> Tensor:
    graph, (number, _, updates), shape = emitter.graph, node.ins, emitter.shape(node.ins[0])
    size = math.prod(shape)
    flat, places = graph.reshape(emitter.tensor(number), [size]), line.places()
    if is_dropped:  # what lies outside goes to one more element, which is dropped
        flat = graph.one("Concat", flat, graph.constant(np.zeros(1, emitter.dtype(number))), axis=0)
        places = graph.one("Where", line.inside(), places, graph.size(size))
    places = graph.one("Expand", places, graph.shape(emitter.shape(updates)))
    vectors = [graph.reshape(name, [math.prod(emitter.shape(updates))]) for name in (places, emitter.tensor(updates))]
    options = {"reduction": reduction} if reduction != "none" else {}
    if options and graph.opset < (least := 18 if reduction in ("max", "min") else 16):
        raise unsupported(f"{node.eqn.primitive.name} below opset {least}", graph.place)
    name = graph.one("ScatterElements", flat, *vectors, axis=0, **options)
    if is_dropped:
        limits = (graph.integers([0]), graph.shape([size]), graph.integers([0]))
        name = graph.one("Slice", name, *limits)
    return Tensor(graph.reshape(name, shape), tuple(range(len(shape))))


def _dynamic_slice(emitter: Emitter, node: Node) -> Sequence[Held]:
    graph, (number, *starts), sizes = emitter.graph, node.ins, node.eqn.params["slice_sizes"]
    shape = emitter.shape(number)
    moved = [k for k, n in enumerate(shape) if str(n) != str(sizes[k])]
    name = emitter.tensor(number)
    if moved:
        begins = [_start(emitter, starts[k], shape[k], sizes[k]) for k in moved]
        begin = graph.one("Concat", *begins, axis=0) if len(begins) > 1 else begins[0]
        end = graph.one("Add", begin, graph.shape([sizes[k] for k in moved]))
        name = graph.one("Slice", name, begin, end, graph.integers(moved))
    return [Tensor(name, tuple(range(len(shape))))]


def _start(emitter: Emitter, number: int, n: Any, size: Any) -> str:
    """Where a slice begins, (1,) int64, so that it ends inside."""
    graph = emitter.graph
    start = graph.one("Cast", emitter.tensor(number, ()), to=onnx_type(np.int64))
    start = graph.one("Min", graph.one("Max", start, graph.constant(np.int64(0))), graph.size(n - size))
    return graph.one("Unsqueeze", start, graph.integers([0]))


def _dynamic_update_slice(emitter: Emitter, node: Node) -> Sequence[Held]:
    (number, update, *starts), graph = node.ins, emitter.graph
    shape, sizes = emitter.shape(number), emitter.shape(update)
    moved = [k for k, n in enumerate(shape) if str(n) != str(sizes[k])]
    if not moved:
        return [emitter.values[update]]
    if len(moved) > 1:
        return [_updated_on_line(emitter, node, starts)]
    (axis,), name = moved, emitter.tensor(number)
    begin = _start(emitter, starts[axis], shape[axis], sizes[axis])
    end, along = graph.one("Add", begin, graph.shape([sizes[axis]])), graph.integers([axis])
    before = graph.one("Slice", name, graph.integers([0]), begin, along)
    after = graph.one("Slice", name, end, graph.shape([shape[axis]]), along)
    return [Tensor(graph.one("Concat", before, emitter.tensor(update), after, axis=axis), tuple(range(len(shape))))]


def _updated_on_line(emitter: Emitter, node: Node, starts: Sequence[int]) -> Tensor:
    number, update = node.ins[:2]
    shape, sizes = emitter.shape(number), emitter.shape(update)
    line = _Line(emitter, shape, len(shape))
    for k, n in enumerate(shape):
        line.add_start(k, _start(emitter, starts[k], n, sizes[k]), n, sizes[k], is_checked=False)
        line.add_range(k, k, sizes[k])
    return _scattered(emitter, node._replace(ins=(number, number, update)), line, "none", False)


INDEXING: dict[str, Rule] = {
    "gather": _gather,
    "scatter": _scatter("none"),
    **dict.fromkeys(("scatter-add", "scatter_add"), _scatter("add")),
    **dict.fromkeys(("scatter-mul", "scatter_mul"), _scatter("mul")),
    **dict.fromkeys(("scatter-max", "scatter_max"), _scatter("max")),
    **dict.fromkeys(("scatter-min", "scatter_min"), _scatter("min")),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
}
