"""Operations that move, add and remove axes and elements."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxslim.core.flat import Node
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor, is_open, relabelled
from jaxslim.interop.onnx.graph import Graph, onnx_type


def _transpose(emitter: Emitter, node: Node) -> Sequence[Held]:
    return [_permuted(emitter, node.ins[0], node.eqn.params["permutation"])]


def _permuted(emitter: Emitter, number: int, permutation: Sequence[int]) -> Tensor:
    return relabelled(_tensor(emitter, number), {old: new for new, old in enumerate(permutation)})


def _broadcast_in_dim(emitter: Emitter, node: Node) -> Sequence[Held]:
    value, places = _tensor(emitter, node.ins[0]), node.eqn.params["broadcast_dimensions"]
    before, after = emitter.shape(node.ins[0]), emitter.shape(node.outs[0])
    grown = [place for k, place in enumerate(places) if k in value.axes and str(before[k]) != str(after[place])]
    return [relabelled(value, dict(enumerate(places)), grown)]


def _tensor(emitter: Emitter, number: int) -> Tensor:
    """A value as a tensor that lacks no axis but those of length 1, or along which the value is the same."""
    value, present = emitter.values[number], emitter.present(number)
    return value if isinstance(value, Tensor) else Tensor(emitter.tensor(number, present), present)


def _squeeze(emitter: Emitter, node: Node) -> Sequence[Held]:
    rank = len(emitter.shape(node.ins[0]))
    gone = [axis % rank for axis in node.eqn.params["dimensions"]]
    kept = [axis for axis in range(rank) if axis not in gone]
    return [_with_axes(emitter, node.ins[0], {axis: place for place, axis in enumerate(kept)})]


def _with_axes(emitter: Emitter, number: int, places: dict[int, int]) -> Tensor:
    """A value without the axes of length 1 that have no place."""
    value = _tensor(emitter, number)
    kept = tuple(axis for axis in value.axes if axis in places)
    return relabelled(Tensor(emitter.tensor(number, kept, thin=True), kept, value.thin), places)


def _reshape(emitter: Emitter, node: Node) -> Sequence[Held]:
    number, out, permutation = node.ins[0], node.outs[0], node.eqn.params["dimensions"]
    if permutation is not None:
        shape = tuple(emitter.shape(number)[k] for k in permutation)
        aval = jax.ShapeDtypeStruct(shape, emitter.dtype(number))
        number = emitter.add(_permuted(emitter, number, permutation), aval)
    before, after = emitter.shape(number), emitter.shape(out)
    long_before, long_after = ([k for k, n in enumerate(shape) if n != 1] for shape in (before, after))
    if [str(before[k]) for k in long_before] == [str(after[k]) for k in long_after]:
        return [_with_axes(emitter, number, dict(zip(long_before, long_after, strict=True)))]
    blocks = _blocks(before, after)
    block_of = {axis: block for block in blocks for axis in block[0]}
    lead = [axis for axis in emitter.present(number) if axis in block_of]
    ordered = list(dict.fromkeys(block_of[axis] for axis in (*lead, *range(len(before)))))
    name = emitter.tensor(number, [axis for block in ordered for axis in block[0]])
    axes = tuple(axis for block in ordered for axis in block[1])
    return [Tensor(emitter.graph.reshape(name, [after[axis] for axis in axes]), axes)]


def _blocks(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Runs of old and of new axes with equal products, as short as can be."""
    blocks, i, j = [], 0, 0
    while i < len(before):
        ends = _shortest(before[i:], after[j:])
        blocks.append((tuple(range(i, i + ends[0])), tuple(range(j, j + ends[1]))))
        i, j = i + ends[0], j + ends[1]
    (old, new), rest = blocks[-1], range(j, len(after))
    return [*blocks[:-1], (old, (*new, *rest))]


def _shortest(before: Sequence[Any], after: Sequence[Any]) -> tuple[int, int]:
    for total in range(2, len(before) + len(after)):
        for i in range(max(1, total - len(after)), min(len(before), total - 1) + 1):
            if str(math.prod(before[:i])) == str(math.prod(after[: total - i])):
                return i, total - i
    return len(before), len(after)


