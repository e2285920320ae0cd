"""Pooling, recognised as such: windows, means, and maxima of neighbouring slices."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxslim.core.flat import Node, flatten
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor, is_open, reduced, unsupported
from jaxslim.interop.onnx.rules.shapes import padded
from jaxslim.interop.onnx.rules.slices import taken

_MOST = 5
"""Axes that runtimes pool at most: image, channel and three more."""


class _Windows(NamedTuple):
    """Where the windows of a pooling lie, axis by axis."""

    size: Sequence[int]
    strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    dilation: Sequence[int]

    def number(self, axis: int, n: Any) -> Any:
        """How many windows there are along an axis of length `n`."""
        reach = (self.size[axis] - 1) * self.dilation[axis] + 1
        return (n + sum(self.padding[axis]) - reach) // self.strides[axis] + 1


def _windows(emitter: Emitter, node: Node) -> _Windows:
    params = node.eqn.params
    size = params["window_dimensions"]
    dilation = params.get("window_dilation") or (1,) * len(size)
    return _Windows(size, params["window_strides"], params["padding"], dilation)


def _apart(emitter: Emitter, node: Node, neutral: float) -> tuple[int, _Windows]:
    """What is pooled, and its windows: padding that pooling operators refuse is written as padding of its own."""
    windows, gaps = _windows(emitter, node), node.eqn.params.get("base_dilation") or ()
    if not _has_own_padding(windows, gaps):
        return node.ins[0], windows
    number, graph = node.ins[0], emitter.graph
    shape, dtype = emitter.shape(number), emitter.dtype(number)
    config = [(low, high, (gaps[k] if gaps else 1) - 1) for k, (low, high) in enumerate(windows.padding)]
    sizes = [n + (n - 1) * gap + low + high for n, (low, high, gap) in zip(shape, config, strict=True)]
    wide = padded(emitter, number, config, graph.constant(np.asarray(neutral, dtype)))
    return emitter.add(wide, jax.ShapeDtypeStruct(sizes, dtype)), windows._replace(padding=[(0, 0)] * len(sizes))


def _has_own_padding(windows: _Windows, gaps: Sequence[int]) -> bool:
    wrong = any(
        low < 0 or high < 0 or max(low, high) >= n
        for n, (low, high) in zip(windows.size, windows.padding, strict=True)
        if (low, high) != (0, 0)
    )
    return wrong or any(gap != 1 for gap in gaps)


def _pooled(
    emitter: Emitter, number: int, windows: _Windows, kind: str, prepare: str | None = None, **options: Any
) -> Tensor:
    """A pooling node over the axes that the windows cover; `prepare` names an operator that comes before."""
    if np.dtype(emitter.dtype(number)).kind in "iub":
        raise unsupported("pooling of integers", emitter.graph.place)
    graph, rank, shape = emitter.graph, len(windows.size), emitter.shape(number)
    trivial = [(windows.size[k], windows.strides[k], *windows.padding[k]) == (1, 1, 0, 0) for k in range(rank)]
    covered = [k for k in range(rank) if not trivial[k]] or [rank - 1]
    rest = [k for k in emitter.present(number) if k not in covered]
    if is_long := len(rest) + len(covered) > _MOST:
        rest = [k for k in rest if shape[k] != 1]
    merged = is_long and len(rest) > 2
    spatial = covered if merged else [*rest[2:], *covered]
    order = (*rest, *covered)
    name, missing = emitter.tensor(number, order), 2 - len(rest)
    if merged:
        name = graph.reshape(name, [1, math.prod(shape[k] for k in rest), *(shape[k] for k in covered)])
    elif missing > 0:
        name = graph.one("Unsqueeze", name, graph.integers(range(missing)))
    if prepare:
        name = graph.one(prepare, name)
    pads = [windows.padding[k][side] for side in (0, 1) for k in spatial]
    if any(windows.dilation[k] != 1 for k in spatial):
        if kind == "AveragePool" and graph.opset < 19:
            raise unsupported("average pooling with dilation below opset 19", graph.place)
        options["dilations"] = [windows.dilation[k] for k in spatial]
    size, strides = ([own[k] for k in spatial] for own in (windows.size, windows.strides))
    name = graph.one(kind, name, kernel_shape=size, strides=strides, pads=pads, **options)
    if merged:
        name = graph.reshape(name, [*(shape[k] for k in rest), *(windows.number(k, shape[k]) for k in covered)])
    elif missing > 0:
        name = graph.one("Squeeze", name, graph.integers(range(missing)))
    return Tensor(name, order)


def _window_max(emitter: Emitter, node: Node) -> Sequence[Held]:
    return [_pooled(emitter, *_apart(emitter, node, -np.inf), "MaxPool")]


def _window_min(emitter: Emitter, node: Node) -> Sequence[Held]:
    pooled = _pooled(emitter, *_apart(emitter, node, np.inf), "MaxPool", "Neg")
    return [pooled._replace(name=emitter.graph.one("Neg", pooled.name))]


def _window_sum(emitter: Emitter, node: Node) -> Sequence[Held]:
    number, windows = _apart(emitter, node, 0)
    pooled = _pooled(emitter, number, windows, "AveragePool", count_include_pad=1)
    times = emitter.graph.constant(np.asarray(math.prod(windows.size), emitter.dtype(node.outs[0])))
    return [pooled._replace(name=emitter.graph.one("Mul", pooled.name, times))]


def _window_from(emitter: Emitter, node: Node) -> Sequence[Held]:
    """A pooling that starts at a number of its own, as a maximum at 0."""
    steps = [step.eqn.primitive.name for step in flatten(node.eqn.params["jaxpr"]).nodes]
    if len(node.ins) != 2 or len(steps) != 1 or steps[0] not in _STARTED:
        raise unsupported("reduce_window of another function than a maximum, minimum or sum", emitter.graph.place)
    rule, kind = _STARTED[steps[0]]
    (pooled,) = rule(emitter, node)
    return [pooled._replace(name=emitter.graph.one(kind, pooled.name, emitter.tensor(node.ins[1], ())))]


_STARTED: dict[str, tuple[Rule, str]] = {
    "max": (_window_max, "Max"),
    "min": (_window_min, "Min"),
    "add": (_window_sum, "Add"),
}


def average(emitter: Emitter, node: Node) -> Sequence[Held] | None:
    """A sum by the number of its terms; the sum itself is then written in vain, and left out at the end."""
    total, by = node.ins
    number = emitter.scalar(by)
    if (pool := emitter.sole(total, "reduce_window_sum")) is not None:
        windows, counts = _windows(emitter, pool), emitter.known(by)
        if _has_own_padding(windows, pool.eqn.params.get("base_dilation") or ()):
            return None
        if number == math.prod(windows.size):
            return [_pooled(emitter, pool.ins[0], windows, "AveragePool", count_include_pad=1)]
        if _counts_ones(emitter, by, windows):
            return [_pooled(emitter, pool.ins[0], windows, "AveragePool", count_include_pad=0)]
        if counts is not None and _are_counts(counts, emitter.shape(pool.ins[0]), windows):
            return [_pooled(emitter, pool.ins[0], windows, "AveragePool", count_include_pad=0)]
    if (mean := emitter.sole(total, "reduce_sum")) is not None and number is not None:
        shape, axes = emitter.shape(mean.ins[0]), mean.eqn.params["axes"]
        sizes = [shape[axis] for axis in axes]
        if not is_open(sizes) and number == math.prod(sizes):
            return [reduced(emitter, mean.ins[0], "ReduceMean", axes)]
    return None


def _counts_ones(emitter: Emitter, number: int, windows: _Windows) -> bool:
    """Whether a value is the same pooling of ones, over the axes that it is longer along."""
    node = emitter.maker.get(number)
    if node is None or node.eqn.primitive.name != "reduce_window_sum":
        return False
    ones, own = emitter.maker.get(node.ins[0]), _windows(emitter, node)
    is_one = ones is not None and ones.eqn.primitive.name == "broadcast_in_dim" and emitter.scalar(ones.ins[0]) == 1
    return is_one and all(tuple(a) == tuple(b) for a, b in zip(own, windows, strict=True))


def _are_counts(counts: np.ndarray, shape: Sequence[Any], windows: _Windows) -> bool:
    """Whether an array holds how many elements each window has, padding left out."""
    expected = np.ones(())
    for n, size, stride, padding, dilation in zip(shape, *windows, strict=True):
        if (size, stride, *padding) == (1, 1, 0, 0):
            expected = np.expand_dims(expected, -1)
        elif is_open([n]):
            return False
        else:
            inside = np.pad(np.ones(n), padding)
            starts = range(0, len(inside) - (size - 1) * dilation, stride)
            along = [inside[start : start + (size - 1) * dilation + 1 : dilation].sum() for start in starts]
            expected = expected[..., None] * np.asarray(along)
    return counts.ndim == expected.ndim and bool((counts == expected).all())


def larger_of_pairs(emitter: Emitter, node: Node) -> Tensor | None:
    """The maximum of the even and the odd elements along an axis; several such are one pooling."""
    one, two = (_half(emitter, number) for number in node.ins)
    out = node.outs[0]
    if one is None or two is None or np.dtype(emitter.dtype(out)).kind in "iub":
        return None
    (source, axis, first), (other, same, second) = sorted((one, two), key=lambda half: half[2])
    if (source, axis, first, second) != (other, same, 0, 1):
        return None
    rank = len(emitter.shape(source))
    size = tuple(2 if k == axis else 1 for k in range(rank))
    if source in emitter.pools and emitter.pools[source][1][axis] == 1 and emitter.uses[source] == 2:
        source, before = emitter.pools[source]
        size = tuple(map(max, size, before))
    emitter.pools[out] = source, size
    return _pooled(emitter, source, _Windows(size, size, ((0, 0),) * rank, (1,) * rank), "MaxPool")


def _half(emitter: Emitter, number: int) -> tuple[int, int, int] | None:
    """What a value has every second element of, along which axis, and from which one on."""
    node = emitter.maker.get(number)
    found = None if node is None else taken(emitter, node)
    if node is None or found is None:
        return None
    axis, places = found
    n = emitter.shape(node.ins[0])[axis]
    start = int(places[0]) if len(places) else 0
    return (node.ins[0], axis, start) if len(places) == n // 2 and (np.diff(places) == 2).all() else None


POOLING: dict[str, Rule] = {
    "reduce_window": _window_from,
    "reduce_window_max": _window_max,
    "reduce_window_min": _window_min,
    "reduce_window_sum": _window_sum,
}
