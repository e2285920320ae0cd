"""Elementwise primitives: they tie axes of equal length; axes of length 1 and scalars bind nothing."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from jaxslim.core.value import FREE, Axis, Value, agreed, free_axis, unknown
from jaxslim.core.walk import Rule, Walk, because


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
_IDENTITIES = ("convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint", "stop_gradient")
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
_COMPARISONS = ("eq", "eq_to", "ge", "gt", "is_finite", "le", "le_to", "lt", "lt_to", "ne")
_BITS = ("and", "clz", "not", "or", "population_count", "xor")
_SHIFTS = ("shift_left", "shift_right_arithmetic", "shift_right_logical")
_INVERSES = ("acos", "acosh", "asin", "atan2", "atanh", "erf_inv")
_SPECIAL = ("bessel_i0e", "bessel_i1e", "digamma", "erfc", "igamma", "igammac", "lgamma", "polygamma", "zeta")
_REGULARIZED = ("regularized_incomplete_beta", "random_gamma_grad", "igamma_grad_a", "bessel_i0", "bessel_i1")
_OTHERS = ("complex", "conj", "imag", "nextafter", "polynomial", "real", "rem")
_UNKNOWN = (*_COMPARISONS, *_BITS, *_SHIFTS, *_INVERSES, *_SPECIAL, *_REGULARIZED, *_OTHERS)
# Where a norm meets a stream: behind it, channels may go that the stream keeps for other readers.
_SELECTS = ("add", "div", "mul", "sub")


def _evaluator(eqn: Any) -> Callable[..., Any]:
    name = eqn.primitive.name
    if name == "integer_pow":
        return lambda a: np.power(a, float(eqn.params["y"]))
    if name == "convert_element_type" and np.dtype(eqn.params["new_dtype"]).kind not in "fcV":
        return lambda a: np.where(a == 0, 0.0, math.nan)  # rounded or compared with zero
    return _VALUES.get(name, lambda *_: math.nan)


def _elementwise(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    evaluate, shape = _evaluator(eqn), eqn.outvars[0].aval.shape
    at = _selected_at(eqn, ins)
    if at is None:
        at = _scaled_at(walk, eqn, ins)
    with np.errstate(all="ignore"):
        const = float(evaluate(*(value.const for value in ins)))
        axes = tuple(_axis(walk, eqn, k, n, ins, evaluate, selects=k == at) for k, n in enumerate(shape))
    vectors = {value.vector for value in ins if value.vector is not None}
    along = vectors.pop() if len(vectors) == 1 else None
    vector = None if along is None or any(_is_stream(value, along) for value in ins) else along
    return [Value(axes, const, vector=vector, normed=_is_normed(eqn.primitive.name, ins, scaled=at is not None))]


def _is_normed(name: str, ins: tuple[Value, ...], *, scaled: bool) -> bool:
    """Whether a stream has met the scale of a norm, and since then nothing but vectors and constants."""
    if scaled and name in ("mul", "div"):
        return True
    others = all(value.normed or value.free or value.vector is not None for value in ins)
    return name in (*_SELECTS, *_IDENTITIES) and any(value.normed for value in ins) and others


def _is_stream(value: Value, k: int) -> bool:
    """Whether an array has channels along axis `k` that are not those of a parameter vector."""
    return bool(value.axes) and value.vector != k and len(value.axes[k]) > 1 and not value.axes[k].free


def _selected_at(eqn: Any, ins: tuple[Value, ...]) -> int | None:
    """The axis along which a parameter vector meets a stream that no norm has just met."""
    if eqn.primitive.name not in _SELECTS:
        return None
    vectors = [value for value in ins if value.vector is not None]
    if len(vectors) != 1 or vectors[0].normed:
        return None
    k = vectors[0].vector
    streams = [value for value in ins if k is not None and _is_stream(value, k)]
    return k if len(streams) == 1 and not streams[0].normed else None


def _scaled_at(walk: Walk, eqn: Any, ins: tuple[Value, ...]) -> int | None:
    """The axis along which a stream meets a scale that has met the stream's own statistics, as in training."""
    if eqn.primitive.name not in ("mul", "div") or not all(value.axes for value in ins):
        return None
    for k, axes in enumerate(zip(*(value.axes for value in ins), strict=True)):
        if any(_is_below(walk, *pair) for pair in (axes, axes[::-1])):
            return k
    return None


def _is_below(walk: Walk, one: Axis, other: Axis) -> bool:
    """Whether `one` was taken from `other` behind a norm."""
    if not len(one) or len(one) != len(other):
        return False
    taken = walk.taken.get(int(one.ids[0]))
    return taken is not None and np.array_equal(taken[0], one.ids) and np.array_equal(taken[1], other.ids)


def _axis(
    walk: Walk, eqn: Any, k: int, n: int, ins: tuple[Value, ...], evaluate: Callable[..., Any], *, selects: bool
) -> Axis:
    met = []
    for value in ins:
        axis = value.axes[k] if value.axes else free_axis(n)
        if len(axis) != n:  # broadcast, so the length 1 has to stay
            walk.fix(axis.ids, because(eqn, "broadcasts", expected=True))
            axis = free_axis(n)
        met.append(axis)
    vectors = [_is_below(walk, axis, other) or value.vector == k
               for axis, other, value in zip(met, met[::-1], ins, strict=True)] if selects else []  # fmt: skip
    ids = _selection(walk, met, vectors) if sum(vectors) == 1 else None
    if ids is None:
        ids = functools.reduce(walk.unite, (axis.ids for axis in met))
    else:  # the stream is not zero where only the norm's vectors are
        met = [axis if own else Axis(axis.ids, axis.zeroed, unknown(n)) for axis, own in zip(met, vectors, strict=True)]
    if not (ids >= 0).any():
        return Axis(ids, unknown(n), unknown(n))
    zeroed = _evaluated(evaluate, [axis.zeroed for axis in met], met, ins, n)
    if all(axis.alone is axis.zeroed for axis in met):
        return Axis(ids, zeroed, zeroed)
    return Axis(ids, zeroed, _evaluated(evaluate, [axis.alone for axis in met], met, ins, n))


def _selection(walk: Walk, met: list[Axis], vectors: list[bool]) -> np.ndarray | None:
    """The ids behind a norm, which are those of its vector, below those of the stream."""
    vector, stream = (met[vectors.index(own)].ids for own in (True, False))
    if vector[:1] == FREE or stream[:1] == FREE or (stream == vector).all():
        return None
    both = (vector >= 0) & (stream >= 0)
    walk.below.append((vector[both], stream[both]))
    tied = walk.unite(stream[~both], vector[~both])
    ids = vector.copy()
    ids[~both] = tied
    walk.taken[int(ids[0])] = ids, stream
    return ids


def _evaluated(
    evaluate: Callable[..., Any], held: list[np.ndarray], met: list[Axis], ins: tuple[Value, ...], n: int
) -> np.ndarray:
    numbers = [np.where(axis.ids >= 0, holds, value.const) for holds, axis, value in zip(held, met, ins, strict=True)]
    return np.broadcast_to(np.asarray(evaluate(*numbers), np.float64), (n,))


ELEMENTWISE: dict[str, Rule] = dict.fromkeys((*_VALUES, *_UNKNOWN, "integer_pow"), _elementwise)