def _concatenate(emitter: Emitter, node: Node) -> Sequence[Held]:
    along, rank = node.eqn.params["dimension"], len(emitter.shape(node.outs[0]))
    leads = (value.axes for number in node.ins if isinstance(value := emitter.values[number], Tensor))
    lead = next((axes for axes in leads if len(axes) == rank), tuple(range(rank)))
    names = [emitter.tensor(number, lead) for number in node.ins if 0 not in emitter.shape(number)]
    return [Tensor(emitter.graph.one("Concat", *names, axis=lead.index(along)), lead)]


def _pad(emitter: Emitter, node: Node) -> Sequence[Held]:
    return [padded(emitter, node.ins[0], node.eqn.params["padding_config"], emitter.tensor(node.ins[1], ()))]


def padded(emitter: Emitter, number: int, config: Sequence[tuple[int, int, int]], value: str) -> Tensor:
    """A value with elements `value` around and between its own: (before, after, between each two), axis by axis."""
    present = emitter.present(number)
    order = (*present, *(k for k, (low, high, _) in enumerate(config) if k not in present and (low, high) != (0, 0)))
    name, graph, shape = emitter.tensor(number, order), emitter.graph, emitter.shape(number)
    if any(config[k][2] for k in order):
        name = with_gaps(graph, name, value, [shape[k] for k in order], [config[k][2] for k in order])
    sides = [[max(config[k][side], 0) for k in order] for side in (0, 1)]
    if any(map(any, sides)):
        name = graph.one("Pad", name, graph.integers([*sides[0], *sides[1]]), value)
    cut = [(position, *config[k][:2]) for position, k in enumerate(order) if min(config[k][:2]) < 0]
    if cut:
        starts = graph.integers([max(-low, 0) for _, low, _ in cut])
        ends = graph.integers([high if high < 0 else np.iinfo(np.int64).max for _, _, high in cut])
        name = graph.one("Slice", name, starts, ends, graph.integers([position for position, *_ in cut]))
    return Tensor(name, order)


def with_gaps(graph: Graph, name: str, value: str, sizes: Sequence[Any], gaps: Sequence[int]) -> str:
    """Put so many elements `value` between each two along each axis of a tensor of these sizes."""
    sizes, rank = list(sizes), len(sizes)
    for position, gap in enumerate(gaps):
        if not gap:
            continue
        ends = [0] * (2 * (rank + 1))
        ends[rank + 1 + position + 1] = gap
        rows = graph.one("Unsqueeze", name, graph.integers([position + 1]))
        rows = graph.one("Pad", rows, graph.integers(ends), value)
        sizes[position] *= gap + 1
        whole = graph.reshape(rows, sizes)
        name = graph.one("Slice", whole, *(graph.integers([number]) for number in (0, -gap, position)))
        sizes[position] -= gap
    return name


def _iota(emitter: Emitter, node: Node) -> Sequence[Held]:
    """Numbers along an axis of open length."""
    graph, axis, dtype = emitter.graph, node.eqn.params["dimension"], node.eqn.params["dtype"]
    n = emitter.shape(node.outs[0])[axis]
    if not is_open([n]):
        counted: str = graph.constant(np.arange(n, dtype=dtype))
    else:
        zero, one = (graph.constant(np.int64(number)) for number in (0, 1))
        counted = graph.one("Cast", graph.one("Range", zero, graph.size(n), one), to=onnx_type(dtype))
    return [Tensor(counted, (axis,))]


def _size(emitter: Emitter, node: Node) -> Sequence[Held]:
    """An open size as a number of the program."""
    graph = emitter.graph
    return [
        Tensor(graph.one("Cast", graph.size(node.eqn.params["dim"]), to=onnx_type(emitter.dtype(node.outs[0]))), ())
    ]


def _tile(emitter: Emitter, node: Node) -> Sequence[Held]:
    reps = node.eqn.params["reps"]
    order = tuple(range(len(reps)))
    return [Tensor(emitter.graph.one("Tile", emitter.tensor(node.ins[0]), emitter.graph.shape(reps)), order)]


SHAPES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "dim_as_value": _size,
    "iota": _iota,
    "pad": _pad,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "tile": _tile,
    "transpose": _transpose,
}
