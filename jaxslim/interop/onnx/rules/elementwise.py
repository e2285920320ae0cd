"""Operations on each element."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxslim.core.flat import Node
from jaxslim.interop.onnx.emitter import Emitter, Held, Rule, Tensor, unsupported
from jaxslim.interop.onnx.graph import Graph, onnx_type

Write = Callable[[Graph, Any, list[str]], str]


def elementwise(write: Write) -> Rule:
    """A rule that calls `write(graph, node, names)` with the names of the inputs in one order."""

    def rule(emitter: Emitter, node: Node) -> list[Held]:
        names, axes, thin = emitter.together(node.ins, emitter.shape(node.outs[0]))
        return [Tensor(write(emitter.graph, node.eqn, names), axes, thin)]

    return rule


def _named(kind: str) -> Write:
    return lambda graph, eqn, names: graph.one(kind, *names)


def _like(graph: Graph, eqn: Any, number: float) -> str:
    """A number of the dtype of an equation's first input."""
    return graph.constant(np.asarray(number, eqn.invars[0].aval.dtype))


def _is_bool(eqn: Any) -> bool:
    return eqn.invars[0].aval.dtype == bool


def _is_float(eqn: Any) -> bool:
    return np.dtype(eqn.invars[0].aval.dtype).kind not in "iub"


def logical(bools: str, numbers: str) -> Write:
    """One operator for bools, another for integers, on their bits."""
    return lambda graph, eqn, names: graph.one(bools if _is_bool(eqn) else numbers, *names)


def _as_integers(kind: str) -> Write:
    """A comparison, of bools as integers."""

    def write(graph: Graph, eqn: Any, names: list[str]) -> str:
        if _is_bool(eqn):
            names = [graph.one("Cast", name, to=onnx_type(np.int32)) for name in names]
        return graph.one(kind, *names)

    return write


def _arithmetic(kind: str) -> Write:
    """Arithmetic, of short integers as longer ones where the opset lacks them."""

    def write(graph: Graph, eqn: Any, names: list[str]) -> str:
        dtype = np.dtype(eqn.invars[0].aval.dtype)
        if graph.opset >= 14 or dtype.itemsize > 2 or dtype.kind not in "iu":
            return graph.one(kind, *names)
        found = graph.one(kind, *(graph.one("Cast", name, to=onnx_type(np.int32)) for name in names))
        return graph.one("Cast", found, to=onnx_type(dtype))

    return write


def _integer_pow(graph: Graph, eqn: Any, names: list[str]) -> str:
    power, (x,) = eqn.params["y"], names
    if power == 2:
        return graph.one("Mul", x, x)
    if power < 0 and power > -4:
        found = x
        for _ in range(-power - 1):
            found = graph.one("Mul", found, x)
        return graph.one("Reciprocal", found)
    return graph.one("Pow", x, graph.constant(np.asarray(power, eqn.invars[0].aval.dtype)))


def _rem(graph: Graph, eqn: Any, names: list[str]) -> str:
    return graph.one("Mod", *names, fmod=1)  # the sign of the dividend, as in JAX


def _convert(graph: Graph, eqn: Any, names: list[str]) -> str:
    dtype = eqn.params["new_dtype"]
    return names[0] if dtype == eqn.invars[0].aval.dtype else graph.one("Cast", names[0], to=onnx_type(dtype))


def _is_finite(graph: Graph, eqn: Any, names: list[str]) -> str:
    strange = [graph.one(kind, names[0]) for kind in ("IsInf", "IsNaN")]
    return graph.one("Not", graph.one("Or", *strange))


def _round(graph: Graph, eqn: Any, names: list[str]) -> str:
    if int(eqn.params["rounding_method"]) == 1:
        return graph.one("Round", names[0])
    away = graph.one("Floor", graph.one("Add", graph.one("Abs", names[0]), _like(graph, eqn, 0.5)))
    return graph.one("Mul", graph.one("Sign", names[0]), away)


