"""Taking units out of pytrees of arrays: parameters, statistics and optimizer state alike."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.graph import ChannelGraph, leaf_paths
from jaxslim.core.plan import Plan
from jaxslim.errors import InputError


def cut(graph: ChannelGraph, tree: Any, plan: Plan) -> Any:
    """Take the surviving indices out of every array of `tree`, as a new tree.

    Args:
      graph: of the network.
      tree: the traced variables, one of their collections, or optimizer state over either. Leaves are matched by path;
        arrays of floats that match none are refused, scalars and other leaves stay as they are.
      plan: which units survive.

    Raises:
      InputError: an array that is not one of the traced variables, or of another shape.
    """

    def narrow(leaf: Any, number: int) -> Any:
        for axis, units in enumerate(graph.units[number]):
            survives = plan.keep[units]
            if not survives.all():
                leaf = _take(leaf, np.flatnonzero(survives), axis)
        return leaf

    return _map_traced(narrow, graph, tree, plan)


def zero(graph: ChannelGraph, tree: Any, plan: Plan) -> Any:
    """Set the units to cut to zero in every vector (scale, bias, statistic) of `tree`; shapes stay.

    If these units are exact in `graph`, the network then gives the logits of the cut network.
    """

    def blank(leaf: Any, number: int) -> Any:
        return leaf * plan.keep[graph.units[number][-1]].astype(leaf.dtype) if graph.vectors[number] else leaf

    return _map_traced(blank, graph, tree, plan)


def check_size(graph: ChannelGraph, plan: Plan) -> None:
    """Refuse a plan that is for another number of units than the graph has."""
    if len(plan.keep) != graph.num_units + 1:
        sizes = f"The plan is for {len(plan.keep) - 1} units and the graph has {graph.num_units}"
        raise InputError(f"{sizes}; trace the network that the plan was made for.")


def _map_traced(change: Callable[[Any, int], Any], graph: ChannelGraph, tree: Any, plan: Plan) -> Any:
    """`tree` with `change(leaf, number)` for each array that is number `number` of the traced variables."""
    check_size(graph, plan)
    leaves, unnamed, collections = [], set(), set()
    for path, leaf in leaf_paths(tree):
        number, shape = graph.find(path), np.shape(leaf)
        if not shape or (number is None and not jnp.issubdtype(leaf.dtype, jnp.floating)):
            leaves.append(leaf)
        elif number is None:
            raise InputError(f"{'/'.join(path)} {shape} is none of the traced variables; cut the tree that was traced.")
        elif shape != graph.shapes[number]:
            traced = f"{'/'.join(graph.paths[number])} was traced with shape {graph.shapes[number]}"
            advice = "cut a tree of the network that was traced."
            raise InputError(f"{'/'.join(path)} has shape {shape}, where {traced}; {advice}")
        else:
            leaves.append(change(leaf, number))
            if path and path == graph.paths[number][1:]:
                unnamed.add(number)
                collections.add(graph.paths[number][:1])
    # A tree without the name of its collection must be the whole: a part could be taken for another part.
    for number, path in enumerate(graph.paths):
        if path[:1] in collections and number not in unnamed:
            raise InputError(f"The tree lacks {'/'.join(path)}; cut the traced variables or a whole collection.")
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _take(leaf: Any, indices: np.ndarray, axis: int) -> Any:
    if isinstance(leaf, np.ndarray):
        return np.take(leaf, indices, axis)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*leaf.shape[:axis], len(indices), *leaf.shape[axis + 1 :]), leaf.dtype)
    if not isinstance(leaf, jax.core.Tracer) and leaf.sharding.is_fully_replicated:
        # On the host, since each new shape would be compiled: 2 s for VGG-19 against 0.1 s.
        return jax.device_put(np.take(np.asarray(leaf), indices, axis), leaf.sharding)
    return jnp.take(leaf, indices, axis)
