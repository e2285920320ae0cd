"""Convolutions and products."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxslim.core.flat import Node
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor, laid, unsupported
from jaxslim.interop.onnx.graph import onnx_type
from jaxslim.interop.onnx.rules.shapes import with_gaps


def _conv(emitter: Emitter, node: Node) -> Sequence[Held]:
    params, graph, (image, kernel) = node.eqn.params, emitter.graph, node.ins
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if np.dtype(emitter.dtype(image)).kind in "iub":
        raise unsupported("a convolution of integers", graph.place)
    if params["batch_group_count"] != 1 or not isinstance(groups, int):
        raise unsupported("a convolution with batch groups, or with groups of an open number", graph.place)
    name, weights = emitter.tensor(image, numbers.lhs_spec), None
    if any(n != 1 for n in params["lhs_dilation"]):
        weights = _turned(emitter, kernel, params)
        if weights is None:
            shape = [emitter.shape(image)[k] for k in numbers.lhs_spec]
            gaps, zero = [0, 0, *(n - 1 for n in params["lhs_dilation"])], np.zeros((), emitter.dtype(image))
            name = with_gaps(graph, name, graph.constant(zero), shape, gaps)
    padding = [list(pad) for pad in params["padding"]]
    if weights is None and min(map(min, padding), default=0) < 0:
        name, padding = _cropped(emitter, name, padding)
    bias = [] if node.bias is None else [_vector(emitter, node, numbers.out_spec[1])]
    options: dict[str, Any] = {"group": groups, "dilations": list(params["rhs_dilation"])}
    options["kernel_shape"] = [emitter.shape(kernel)[k] for k in numbers.rhs_spec[2:]]
    if weights is not None:
        reach = [(n - 1) * d for n, d in zip(options["kernel_shape"], options["dilations"], strict=True)]
        low, high = zip(*[(n - pad[0], n - pad[1]) for n, pad in zip(reach, padding, strict=True)], strict=True)
        more = [max(-n, 0) for n in high]
        options |= {"strides": list(params["lhs_dilation"]), "output_padding": more}
        name = graph.one("ConvTranspose", name, weights, *bias, pads=[*low, *(max(n, 0) for n in high)], **options)
    else:
        pads = [pad[side] for side in (0, 1) for pad in padding]
        options |= {"strides": list(params["window_strides"]), "pads": pads}
        name = graph.one("Conv", name, emitter.tensor(kernel, numbers.rhs_spec), *bias, **options)
    return [Tensor(name, tuple(numbers.out_spec))]


def _cropped(emitter: Emitter, name: str, padding: list[list[int]]) -> tuple[str, list[list[int]]]:
    """Negative padding takes pixels away."""
    graph, axes = emitter.graph, [k for k, pad in enumerate(padding) if min(pad) < 0]
    starts = graph.integers([max(-padding[k][0], 0) for k in axes])
    ends = graph.integers([min(padding[k][1], 0) or np.iinfo(np.int64).max for k in axes])
    name = graph.one("Slice", name, starts, ends, graph.integers([k + 2 for k in axes]))
    return name, [[max(n, 0) for n in pad] for pad in padding]


def _turned(emitter: Emitter, kernel: int, params: Any) -> str | None:
    """The stored kernel of ConvTranspose (in, out / groups, ...) for a convolution of an image with gaps; or None."""
    array, groups = emitter.known(kernel), params["feature_group_count"]
    if array is None or any(n != 1 for n in params["window_strides"]):
        return None
    spec = params["dimension_numbers"].rhs_spec
    for n, pad, dilation, stride in zip(
        (array.shape[k] for k in spec[2:]),
        params["padding"],
        params["rhs_dilation"],
        params["lhs_dilation"],
        strict=True,
    ):
        reach = (n - 1) * dilation
        if pad[0] > reach or pad[0] < 0 or pad[1] < 0 or pad[1] - reach >= stride:
            return None
    out_in = array.transpose(spec)[(slice(None), slice(None), *[slice(None, None, -1)] * (len(spec) - 2))]
    out, into, *window = out_in.shape
    grouped = out_in.reshape(groups, out // groups, into, *window).swapaxes(1, 2)
    return emitter.graph.constant(grouped.reshape(groups * into, out // groups, *window), emitter.names.get(kernel))


def _vector(emitter: Emitter, node: Node, axis: int) -> str:
    """The bias of an equation as a vector along an axis of its output."""
    assert node.bias is not None
    n = emitter.shape(node.outs[0])[axis]
    array = emitter.known(node.bias)
    assert array is not None
    return emitter.graph.constant(
        np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (n,))), emitter.names.get(node.bias)
    )


def _dot_general(emitter: Emitter, node: Node) -> Sequence[Held]:
    (contracted, batch), graph = node.eqn.params["dimension_numbers"], emitter.graph
    shapes = [emitter.shape(number) for number in node.ins]
    free = [[k for k in range(len(shapes[side])) if k not in (*contracted[side], *batch[side])] for side in (0, 1)]
    rows = 1 if not batch[0] and emitter.known(node.ins[0]) is not None else 0  # a stored kernel comes last
    columns, along = 1 - rows, [[k] for k in batch[rows]]
    behind = [free[columns]] if batch[0] or free[columns] else []
    before = [free[rows]] if batch[0] else [[k] for k in free[rows]]
    left = _merged(emitter, node, rows, [*along, *before, contracted[rows]])
    right = _merged(emitter, node, columns, [*([k] for k in batch[columns]), contracted[columns], *behind])
    starts = (len(batch[0]), len(batch[0]) + len(free[0]))
    places = [[starts[side] + k for k in range(len(free[side]))] for side in (0, 1)]
    axes = (*range(len(batch[0])), *places[rows], *places[columns])
    if node.bias is not None and not batch[0] and len(free[0]) == len(free[1]) == 1:
        return [Tensor(graph.one("Gemm", left, right, _vector(emitter, node, places[columns][0])), axes)]
    name = graph.one("MatMul", left, right)
    if (len(free[columns]) != 1 and behind) or (batch[0] and len(free[rows]) != 1):
        sides = [(rows, k) for k in (*batch[rows], *free[rows])] + [(columns, k) for k in free[columns]]
        name = graph.reshape(name, [shapes[side][k] for side, k in sides])
    if node.bias is not None:
        array = emitter.known(node.bias)
        assert array is not None
        whole = array.reshape((1,) * (len(axes) - array.ndim) + array.shape)
        name = graph.one("Add", name, graph.constant(laid(whole, axes), emitter.names.get(node.bias)))
    return [Tensor(name, axes)]


def _merged(emitter: Emitter, node: Node, side: int, groups: Sequence[Sequence[int]]) -> str:
    """A factor with one axis for each group of its axes, in the dtype of the product."""
    number, graph, dtype = node.ins[side], emitter.graph, emitter.dtype(node.outs[0])
    order, shape = [k for group in groups for k in group], emitter.shape(number)
    sizes = [math.prod(shape[k] for k in group) for group in groups]
    if (array := emitter.known(number)) is not None:
        key = ("merged", number, tuple(map(tuple, groups)))
        stored = laid(array, tuple(order)).reshape(sizes).astype(dtype)
        return emitter.once(key, lambda: graph.constant(stored, emitter.names.get(number)))
    name = emitter.tensor(number, order)
    if any(len(group) != 1 for group in groups):
        name = graph.reshape(name, sizes)
    return name if emitter.dtype(number) == dtype else graph.one("Cast", name, to=onnx_type(dtype))


CONTRACTIONS: dict[str, Rule] = {"conv_general_dilated": _conv, "dot_general": _dot_general}