def _select(graph: Graph, eqn: Any, names: list[str]) -> str:
    which, *cases = names
    if _is_bool(eqn) and eqn.invars[1].aval.dtype == bool:  # of bools runtimes have no Where
        sides = graph.one("And", which, cases[1]), graph.one("And", graph.one("Not", which), cases[0])
        return graph.one("Or", *sides)
    if _is_bool(eqn):
        return graph.one("Where", which, cases[1], cases[0])
    found = cases[-1]
    for number, case in reversed([*enumerate(cases[:-1])]):
        found = graph.one("Where", graph.one("Equal", which, _like(graph, eqn, number)), case, found)
    return found


def _clamp(graph: Graph, eqn: Any, names: list[str]) -> str:
    low, x, high = names
    if all(not variable.aval.shape for variable in (eqn.invars[0], eqn.invars[2])):
        return graph.one("Clip", x, low, high)
    return graph.one("Min", graph.one("Max", x, low), high)


def _cbrt(graph: Graph, eqn: Any, names: list[str]) -> str:
    root = graph.one("Pow", graph.one("Abs", names[0]), _like(graph, eqn, 1 / 3))
    return graph.one("Mul", graph.one("Sign", names[0]), root)


def _log1p(graph: Graph, eqn: Any, names: list[str]) -> str:
    return graph.one("Log", graph.one("Add", names[0], _like(graph, eqn, 1)))


def _expm1(graph: Graph, eqn: Any, names: list[str]) -> str:
    return graph.one("Sub", graph.one("Exp", names[0]), _like(graph, eqn, 1))


def _log_base2(graph: Graph, eqn: Any, names: list[str]) -> str:
    return graph.one("Div", graph.one("Log", names[0]), _like(graph, eqn, float(np.log(2))))


def _atan2(graph: Graph, eqn: Any, names: list[str]) -> str:
    y, x = names
    zero, pi = _like(graph, eqn, 0), _like(graph, eqn, np.pi)
    ratio = graph.one("Atan", graph.one("Div", y, x))  # x = 0 gives +-pi/2
    turned = graph.one("Where", graph.one("Less", y, zero), graph.one("Neg", pi), pi)
    left = graph.one("Where", graph.one("Less", x, zero), graph.one("Add", ratio, turned), ratio)
    both = graph.one("And", *(graph.one("Equal", name, zero) for name in names))
    return graph.one("Where", both, zero, left)


def _erfc(graph: Graph, eqn: Any, names: list[str]) -> str:
    return graph.one("Sub", _like(graph, eqn, 1), graph.one("Erf", names[0]))


def _unary(kind: str) -> Write:
    """An operator that ONNX runtimes have for floats alone."""

    def write(graph: Graph, eqn: Any, names: list[str]) -> str:
        if _is_float(eqn):
            return graph.one(kind, *names)
        dtype = onnx_type(eqn.outvars[0].aval.dtype)
        wide = graph.one("Cast", names[0], to=onnx_type(np.float32))
        return graph.one("Cast", graph.one(kind, wide), to=dtype)

    return write


def _identity(emitter: Emitter, node: Node) -> Sequence[Held]:
    return [emitter.values[number] for number in node.ins[: len(node.outs)]]


def _reduce_precision(emitter: Emitter, node: Node) -> Sequence[Held]:
    params = node.eqn.params
    if (params["exponent_bits"], params["mantissa_bits"]) != (8, 23) or emitter.dtype(node.ins[0]) != np.float32:
        raise unsupported("rounding to fewer bits (reduce_precision)", emitter.graph.place)
    return _identity(emitter, node)


def _stack(emitter: Emitter, node: Node) -> Sequence[Held]:
    along, rank = node.eqn.params["axis"], len(emitter.shape(node.outs[0]))
    graph, order = emitter.graph, tuple(range(rank - 1))
    rows = [graph.one("Unsqueeze", emitter.tensor(number, order), graph.integers([along])) for number in node.ins]
    return [Tensor(graph.one("Concat", *rows, axis=along), tuple(range(rank)))]


def _in_order(kind: str) -> Write:
    """A comparison in which NaN is the largest number, as sorting asks for it."""

    def write(graph: Graph, eqn: Any, names: list[str]) -> str:
        found = graph.one(kind, *names)
        if not _is_float(eqn):
            return found
        after = graph.one("IsNaN", names[1])
        if kind == "Less":
            after = graph.one("And", after, graph.one("Not", graph.one("IsNaN", names[0])))
        return graph.one("Or", found, after)

    return write


