"""A traced program as one list of equations: the programs inside, but for those of loops and branches, stand in it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxslim.core.rules.control import inner_program
from jaxslim.core.walk import interpret


class Node(NamedTuple):
    """One equation between numbered values."""

    eqn: Any
    """Equation of JAX, of which the primitive and its parameters count."""
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    source: tuple[Any, ...] = ()
    """Where the equation stands, as JAX's source infos: its own, then those of the calls around it."""
    bias: int | None = None
    """A value to add to the output, against which it broadcasts."""

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of all values that the equation needs."""
        return self.ins if self.bias is None else (*self.ins, self.bias)


@dataclasses.dataclass(frozen=True)
class Flat:
    """A program without calls."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]
    """Arrays and scalars of the program itself, by number."""
    avals: dict[int, Any]
    """Shape and dtype of each value, by number."""


def flatten(closed: Any, outer: tuple[Any, ...] = ()) -> Flat:
    """List the equations of a jaxpr whose results are used.

    Functions with derivative rules of their own become what they compute. Of code that differs by platform, the form
    for all others is taken.

    Args:
      closed: the jaxpr.
      outer: source infos of the calls around it.
    """
    flattening = _Flattening()
    jaxpr = getattr(closed, "jaxpr", closed)
    inputs = [flattening.new(var.aval) for var in jaxpr.invars]
    outputs = flattening.follow(closed, inputs, outer)
    return Flat(tuple(flattening.nodes), tuple(inputs), tuple(outputs), flattening.constants, flattening.avals)


class _Flattening:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[int, Any] = {}
        self.avals: dict[int, Any] = {}

    def new(self, aval: Any) -> int:
        self.avals[len(self.avals)] = aval
        return len(self.avals) - 1

    def constant(self, array: Any) -> int:
        number = self.new(jax.typeof(array))
        self.constants[number] = array
        return number

    def follow(self, jaxpr: Any, args: Sequence[int], outer: tuple[Any, ...]) -> list[int]:
        def equation(eqn: Any, ins: list[int]) -> list[int]:
            source = (eqn.source_info, *outer)
            if (inner := inner_program(eqn)) is not None:
                return self.follow(inner, ins, source)
            if eqn.primitive.name == "platform_index":
                return [self.constant(np.int32(_others(eqn.params["platforms"])))]
            if eqn.primitive.name == "cond" and ins[0] in self.constants:
                branches = eqn.params["branches"]
                chosen = min(max(int(self.constants[ins[0]]), 0), len(branches) - 1)
                return self.follow(branches[chosen], ins[1:], source)
            outs = tuple(self.new(var.aval) for var in eqn.outvars)
            self.nodes.append(Node(eqn, tuple(ins), outs, source))
            return list(outs)

        return interpret(jaxpr, args, self.constant, equation)


def _others(platforms: Sequence[Any]) -> int:
    """The position of the code for platforms that are not named; the last if all are."""
    return next((number for number, names in enumerate(platforms) if names is None), len(platforms) - 1)
