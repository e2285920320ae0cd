"""Elementwise primitives: they tie axes of equal length; axes of length 1 and scalars bind nothing."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from jaxslim.core.value import FIXED, FREE, Axis, Value, agreed, free_axis
from jaxslim.core.walk import Rule, Walk


def _product(a: Any, b: Any) -> Any:
    """Zero times an unknown number is zero; zero times infinity is not."""
    zero = ((a == 0) & ~np.isinf(b)) | ((b == 0) & ~np.isinf(a))
    return np.where(zero, 0.0, np.multiply(a, b))


def _quotient(a: Any, b: Any) -> Any:
    """Dividing by zero gives infinity, whose product with zero is not zero; zero by zero is unknown."""
    return np.where(b == 0, np.where(a == 0, math.nan, math.inf), np.where(a == 0, 0.0, np.divide(a, b)))


# Primitives that numpy has a function of the same name for.
_ARITHMETIC = ("abs", "add", "cbrt", "ceil", "floor", "pow", "sign", "sqrt", "square")
_CURVES = ("asinh", "atan", "cos", "cosh", "exp", "exp2", "expm1", "log", "log1p", "log2", "sin", "sinh", "tan", "tanh")
_IDENTITIES = ("convert_element_type", "copy", "reduce_precision", "sharding_constraint", "stop_gradient")
# What a primitive makes of numbers; NaN in, NaN out.
_VALUES: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in (*_ARITHMETIC, *_CURVES)},
    **dict.fromkeys(_IDENTITIES, lambda a: a),
    "add_any": np.add,
    "clamp": lambda low, a, high: np.clip(a, low, high),
    "div": _quotient,
    "erf": special.erf,
    "logistic": special.expit,
    "max": np.maximum,
    "min": np.minimum,
    "mul": _product,
    "neg": np.negative,
    "one_minus_square": lambda a: 1 - a * a,
    "round": lambda a: np.where(a == np.floor(a), a, math.nan),
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "select_n": lambda _, *cases: functools.reduce(agreed, cases),
    "sub": np.subtract,
}
# Primitives whose numbers count as unknown.
_COMPARISONS = ("eq", "ge", "gt", "is_finite", "le", "lt", "ne")
_BITS = ("and", "clz", "not", "or", "population_count", "xor")
_SHIFTS = ("shift_left", "shift_right_arithmetic", "shift_right_logical")
_INVERSES = ("acos", "acosh", "asin", "atan2", "atanh", "erf_inv")
_SPECIAL = ("bessel_i0e", "bessel_i1e", "digamma", "erfc", "igamma", "igammac", "lgamma", "polygamma", "zeta")
_OTHERS = ("conj", "imag", "nextafter", "polynomial", "real", "rem")
_UNKNOWN = (*_COMPARISONS, *_BITS, *_SHIFTS, *_INVERSES, *_SPECIAL, *_OTHERS)


def _evaluator(eqn: Any) -> Callable[..., Any]:
    name = eqn.primitive.name
    if name == "integer_pow":
        return lambda a: np.power(a, float(eqn.params["y"]))
    if name == "convert_element_type" and np.dtype(eqn.params["new_dtype"]).kind not in "fcV":
        return lambda a: np.where(a == 0, 0.0, math.nan)  # rounded or compared with zero
    return _VALUES.get(name, lambda *_: math.nan)


def _elementwise(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    evaluate = _evaluator(eqn)
    axes = []
    with np.errstate(all="ignore"):
        const = float(evaluate(*(value.const for value in ins)))
        for number, n in enumerate(eqn.outvars[0].aval.shape):
            ids, zeroed = np.full(n, FREE), []
            for value in ins:
                axis = value.axes[number] if value.axes else free_axis(n)
                if len(axis) != n:  # broadcast, so the length 1 has to stay
                    walk.fix(axis.ids)
                    axis = free_axis(n)
                ids = walk.unite(ids, axis.ids)
                zeroed.append(np.where(axis.ids > FIXED, axis.zeroed, value.const))
            axes.append(Axis(ids, np.broadcast_to(evaluate(*zeroed), (n,))))
    return [Value(tuple(axes), const)]


ELEMENTWISE: dict[str, Rule] = dict.fromkeys((*_VALUES, *_UNKNOWN, "integer_pow"), _elementwise)