def _shift(direction: str) -> Write:
    """A shift of bits, which ONNX has for unsigned integers; of what is below zero, the other bits are shifted."""

    def write(graph: Graph, eqn: Any, names: list[str]) -> str:
        dtype, (x, by) = np.dtype(eqn.invars[0].aval.dtype), names
        keeps_sign = eqn.primitive.name == "shift_right_arithmetic" and dtype.kind == "i"
        unsigned = onnx_type(np.dtype(f"uint{8 * dtype.itemsize}"))
        if keeps_sign:
            is_negative = graph.one("Less", x, _like(graph, eqn, 0))
            x = graph.one("Where", is_negative, graph.one("Sub", _like(graph, eqn, -1), x), x)
        moved = graph.one("BitShift", *(graph.one("Cast", name, to=unsigned) for name in (x, by)), direction=direction)
        moved = graph.one("Cast", moved, to=onnx_type(dtype))
        return (
            graph.one("Where", is_negative, graph.one("Sub", _like(graph, eqn, -1), moved), moved)
            if keeps_sign
            else moved
        )

    return write


def _square(graph: Graph, eqn: Any, names: list[str]) -> str:
    return graph.one("Mul", names[0], names[0])


def _not_equal(graph: Graph, eqn: Any, names: list[str]) -> str:
    return graph.one("Xor", *names) if _is_bool(eqn) else graph.one("Not", graph.one("Equal", *names))


_SAME_NAME = {
    "pow": "Pow",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "erf": "Erf",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    **dict.fromkeys(("eq", "eq_to"), "Equal"),
}
_ARITHMETIC = {"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}
_CURVES = ("tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")
_FOR_FLOATS = {name: name.capitalize() for name in ("floor", "ceil", *_CURVES)}
_WRITTEN: dict[str, Write] = {
    **{name: _named(kind) for name, kind in _SAME_NAME.items()},
    **{name: _arithmetic(kind) for name, kind in _ARITHMETIC.items()},
    **{name: _unary(kind) for name, kind in _FOR_FLOATS.items()},
    **{name: _as_integers(kind) for name, kind in (("lt", "Less"), ("le", "LessOrEqual"))},
    **{name: _as_integers(kind) for name, kind in (("gt", "Greater"), ("ge", "GreaterOrEqual"))},
    "lt_to": _in_order("Less"),
    "le_to": _in_order("LessOrEqual"),
    "and": logical("And", "BitwiseAnd"),
    "or": logical("Or", "BitwiseOr"),
    "xor": logical("Xor", "BitwiseXor"),
    "not": logical("Not", "BitwiseNot"),
    "shift_left": _shift("LEFT"),
    **dict.fromkeys(("shift_right_logical", "shift_right_arithmetic"), _shift("RIGHT")),
    "max": logical("Or", "Max"),
    "min": logical("And", "Min"),
    "ne": _not_equal,
    "integer_pow": _integer_pow,
    "square": _square,
    "rsqrt": lambda graph, eqn, names: graph.one("Reciprocal", graph.one("Sqrt", names[0])),
    "rem": _rem,
    "convert_element_type": _convert,
    "is_finite": _is_finite,
    "round": _round,
    "select_n": _select,
    "clamp": _clamp,
    "cbrt": _cbrt,
    "log1p": _log1p,
    "expm1": _expm1,
    "log2": _log_base2,
    "exp2": lambda graph, eqn, names: graph.one("Pow", _like(graph, eqn, 2), names[0]),
    "atan2": _atan2,
    "erfc": _erfc,
}

ELEMENTWISE: dict[str, Rule] = {
    **{name: elementwise(write) for name, write in _WRITTEN.items()},
    **dict.fromkeys(("copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint"), _identity),
    **dict.fromkeys(("pvary", "pcast", "mesh_cast", "reshard"), _identity),
    "reduce_precision": _reduce_precision,
    "stack": _stack,
}
