"""The convolutions and products of a network, each to be run alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.cost import equation_macs
from jaxslim.core.paths import Path, leaf_paths
from jaxslim.core.programs import program
from jaxslim.core.replay import bind
from jaxslim.core.rules.control import inner_program
from jaxslim.core.walk import interpret

Leaves = frozenset[int] | None
"""The leaves of the variables that a value is made of; None if it depends on the inputs too."""


class Isolated(NamedTuple):
    """A convolution or product of a program; a loop or a branch that holds any counts as one."""

    macs: int
    """Multiply-accumulates of one call, on the inputs of the program."""
    call: Callable[..., Sequence[Any]]
    """`call(*arrays)` -> its results; for use inside `jit`."""
    inputs: tuple[Any, ...]
    """Shape and dtype of each array that it takes."""


def isolated(apply: Callable[..., Any], variables: Any, *inputs: Any) -> dict[str, Isolated]:
    """Take the program of a network apart into what multiplies.

    Args:
      apply: `apply(variables, *inputs)` -> any pytree.
      variables: pytree of arrays or `ShapeDtypeStruct`s.
      *inputs: pytrees of arrays or `ShapeDtypeStruct`s.

    Returns:
      The convolutions and products in the order of the program, by the path of their kernel: the largest array of the
      variables that one of their operands is made of. One without a kernel, as in attention, has the name of its
      primitive. A number follows a name that was there before.

    Raises:
      InputError: `apply` does not run with these variables and inputs, or multiplies in a loop of unknown rounds.

    Example:
      >>> parts = isolated(lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"], {"a": np.ones((3, 8)), "b": np.ones((8, 2))},
      ...                  np.ones((5, 3)))
      >>> {name: part.macs for name, part in parts.items()}
      {'a': 120, 'b': 80}
    """
    closed, _ = program(apply, variables, *inputs)
    leaves = leaf_paths(variables)
    own: list[Leaves] = [frozenset({number}) for number in range(len(leaves))]
    found: dict[str, Isolated] = {}
    uses: Counter[str] = Counter()

    def equation(eqn: Any, ins: list[Leaves]) -> list[Leaves]:
        if (inner := inner_program(eqn)) is not None:
            return interpret(inner, ins, lambda _: frozenset(), equation)
        if macs := equation_macs(eqn):
            name = _kernel(leaves, ins) or eqn.primitive.name
            uses[name] += 1
            shapes = tuple(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars)
            found[f"{name} ({uses[name]})" if uses[name] > 1 else name] = Isolated(macs, _call(eqn), shapes)
        made_of = None if None in ins else frozenset().union(*filter(None, ins))
        return [made_of] * len(eqn.outvars)

    interpret(closed, [*own, *[None] * (len(closed.in_avals) - len(own))], lambda _: frozenset(), equation)
    return found


def sample(shape: Any) -> jax.Array:
    """An array to run something alone on: normal numbers, or zeros where numbers are whole."""
    if jnp.issubdtype(shape.dtype, jnp.floating):
        return jnp.asarray(np.random.default_rng(0).normal(size=shape.shape), shape.dtype)
    return jnp.zeros(shape.shape, shape.dtype)


def repeated(layer: Isolated, times: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """`run(arrays)`, which calls a layer some times in a row; for use inside `jit`.

    One number of an input depends on the call before, so that no call can be left out or run beside another. A layer
    that takes no floats runs once.
    """
    floats = [at for at, shape in enumerate(layer.inputs) if jnp.issubdtype(shape.dtype, jnp.floating)]

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        given = list(arrays)
        outs = layer.call(*given)
        for _ in range(times - 1 if floats else 0):
            changed = given[floats[0]]
            tiny = (outs[0].ravel()[0] * 1e-30).astype(changed.dtype)
            given[floats[0]] = changed.at[(0,) * changed.ndim].add(tiny)
            outs = layer.call(*given)
        return outs

    return run


def _call(eqn: Any) -> Callable[..., Sequence[Any]]:
    return lambda *arrays: bind(eqn, arrays)


def _kernel(leaves: Sequence[tuple[Path, Any]], ins: Sequence[Leaves]) -> str:
    """The path of the largest leaf that an operand is made of alone, without the collection of parameters."""
    used = {number for made_of in ins for number in made_of or ()}
    if not used:
        return ""
    path = leaves[max(sorted(used), key=lambda number: np.size(leaves[number][1]))][0]
    return "/".join(path[1:] if path[:1] == ("params",) else path)
