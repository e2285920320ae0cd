"""What a network multiplies, and along which axes: what a cut saves."""

from typing import Any

import numpy as np

from jaxslim.core.cost import equation_macs, times
from jaxslim.core.rules.control import inner_program
from jaxslim.core.value import Axis
from jaxslim.core.walk import Record, live_equations
from jaxslim.errors import InputError

Contraction = tuple[int, tuple[np.ndarray, ...]]
"""Multiply-accumulates of an equation, and the ids of each axis that they grow with."""


def contractions(jaxpr: Any, record: Record, rounds: int = 1) -> list[Contraction]:
    """The products and convolutions of a program that a walk has followed.

    Raises:
      InputError: it multiplies in a loop of unknown rounds.
    """
    found: list[Contraction] = []
    for eqn, step in zip(live_equations(getattr(jaxpr, "jaxpr", jaxpr)), record.steps, strict=True):
        name, params = eqn.primitive.name, eqn.params
        if (inner := inner_program(eqn)) is not None:
            found += contractions(inner, step.inner[-1], rounds)
        elif name in ("scan", "shard_map"):
            found += contractions(params["jaxpr"], step.inner[-1], rounds * times(name, params))
        elif name == "cond":
            branches = [contractions(*pair, rounds) for pair in zip(params["branches"], step.inner, strict=True)]
            found += max(branches, key=lambda own: sum(macs for macs, _ in own))
        elif name == "while":
            programs = (params["body_jaxpr"], params["cond_jaxpr"])
            if any(contractions(*pair) for pair in zip(programs, step.inner[-2:], strict=True)):
                raise InputError("The network multiplies inside a while loop, whose rounds cannot be counted.")
        elif macs := equation_macs(eqn):
            axes = tuple(axis.ids for axis in _axes(eqn, [value.axes for value in step.ins]) if axis.open)
            found.append((macs * rounds, axes))
    return found


def _axes(eqn: Any, ins: list[tuple[Axis, ...]]) -> list[Axis]:
    """The axes whose lengths the multiply-accumulates of an equation are a multiple of."""
    name, params = eqn.primitive.name, eqn.params
    if name == "conv_general_dilated":
        spec = params["dimension_numbers"].rhs_spec
        return [ins[1][spec[0]], ins[1][spec[1]]]
    if name in ("dot_general", "scaled_dot", "ragged_dot_general"):
        groups: tuple[int, ...] = ()
        dimensions = params.get("dimension_numbers")
        if name == "ragged_dot_general":
            ragged = params["ragged_dot_dimension_numbers"]
            dimensions, groups = ragged.dot_dimension_numbers, tuple(ragged.rhs_group_dimensions)
        (_, contracted), (_, batch) = dimensions
        return [*ins[0], *(axis for k, axis in enumerate(ins[1]) if k not in (*contracted, *batch, *groups))]
    return []
