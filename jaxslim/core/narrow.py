"""The cut program: the traced program of a network, run on the cut arrays."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.narrowing import NARROW_RULES
from jaxslim.core.paths import leaf_paths
from jaxslim.core.plan import Plan
from jaxslim.core.programs import program
from jaxslim.core.replay import Program
from jaxslim.core.rules import RULES
from jaxslim.errors import InputError


def narrow(apply: Callable[..., Any], graph: ChannelGraph, plan: Plan) -> Callable[..., Any]:
    """Run the program of `apply` on cut variables, whatever the code of `apply` says about widths.

    Args:
      apply: `apply(variables, *inputs, **options)`, any mode of the traced network: evaluation, or training that
        returns new statistics. Arguments that are no arrays (bools, numbers, strings, functions) are constants.
      graph: of the network.
      plan: which units survive.

    Returns:
      A function with the signature of `apply`, for the variables that `cut` gives, for inputs of any batch size. It can
      be jitted, differentiated, mapped, scanned and exported. Programs are kept for each combination of shapes.
      Functions with derivative rules of their own keep these; a rule is traced when it is first needed.

    Raises:
      InputError: the plan is for another graph; when called, the variables do not fit the plan, or the program ties
        what goes to what stays: a mode that was not traced.
    """
    alive = graph.survivors(plan.keep)
    programs: dict[Any, tuple[Program, Any]] = {}

    def narrowed(variables: Any, *args: Any, **options: Any) -> Any:
        leaves = leaf_paths(variables)
        structure = jax.tree.structure(variables)
        given, given_structure = jax.tree.flatten((args, options), is_leaf=lambda x: x is None)
        numbers = [number for number, value in enumerate(given) if _is_array(value)]
        axes = [_alive_axes(graph, alive, path, leaf) for path, leaf in leaves]
        shapes = [_full(leaf, own) for (_, leaf), own in zip(leaves, axes, strict=True)]
        abstract = [_abstract(given[number], np.shape(given[number])) for number in numbers]
        constants = tuple(value for value in given if not _is_array(value))

        def flat(leaves: list[Any], arrays: list[Any]) -> Any:
            filled, rest = dict(zip(numbers, arrays, strict=True)), iter(constants)
            whole = [filled[number] if number in filled else next(rest) for number in range(len(given))]
            args, options = jax.tree.unflatten(given_structure, whole)
            return apply(jax.tree.unflatten(structure, leaves), *args, **options)

        def build() -> tuple[Program, Any]:
            closed, out_shapes = program(flat, shapes, abstract)
            paths = [path for path, _ in leaves]

            def conflict(number: Any) -> None:
                name = f"{'/'.join(paths[number])} " if isinstance(number, int) and number < len(paths) else ""
                advice = "trace all modes together: trace([evaluation, training], ...)."
                raise InputError(f"The program of this call needs channels {name}that the plan cuts; {advice}")

            inputs = [[None] * len(aval.shape) for aval in closed.in_avals[len(leaves) :]]
            return Program(closed, [*axes, *inputs], RULES, NARROW_RULES, conflict), jax.tree.structure(out_shapes)

        key = (
            structure,
            given_structure,
            *map(_key, shapes),
            *map(_key, abstract),
            *((type(value), value) for value in constants),  # True, 1 and 1.0 are equal
            jax.config.read("jax_enable_x64"),
        )
        made, out_structure = _lookup(programs, key, build)
        outs = made([*(leaf for _, leaf in leaves), *(given[number] for number in numbers)])
        return jax.tree.unflatten(out_structure, outs)

    return narrowed


def _lookup(programs: dict[Any, Any], key: Any, build: Callable[[], Any]) -> Any:
    try:
        if key not in programs:
            programs[key] = build()
        return programs[key]
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return build()


def _key(shape: Any) -> Any:
    return (shape.shape, shape.dtype, getattr(shape, "weak_type", False))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _abstract(array: Any, shape: Any) -> Any:
    aval = jax.typeof(array)
    return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=aval.weak_type)


def _alive_axes(graph: ChannelGraph, alive: np.ndarray, path: Any, leaf: Any) -> list[np.ndarray | None]:
    """For each axis of a leaf, which indices survive, None where all do; a leaf that was not traced stays whole."""
    number = graph.find(path)
    if number is None:
        return [None] * np.ndim(leaf)
    kept = [alive[units] for units in graph.units[number]]
    shape = tuple(int(one.sum()) for one in kept)
    if np.shape(leaf) != shape:
        advice = "cut the variables by the same plan: cut(graph, variables, plan)."
        raise InputError(f"{'/'.join(path)} has shape {np.shape(leaf)} and the plan leaves {shape}; {advice}")
    return [None if one.all() else one for one in kept]


def _full(leaf: Any, axes: list[np.ndarray | None]) -> Any:
    shape = tuple(n if own is None else len(own) for n, own in zip(np.shape(leaf), axes, strict=True))
    return _abstract(leaf, shape)
