"""Units of pytrees of arrays taken out, set to zero or put back: parameters, statistics and optimizer state alike."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.arrays import Line, blank, spread, take
from jaxslim.core.graph import ChannelGraph, check_size
from jaxslim.core.paths import Path, Place
from jaxslim.core.plan import Plan
from jaxslim.core.state import Shape, axes_beside, check_factors, uncuttable
from jaxslim.errors import InputError


def cut(graph: ChannelGraph, tree: Any, plan: Plan) -> Any:
    """Take the surviving indices out of every array of `tree`, as a new tree.

    Args:
      graph: of the network.
      tree: the traced variables, one of their collections, or what holds copies of either, such as the state of an
        optax optimizer or a Flax `TrainState`. Arrays are matched by path. Beside the parameters' own shapes, arrays
        are understood that lack one axis (Adafactor's factored moments), have length 1 along some, run along one (SM3)
        or stack several copies (the memory of L-BFGS). Numbers for a whole parameter stay as they are; so do scalars,
        random keys, integers that match no path, and vectors beside the copies, such as the coefficients of Muon.
      plan: which units survive.

    Raises:
      InputError: an array of floats that is none of the traced variables, or of another shape; optimizer state that
        cannot be cut. For Adafactor that is so where optax would factor the cut parameters otherwise; the size from
        which it factors is 128, its default, unless the state tells of another.
    """
    return _changed(take, graph, tree, plan)


def mask(graph: ChannelGraph, tree: Any, plan: Plan) -> Any:
    """Set every slice of the units to cut to zero, as a new tree of the same shapes.

    If these units are exact in `graph`, the network then gives the outputs of the cut network.

    Args:
      graph: of the network.
      tree: as for `cut`. Infinities and NaN in what goes do no harm.
      plan: which units survive.

    Raises:
      InputError: as for `cut`.
    """
    return _changed(blank, graph, tree, plan)


def restore(graph: ChannelGraph, plan: Plan, small: Any) -> Any:
    """Put a cut tree back into the full shapes, with zeros where units were cut.

    Args:
      graph: of the full network.
      plan: which units survived.
      small: what `cut` made of a tree, or the same later in training.

    Raises:
      InputError: as for `cut`.
    """
    return _changed(spread, graph, small, plan, is_cut=True)


def _changed(
    change: Callable[[Any, Sequence[Line | None]], Any],
    graph: ChannelGraph,
    tree: Any,
    plan: Plan,
    is_cut: bool = False,
) -> Any:
    """`tree` with `change(array, lines)` of each array that is one of the traced variables or stands beside one."""
    check_size(graph, plan.keep)
    keep = graph.survivors(plan.keep)
    lines = [[Line(np.flatnonzero(keep[units]), len(units)) for units in axes] for axes in graph.units]
    small = [tuple(len(line.kept) for line in axes) for axes in lines]
    before, after = (small, graph.shapes) if is_cut else (graph.shapes, small)

    found = graph.names.places(tree)
    check_factors(((np.shape(leaf), place) for _, leaf, place in found if place), graph.paths, before, after)
    hollow = graph.names.hollow(tree) if any(place is None and np.shape(leaf) for _, leaf, place in found) else set()
    beside = {copy[:-1] for copy in hollow | {place.copy for _, _, place in found if place and place.copy}}
    ends = {path[-1:] for path in graph.paths}  # one end of all paths is that of a box around each array
    leaves = []
    for path, leaf, place in found:
        shape = np.shape(leaf)
        own = _lines_along(shape, before[place.number], place, lines[place.number]) if place else None
        parent = path[: -2 if ends == {path[-1:]} else -1]
        if own is not None:
            leaves.append(change(leaf, own))
        elif place and graph.paths[place.number]:
            raise _misfit(path, shape, graph.paths[place.number], before[place.number], place)
        elif shape and jnp.issubdtype(leaf.dtype, jnp.inexact) and parent not in beside:
            advice = "cut the tree that was traced, or, if this is an optimizer's state, start it anew on the cut"
            raise InputError(
                f"{'/'.join(path)} {shape} is none of the traced variables; {advice} parameters: tx.init(small)."
            )
        else:
            leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _lines_along(shape: Shape, parameter: Shape, place: Place, lines: Sequence[Line]) -> Sequence[Line | None] | None:
    """What survives along each axis of an array beside a parameter; None if nobody can tell."""
    ways = [[None if axis is None else lines[axis] for axis in axes] for axes in axes_beside(shape, parameter, place)]
    different = {tuple(line and line.kept.tobytes() for line in way) for way in ways}
    return ways[0] if len(different) == 1 else None


def _misfit(path: Path, shape: Shape, own: Path, expected: Shape, place: Place) -> InputError:
    if place.copy:
        return uncuttable(f"{'/'.join(path)} has shape {shape}, beside {'/'.join(own)} of {expected}")
    traced = f"{'/'.join(own)} was traced with shape {expected}"
    return InputError(f"{'/'.join(path)} has shape {shape}, where {traced}; cut a tree of the network that was traced.")
