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
        name = graph.one(kind, _numbers(emitter, node.ins[0]), axis=axis, keepdims=0)
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
        if not isinstance(n, int):
            raise unsupported(f"{node.eqn.primitive.name} along an open axis", graph.place)
        before = np.tri(n, dtype=bool)
        before = before.T if node.eqn.params["reverse"] else before
        least, most = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        neutral = {"ReduceMin": most, "ReduceProd": 1}.get(kind, least)
        order = (*(k for k in range(rank) if k != axis), axis)
        rows = graph.one("Unsqueeze", emitter.tensor(number, order), graph.integers([rank - 1]))
        rows = graph.one("Where", graph.constant(before), rows, graph.constant(np.asarray(neutral, dtype)))
        return [Tensor(graph.reduce(kind, rows, [rank]), order)]

    return rule


def _top_k(emitter: Emitter, node: Node) -> Sequence[Held]:
    """The largest or smallest elements; one that may be left out by an approximation is not."""
    params, graph, rank = node.eqn.params, emitter.graph, len(emitter.shape(node.ins[0]))
    axis = params.get("reduction_dimension", params.get("axis", rank - 1)) % rank
    k, largest = graph.shape([params["k"]]), int(params.get("is_max_k", True))
    values, places = graph.op("TopK", [emitter.tensor(node.ins[0]), k], 2, axis=axis, largest=largest)
    order = tuple(range(rank))
    return [Tensor(values, order), Tensor(_cast(emitter, places, node.outs[1]), order)]


def _cast(emitter: Emitter, name: str, like: int) -> str:
    return emitter.graph.one("Cast", name, to=onnx_type(emitter.dtype(like)))


def _numbers(emitter: Emitter, number: int) -> str:
    """A value of which bools are numbers, for comparisons."""
    name = emitter.tensor(number)
    return (
        emitter.graph.one("Cast", name, to=onnx_type(np.int32)) if np.dtype(emitter.dtype(number)).kind == "b" else name
    )


def _sort(emitter: Emitter, node: Node) -> Sequence[Held]:
    """By the last key, then by those before it: equal elements keep their order."""
    params, graph = node.eqn.params, emitter.graph
    axis, rank = params["dimension"], len(emitter.shape(node.ins[0]))
    n, places = graph.shape([emitter.shape(node.ins[0])[axis]]), None

    def taken(name: str) -> str:
        return name if places is None else graph.one("GatherElements", name, places, axis=axis)

    for number in node.ins[params["num_keys"] - 1 :: -1]:
        _, order = graph.op("TopK", [taken(_numbers(emitter, number)), n], 2, axis=axis, largest=0)
        places = order if places is None else graph.one("GatherElements", places, order, axis=axis)
    return [Tensor(taken(emitter.tensor(number)), tuple(range(rank))) for number in node.ins]


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
    **dict.fromkeys(("top_k", "approx_top_k"), _top_k),
}
