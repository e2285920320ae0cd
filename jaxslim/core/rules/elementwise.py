"""Elementwise primitives: equal-length axes are tied, length-1 axes and scalars bind nothing."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from jaxslim.core.walk import FIXED, FREE, Rule, Value, Walk, settle


def _product(a: Any, b: Any) -> Any:
    """Zero times what is not known is zero; zero times infinity is not."""
    zero = ((a == 0) & ~np.isinf(b)) | ((b == 0) & ~np.isinf(a))
    return np.where(zero, 0.0, np.multiply(a, b))


def _quotient(a: Any, b: Any) -> Any:
    """Nothing is known of what is divided by zero, and its product with zero is not zero."""
    return np.where(b == 0, np.where(a == 0, math.nan, math.inf), np.where(a == 0, 0.0, np.divide(a, b)))


def _select(_: Any, *cases: Any) -> Any:
    first, *others = cases
    return np.where(np.all([first == other for other in others], axis=0), first, math.nan) if others else first


def _identity(a: Any) -> Any:
    return a


# What a primitive makes of numbers; NaN in, NaN out. Elementwise primitives that are missing here give NaN.
_VALUES: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "clamp": lambda low, a, high: np.clip(a, low, high),
    "convert_element_type": _identity,
    "copy": _identity,
    "cos": np.cos,
    "cosh": np.cosh,
    "div": _quotient,
    "erf": special.erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "logistic": special.expit,
    "max": np.maximum,
    "min": np.minimum,
    "mul": _product,
    "neg": np.negative,
    "one_minus_square": lambda a: 1 - a * a,
    "pow": np.power,
    "reduce_precision": _identity,
    "round": lambda a: np.where(a == np.floor(a), a, math.nan),
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "select_n": _select,
    "sharding_constraint": _identity,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": _identity,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
}
_VALUELESS = [
    "acos",
    "acosh",
    "and",
    "asin",
    "atan2",
    "atanh",
    "bessel_i0e",
    "bessel_i1e",
    "clz",
    "conj",
    "digamma",
    "eq",
    "erf_inv",
    "erfc",
    "ge",
    "gt",
    "imag",
    "is_finite",
    "le",
    "lgamma",
    "lt",
    "ne",
    "nextafter",
    "not",
    "or",
    "polynomial",
    "population_count",
    "real",
    "rem",
    "shift_left",
    "shift_right_arithmetic",
    "shift_right_logical",
    "igamma",
    "igammac",
    "polygamma",
    "xor",
    "zeta",
]


def _evaluator(eqn: Any) -> Callable[..., Any]:
    name = eqn.primitive.name
    if name == "integer_pow":
        return lambda a: np.power(a, float(eqn.params["y"]))
    if name == "convert_element_type" and np.dtype(eqn.params["new_dtype"]).kind not in "fcV":
        return lambda a: np.where(a == 0, 0.0, math.nan)  # rounded or compared with zero
    return _VALUES.get(name, lambda *_: math.nan)


def _elementwise(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    evaluate = _evaluator(eqn)
    shape = eqn.outvars[0].aval.shape
    ids, dead = [], []
    with np.errstate(all="ignore"):
        const = float(evaluate(*(value.const for value in ins)))
        for axis, n in enumerate(shape):
            joined = np.full(n, FREE)
            at_dead = []
            for value in ins:
                own = value.ids[axis] if value.ids else np.full(n, FREE)
                if len(own) != n:  # a length-1 axis is broadcast: it binds nothing and has to stay
                    walk.fix(settle(own))
                    own = np.full(n, FREE)
                joined = walk.unite(joined, own)
                held = value.dead[axis] if value.ids and len(value.dead[axis]) == n else math.nan
                at_dead.append(np.where(own > FIXED, held, value.const))
            ids.append(joined)
            dead.append(np.broadcast_to(evaluate(*at_dead), (n,)))
    return [Value(tuple(ids), tuple(dead), const)]


ELEMENTWISE: dict[str, Rule] = dict.fromkeys([*_VALUES, *_VALUELESS, "integer_pow"], _elementwise)
