"""Numbers in place of the symbols that `jax.export` has for open sizes: every axis of a walk needs its indices."""

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.export import is_symbolic_dim

_PRIMES = (7, 11, 13, 17, 19, 23, 29, 31)
_FUNCTIONS = {"floordiv": operator.floordiv, "mod": operator.mod, "max": max, "min": min, "non_negative": abs}


class Equation(NamedTuple):
    """An equation whose sizes are numbers, with what the rules read of one."""

    primitive: Any
    params: dict[str, Any]
    invars: Sequence[Any]
    outvars: Sequence[Any]
    source_info: Any
    effects: Any


class Variable(NamedTuple):
    aval: "Shape"


class Shape(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any = None


def stand_ins(shapes: Iterable[Sequence[Any]]) -> dict[str, int]:
    """A number for each symbol in these shapes; empty if there are none."""
    texts = {str(n) for shape in shapes for n in shape if is_symbolic_dim(n)}
    symbols = sorted({name for text in texts for name in re.findall(r"[A-Za-z_]\w*", text)} - set(_FUNCTIONS))
    return dict(zip(symbols, _PRIMES, strict=False))


def with_numbers(eqn: Any, numbers: dict[str, int]) -> Any:
    """`eqn` with `numbers` for its symbols."""
    if not numbers:
        return eqn

    def variable(atom: Any) -> Variable:
        shape = tuple(_number(n, numbers) for n in getattr(atom.aval, "shape", ()))
        return Variable(Shape(shape, getattr(atom.aval, "dtype", None)))

    params = {name: _numbers(value, numbers) for name, value in eqn.params.items()}
    shapes = [getattr(atom.aval, "shape", ()) for atom in (*eqn.invars, *eqn.outvars)]
    if all(number_shape(shape, numbers) == tuple(shape) for shape in shapes):
        return eqn  # no symbol in sight, so that constants can be computed
    ins, outs = [list(map(variable, side)) for side in (eqn.invars, eqn.outvars)]
    return Equation(eqn.primitive, params, ins, outs, eqn.source_info, eqn.effects)


def _numbers(value: Any, numbers: dict[str, int]) -> Any:
    if type(value) in (tuple, list):
        return type(value)(_numbers(one, numbers) for one in value)
    return _number(value, numbers)


def _number(size: Any, numbers: dict[str, int]) -> Any:
    if not is_symbolic_dim(size):
        return size
    return int(evaluate_size(size, numbers))


def evaluate_size(size: Any, symbols: Mapping[str, Any]) -> Any:
    """Compute a symbolic size from what stands for its symbols: JAX has no public way to do so."""
    text = str(size).replace("^", "**")
    return eval(text, {"__builtins__": {}, **_FUNCTIONS}, symbols)


def number_shape(shape: Sequence[Any], numbers: dict[str, int]) -> tuple[int, ...]:
    return tuple(_number(n, numbers) for n in shape)
