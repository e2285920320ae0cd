"""Operators that stand for several equations: ReLU, clips, softmax, pooling."""

from collections.abc import Sequence

import numpy as np

from jaxslim.core.flat import Node
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor
from jaxslim.interop.onnx.rules.elementwise import ELEMENTWISE
from jaxslim.interop.onnx.rules.pooling import average, larger_of_pairs


def _max(emitter: Emitter, node: Node) -> Sequence[Held]:
    pooled = larger_of_pairs(emitter, node)
    if pooled is not None:
        return [pooled]
    for one, other in (node.ins, node.ins[::-1]):
        if emitter.scalar(one) == 0 and np.dtype(emitter.dtype(one)).kind not in "iub":
            value = emitter.values[other]
            assert isinstance(value, Tensor)  # else the equation were computed already
            if emitter.shape(other) == emitter.shape(node.outs[0]):
                return [value._replace(name=emitter.graph.one("Relu", value.name))]
    return ELEMENTWISE["max"](emitter, node)


def _min(emitter: Emitter, node: Node) -> Sequence[Held]:
    """A minimum; of a maximum, as in ReLU6, a clip."""
    for one, other in (node.ins, node.ins[::-1]):
        high, inner = emitter.scalar(one), emitter.sole(other, "max")
        if high is None or inner is None or emitter.shape(other) != emitter.shape(node.outs[0]):
            continue
        for low, x in (inner.ins, inner.ins[::-1]):
            value = emitter.values[x]
            if (
                emitter.scalar(low) is not None
                and isinstance(value, Tensor)
                and emitter.shape(x) == emitter.shape(other)
            ):
                limits = (emitter.graph.constant(np.asarray(n, emitter.dtype(x))) for n in (emitter.scalar(low), high))
                return [value._replace(name=emitter.graph.one("Clip", value.name, *limits))]
    return ELEMENTWISE["min"](emitter, node)


def _divide(emitter: Emitter, node: Node) -> Sequence[Held]:
    return average(emitter, node) or _softmax(emitter, node) or ELEMENTWISE["div"](emitter, node)


def _softmax(emitter: Emitter, node: Node) -> Sequence[Held] | None:
    """exp(x - max) by its sum, if both run over the same axis."""
    exponential, total = node.ins
    broadcast = emitter.maker.get(total)
    summed = emitter.maker.get(broadcast.ins[0]) if broadcast and broadcast.eqn.primitive.name in _SPREAD else None
    made = emitter.maker.get(exponential)
    if not (summed and made and broadcast and summed.eqn.primitive.name == "reduce_sum"):
        return None
    if made.eqn.primitive.name != "exp" or summed.ins[0] != exponential or len(summed.eqn.params["axes"]) != 1:
        return None
    centred = emitter.maker.get(made.ins[0])
    if centred is None or centred.eqn.primitive.name != "sub" or not _is_maximum(emitter, *centred.ins):
        return None
    (axis,), x = summed.eqn.params["axes"], emitter.values[centred.ins[0]]
    if not isinstance(x, Tensor) or axis not in x.axes or axis in x.thin or not _lies_along(emitter, broadcast, axis):
        return None
    return [x._replace(name=emitter.graph.one("Softmax", x.name, axis=x.axes.index(axis)))]


_SPREAD = ("broadcast_in_dim", "reshape")


def _is_maximum(emitter: Emitter, x: int, largest: int) -> bool:
    """Whether a value is the maximum of `x` along some axes: any is a right shift for a softmax that is safe."""
    node = emitter.maker.get(largest)
    while node is not None and node.eqn.primitive.name in (*_SPREAD, "stop_gradient", "max", "copy"):
        node = next((found for number in node.ins if (found := emitter.maker.get(number))), None)
    return node is not None and node.eqn.primitive.name == "reduce_max" and node.ins[0] == x


def _lies_along(emitter: Emitter, broadcast: Node, axis: int) -> bool:
    """Whether a sum over `axis` is put back in the place of this axis."""
    shape = list(emitter.shape(broadcast.ins[0]))
    return [*shape[:axis], 1, *shape[axis:]] == list(emitter.shape(broadcast.outs[0])) or (
        broadcast.eqn.primitive.name == "broadcast_in_dim"
        and list(broadcast.eqn.params["broadcast_dimensions"]) == [k for k in range(len(shape) + 1) if k != axis]
    )


PATTERNS: dict[str, Rule] = {"max": _max, "min": _min, "div": _divide}
