"""Reductions, sums along an axis, sorting."""

from collections.abc import Sequence

import numpy as np

from jaxslim.core.flat import Node
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor, reduced, unsupported
from jaxslim.interop.onnx.graph import onnx_type


def _reduction(kind: str) -> Rule:
    return lambda emitter, node: [reduced(emitter, node.ins[0], kind, node.eqn.params["axes"])]


def _of_bools(kind: str) -> Rule:
    """A reduction of bools, as integers."""

    def rule(emitter: Emitter, node: Node) -> Sequence[Held]:
        number, graph = node.ins[0], emitter.graph
        if np.dtype(emitter.dtype(number)).kind != "b":
            raise unsupported("and, or along an axis of integers", graph.place)
        found = reduced(emitter, number, kind, node.eqn.params["axes"], np.int32)
        return [found._replace(name=graph.one("Cast", found.name, to=onnx_type(bool)))]

    return rule


def _arg(kind: str) -> Rule:
    def rule(emitter: Emitter, node: Node) -> Sequence[Held]:
        (axis,), graph = node.eqn.params["axes"], emitter.graph
        shape = emitter.shape(node.ins[0])
        order = tuple(range(len(shape)))
        name = graph.one(kind, emitter.tensor(node.ins[0], order), axis=axis, keepdims=0)
        name = graph.one("Cast", name, to=onnx_type(node.eqn.params["index_dtype"]))
        return [Tensor(name, order[:-1])]

    return rule


def _cumsum(emitter: Emitter, node: Node) -> Sequence[Held]:
    graph, axis, order = emitter.graph, node.eqn.params["axis"], tuple(range(len(emitter.shape(node.ins[0]))))
    along = graph.constant(np.int64(axis))
    name = graph.one("CumSum", emitter.tensor(node.ins[0]), along, reverse=int(node.eqn.params["reverse"]))
    return [Tensor(name, order)]


def _by_comparing(kind: str) -> Rule:
    """A running maximum or product: each element meets all before it."""

    def rule(emitter: Emitter, node: Node) -> Sequence[Held]:
        graph, axis, number = emitter.graph, node.eqn.params["axis"], node.ins[0]
        n, rank, dtype = emitter.shape(number)[axis], len(emitter.shape(number)), np.dtype(emitter.dtype(number))
        if not isinstance(n, int) or dtype.kind != "f":
            raise unsupported(f"{node.eqn.primitive.name} along an open axis or of integers", graph.place)
        before = np.tri(n, dtype=bool)
        before = before.T if node.eqn.params["reverse"] else before
        neutral = {"ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceProd": 1}.get(kind, -np.inf)
        order = (*(k for k in range(rank) if k != axis), axis)
        rows = graph.one("Unsqueeze", emitter.tensor(number, order), graph.integers([rank - 1]))
        rows = graph.one("Where", graph.constant(before), rows, graph.constant(np.asarray(neutral, dtype)))
        return [Tensor(graph.reduce(kind, rows, [rank]), order)]

    return rule


def _top_k(emitter: Emitter, node: Node) -> Sequence[Held]:
    params, graph, rank = node.eqn.params, emitter.graph, len(emitter.shape(node.ins[0]))
    axis = params.get("axis", rank - 1) % rank
    k = graph.shape([params["k"]])
    values, places = graph.op("TopK", [emitter.tensor(node.ins[0]), k], 2, axis=axis)
    order = tuple(range(rank))
    return [Tensor(values, order), Tensor(_cast(emitter, places, node.outs[1]), order)]


def _cast(emitter: Emitter, name: str, like: int) -> str:
    return emitter.graph.one("Cast", name, to=onnx_type(emitter.dtype(like)))


def _sort(emitter: Emitter, node: Node) -> Sequence[Held]:
    params, graph = node.eqn.params, emitter.graph
    if params["num_keys"] != 1:
        raise unsupported("sorting by several keys", graph.place)
    axis, rank = params["dimension"], len(emitter.shape(node.ins[0]))
    order = tuple(range(rank))
    n = graph.shape([emitter.shape(node.ins[0])[axis]])
    keys, places = graph.op("TopK", [emitter.tensor(node.ins[0]), n], 2, axis=axis, largest=0)
    rest = [graph.one("GatherElements", emitter.tensor(number), places, axis=axis) for number in node.ins[1:]]
    return [Tensor(name, order) for name in (keys, *rest)]


REDUCTIONS: dict[str, Rule] = {
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
    "reduce_and": _of_bools("ReduceMin"),
    "reduce_or": _of_bools("ReduceMax"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "cumsum": _cumsum,
    "cummax": _by_comparing("ReduceMax"),
    "cummin": _by_comparing("ReduceMin"),
    "cumprod": _by_comparing("ReduceProd"),
    "cumlogsumexp": _by_comparing("ReduceLogSumExp"),
    "sort": _sort,
    "top_k": _top_k,
}
