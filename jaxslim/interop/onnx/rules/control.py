"""Loops and branches: graphs inside the graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper

from jaxslim.core.flat import Node, flatten
from jaxslim.core.rules.control import scan_inputs
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor, write
from jaxslim.interop.onnx.graph import Graph, onnx_type, used


def _inside(emitter: Emitter, graph: Graph, jaxpr: Any, args: Sequence[Held], node: Node) -> list[str]:
    """Write a program into an inner graph; the names of its outputs, in the program's order of axes."""
    graph.place = emitter.graph.place
    inner, outputs = write(graph, emitter.rules, flatten(jaxpr, node.source), args)
    return [inner.tensor(number) for number in outputs]


def _finished(graph: Graph, name: str, inputs: Sequence[Any], outputs: Sequence[str]) -> Any:
    """The graph as ONNX stores one; outputs are nodes of its own."""
    own = [graph.one("Identity", output) for output in outputs]
    described = [helper.make_empty_tensor_value_info(output) for output in own]
    return helper.make_graph(used(graph.nodes, own), graph.unique(name), list(inputs), described)


def _whole(emitter: Emitter, numbers: Sequence[int]) -> list[Tensor]:
    return [Tensor(emitter.tensor(number), tuple(range(len(emitter.shape(number))))) for number in numbers]


def _results(emitter: Emitter, node: Node, names: Sequence[str]) -> list[Held]:
    shapes = (emitter.shape(out) for out in node.outs)
    return [Tensor(name, tuple(range(len(shape)))) for name, shape in zip(names, shapes, strict=True)]


def _cond(emitter: Emitter, node: Node) -> Sequence[Held]:
    graph, (index, *_), branches = emitter.graph, node.ins, node.eqn.params["branches"]
    args = [emitter.values[number] for number in node.ins[1:]]
    which = graph.one("Cast", emitter.tensor(index), to=onnx_type(np.int64))

    def chosen(graph: Graph, number: int) -> list[str]:
        """The outputs of the branches from `number` on."""
        if number == len(branches) - 1:
            return _inside(emitter, graph, branches[number], args, node)
        this, rest = Graph(graph.opset, graph), Graph(graph.opset, graph)
        forms = {
            "then_branch": _finished(this, "branch", [], _inside(emitter, this, branches[number], args, node)),
            "else_branch": _finished(rest, "branches", [], chosen(rest, number + 1)),
        }
        is_this = graph.one("LessOrEqual", which, graph.constant(np.int64(number)))
        return graph.op("If", [is_this], len(node.outs), **forms)

    return _results(emitter, node, chosen(graph, 0))


def _scan(emitter: Emitter, node: Node) -> Sequence[Held]:
    params, graph = node.eqn.params, emitter.graph
    consts, start, scanned = scan_inputs(params, list(node.ins))
    held = [emitter.values[number] for number in consts]
    rows, carry = _whole(emitter, scanned), _whole(emitter, start)
    body = Graph(graph.opset, graph)
    counter, going, inputs, states = _loop_inputs(emitter, body, start)
    last = graph.size(params["length"] - 1)
    place = body.one("Sub", last, counter) if params["reverse"] else counter
    slices = [Tensor(body.one("Gather", row.name, place, axis=0), tuple(range(len(row.axes) - 1))) for row in rows]
    outs = _inside(emitter, body, params["jaxpr"], [*held, *states, *slices], node)
    form = _finished(body, "scan", inputs, [going, *outs])
    names = graph.op(
        "Loop", [graph.size(params["length"]), "", *(one.name for one in carry)], len(node.outs), body=form
    )
    found = names[: len(start)]
    for name in names[len(start) :]:
        if params["reverse"]:
            limits = [graph.integers([number]) for number in (-1, int(np.iinfo(np.int64).min), 0, -1)]
            name = graph.one("Slice", name, *limits)
        found.append(name)
    return _results(emitter, node, found)


def _loop_inputs(emitter: Emitter, body: Graph, start: Sequence[int]) -> tuple[str, str, list[Any], list[Tensor]]:
    """The inputs that a loop's body has: its counter, whether it goes on, and the carried values."""
    counter, going = body.unique("round"), body.unique("going")
    inputs = [helper.make_tensor_value_info(counter, onnx_type(np.int64), [])]
    inputs.append(helper.make_tensor_value_info(going, onnx_type(bool), []))
    states = []
    for number in start:
        name, shape = body.unique("carry"), emitter.shape(number)
        inputs.append(helper.make_tensor_value_info(name, onnx_type(emitter.dtype(number)), [None] * len(shape)))
        states.append(Tensor(name, tuple(range(len(shape)))))
    return counter, body.one("Identity", going), inputs, states


def _while(emitter: Emitter, node: Node) -> Sequence[Held]:
    params, graph = node.eqn.params, emitter.graph
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_cond, of_body, start = node.ins[:first], node.ins[first:second], node.ins[second:]

    def asked(graph: Graph, states: Sequence[Held]) -> str:
        args = [*(emitter.values[number] for number in of_cond), *states]
        return _inside(emitter, graph, params["cond_jaxpr"], args, node)[0]

    rows = len(params["cond_jaxpr"].out_avals[0].shape)  # where vmap made the loop, each row goes on for itself
    carry = _whole(emitter, start)
    body = Graph(graph.opset, graph)
    _, _, inputs, states = _loop_inputs(emitter, body, start)
    args: list[Held] = [*(emitter.values[number] for number in of_body), *states]
    outs = _inside(emitter, body, params["body_jaxpr"], args, node)
    if rows:
        row_goes = asked(body, states)
        outs = [
            body.one("Where", _widened(body, row_goes, len(state.axes) - rows, rows), new, state.name)
            for new, state in zip(outs, states, strict=True)
        ]
    after = [Tensor(name, state.axes) for name, state in zip(outs, states, strict=True)]
    again = _any(body, asked(body, after), rows)
    form = _finished(body, "while", inputs, [again, *outs])
    at_first = _any(graph, asked(graph, carry), rows)
    names = graph.op("Loop", ["", at_first, *(one.name for one in carry)], len(node.outs), body=form)
    return _results(emitter, node, names)


def _widened(graph: Graph, name: str, more: int, rows: int) -> str:
    return graph.one("Unsqueeze", name, graph.integers(range(rows, rows + more))) if more else name


def _any(graph: Graph, name: str, rows: int) -> str:
    if not rows:
        return name
    counted = graph.one("Cast", name, to=onnx_type(np.int32))
    return graph.one("Cast", graph.reduce("ReduceMax", counted, range(rows)), to=onnx_type(bool))


CONTROL: dict[str, Rule] = {"cond": _cond, "scan": _scan, "while": _while}
