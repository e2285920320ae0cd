"""What the contractions of a network read: sums over its activations, unit by unit, in the traced program itself."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.paths import leaf_paths
from jaxslim.core.programs import program
from jaxslim.core.replay import bind
from jaxslim.core.rules import RULES
from jaxslim.core.rules.control import inner_program, scan_inputs
from jaxslim.core.solve import Solution
from jaxslim.core.tracing import input_value
from jaxslim.core.walk import Record, Walk, live_equations

CONTRACTIONS = ("conv_general_dilated", "dot_general", "ragged_dot_general", "scaled_dot")


def observed(
    apply: Callable[..., Any], graph: ChannelGraph, variables: Any, *inputs: Any
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Build `measure(variables, *inputs)`, for arrays of these shapes.

    Returns:
      A function that runs the program and returns three arrays (num_units + 1,): the sums of |a| over all elements a of
      activations that a convolution or product reads of each unit, how many are not zero, and how many there are.
    """
    closed, _ = program(apply, variables, *inputs)
    walk, leaves = Walk(RULES), leaf_paths(variables)
    values = [walk.parameter(number, np.shape(leaf)) for number, (_, leaf) in enumerate(leaves)]
    given = closed.in_avals[len(leaves) :]
    walk.follow(closed, [*values, *(input_value(walk, ("",), aval.shape) for aval in given)])
    record, solution = walk.inner[-1], Solution(walk, selection=True)
    unit_of = np.zeros(solution.num, np.int64)
    for (path, _), value in zip(leaves, values, strict=True):
        if (number := graph.find(path)) is not None:
            for axis, units in zip(value.axes, graph.units[number], strict=True):
                unit_of[solution.of(axis.ids)] = units
    observer = _Observer(lambda ids: unit_of[solution.of(ids)])

    def measure(variables: Any, *inputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        arrays = [*jax.tree.leaves(variables), *jax.tree.leaves(inputs)]
        moves = [False] * len(leaves) + [True] * len(given)
        _, sums, _ = observer.run(closed, record, arrays, moves, jnp.zeros((3, graph.num_units + 1)))
        return sums[0], sums[1], sums[2]

    return measure


class _Observer:
    """Runs programs, and carries the sums through their loops."""

    def __init__(self, units: Callable[[np.ndarray], np.ndarray]) -> None:
        self.units = units

    def run(
        self, jaxpr: Any, record: Record, arrays: Sequence[Any], moves: Sequence[bool], sums: Any
    ) -> tuple[list[Any], Any, list[bool]]:
        """Outputs, sums, and for each output whether it depends on the network's inputs, as `moves` says of arrays."""
        consts, inner = (jaxpr.consts, jaxpr.jaxpr) if isinstance(jaxpr, core.ClosedJaxpr) else ([], jaxpr)
        env = dict(zip([*inner.constvars, *inner.invars], [*consts, *arrays], strict=True))
        moving = {var for var, moved in zip(inner.invars, moves, strict=True) if moved}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else env[atom]

        def depends(atom: Any) -> bool:
            return not isinstance(atom, core.Literal) and atom in moving

        for eqn, step in zip(live_equations(inner), record.steps, strict=True):
            ins, moved = [read(atom) for atom in eqn.invars], [depends(atom) for atom in eqn.invars]
            if eqn.primitive.name in CONTRACTIONS:
                for array, value, own in zip(ins, step.ins, moved, strict=True):
                    sums = self._add(sums, array, value) if own else sums
            outs, sums, out_moved = self._equation(eqn, step.inner, ins, moved, sums)
            env |= zip(eqn.outvars, outs, strict=True)
            moving.update(var for var, own in zip(eqn.outvars, out_moved, strict=True) if own)
        return [read(atom) for atom in inner.outvars], sums, [depends(atom) for atom in inner.outvars]

    def _add(self, sums: Any, array: Any, value: Any) -> Any:
        for k, axis in enumerate(value.axes):
            units = self.units(axis.ids)
            if units.any():
                rest = tuple(other for other in range(array.ndim) if other != k)
                absolute = jnp.abs(array).sum(rest, dtype=sums.dtype)
                number = jnp.count_nonzero(array, rest).astype(sums.dtype)
                whole = jnp.full(len(units), array.size / len(units), sums.dtype)
                sums = sums.at[:, units].add(jnp.stack([absolute, number, whole]))
        return sums

    def _equation(
        self, eqn: Any, records: list[Record], ins: list[Any], moved: list[bool], sums: Any
    ) -> tuple[Sequence[Any], Any, list[bool]]:
        name, params = eqn.primitive.name, eqn.params
        if (inner := inner_program(eqn)) is not None:
            return self.run(inner, records[-1], ins, moved, sums)
        all_move = [any(moved)] * len(eqn.outvars)
        if name == "scan":
            consts, start, scanned = scan_inputs(params, ins)
            inside = [True] * len(start) + moved[len(consts) + len(start) :]

            def body(carry: Any, rows: list[Any]) -> Any:
                state, sums = carry
                flags = [*moved[: len(consts)], *inside]
                outs, sums, _ = self.run(params["jaxpr"], records[-1], [*consts, *state, *rows], flags, sums)
                return (outs[: len(start)], sums), outs[len(start) :]

            options = {name: params[name] for name in ("length", "reverse", "unroll") if name in params}
            (last, sums), rows = jax.lax.scan(body, (start, sums), scanned, **options)
            return [*last, *rows], sums, all_move
        if name == "cond":

            def branch(jaxpr: Any, record: Record) -> Callable[..., Any]:
                return lambda arrays, sums: self.run(jaxpr, record, arrays, moved[1:], sums)[:2]

            branches = [branch(*pair) for pair in zip(params["branches"], records, strict=True)]
            outs, sums = jax.lax.switch(ins[0], branches, ins[1:], sums)
            return outs, sums, all_move
        return bind(eqn, ins), sums, all_move
