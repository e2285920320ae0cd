"""Criteria: what scores the channels of a network, by the scale of BatchNorm or by the size of the weights."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.groups import going_along
from jaxslim.core.paths import Path, leaf_paths
from jaxslim.errors import InputError


def bn_scale_mask(variables: Mapping[str, Any]) -> Any:
    """Bools with the structure of `variables["params"]`, true for the scales of BatchNorm layers.

    A BatchNorm layer has running statistics: `batch_stats` holds a mean at the path where `params` holds the scale. So
    the scales of other norms are False.

    Raises:
      InputError: `variables` is no mapping with `params`.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError("The variables have no params; pass all that module.init returns, batch_stats included.")
    means = {path[:-1] for path, _ in leaf_paths(variables.get("batch_stats", {})) if path[-1:] == ("mean",)}
    params = variables["params"]
    found = [path[-1:] == ("scale",) and path[:-1] in means for path, _ in leaf_paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def scale_mask(graph: ChannelGraph, params: Any, *, batch_only: bool = False) -> Any:
    """Bools with the structure of `params`, true for the vectors that multiply channels which can be cut.

    The graph knows them by what the network computes: the scales of all norms, and layer scales, under any name. Use it
    as the mask of `l1_subgradient` and `l1_proximal`: network slimming (Liu et al., ICCV 2017, section 3) then needs no
    BatchNorm. In place of a mask, both also take the function `functools.partial(scale_mask, graph)`.

    Args:
      graph: of the network.
      params: the traced variables, or some of them, at the same paths.
      batch_only: whether to take the scales of BatchNorm alone, by which the running variance of their layer divides.

    Returns:
      The mask.

    Raises:
      InputError: `params` holds no such vector.

    Example:
      >>> from jaxslim import trace
      >>> params = {"a": np.ones((4, 8)), "gain": np.ones(8), "b": np.ones((8, 2))}
      >>> graph = trace(lambda p, x: jax.nn.relu(p["gain"] * (x @ p["a"])) @ p["b"], params, np.ones((4,)))
      >>> scale_mask(graph, params)
      {'a': False, 'b': False, 'gain': True}
    """
    scales = set(graph.batch_scales if batch_only else graph.scales)
    usable = {number for number in scales if any(units.any() for units in graph.units[number])}
    mask = [leaf_number(graph, path) in usable for path, _ in leaf_paths(params)]
    if not any(mask):
        names = ", ".join("/".join(graph.paths[number]) for number in sorted(usable)[:4])
        kind = "scale of a BatchNorm" if batch_only else "scale vector"
        problem = f"The parameters hold no {kind} whose channels can be cut"
        other = "pull on whole units with group_lasso_subgradient, or pass a mask of your own"
        raise InputError(f"{problem}; {f'pass those that hold {names}' if names else other}.")
    return jax.tree.unflatten(jax.tree.structure(params), mask)


def leaf_number(graph: ChannelGraph, path: Path) -> int | None:
    """`graph.find`, also for a path without the last name of an NNX variable: `nnx.Optimizer` takes that name away."""
    number = graph.find(path)
    return graph.find((*path, "value")) if number is None else number


def bn_scales(variables: Mapping[str, Any]) -> Any:
    """|scale| of every BatchNorm layer, the channel score of network slimming (Liu et al., ICCV 2017, section 3).

    Args:
      variables: `params` and `batch_stats` of a Linen module.

    Returns:
      The collection `params` with nothing but these scores, one array (channels,) for each layer.

    Raises:
      InputError: no BatchNorm layer has a scale.
    """
    scores = _absolute_scales(variables)
    if not jax.tree.leaves(scores):
        problem = "The variables hold no BatchNorm scale (a scale in params beside a mean in batch_stats)"
        raise InputError(f"{problem}; pass both collections, or give plan() scores of your own.")
    return {"params": scores}


def scale_values(variables: Mapping[str, Any]) -> np.ndarray:
    """The |scale| of all BatchNorm layers as one array (channels of all layers,); empty if there are none."""
    scales = jax.device_get(jax.tree.leaves(_absolute_scales(variables)))
    return np.concatenate([np.zeros(0, np.float32), *map(np.ravel, scales)])


def _absolute_scales(variables: Mapping[str, Any]) -> Any:
    return jax.tree.map(lambda use, p: jnp.abs(p) if use else None, bn_scale_mask(variables), variables["params"])


def known_bn_scales(variables: Any) -> Any:
    """`bn_scales`, or None where there are none."""
    try:
        return bn_scales(variables)
    except InputError:
        return None


def magnitude(graph: ChannelGraph, variables: Any) -> np.ndarray:
    """The size of the weights of each unit: the root of the mean square of all elements that go with it.

    A kernel counts for the units that come into it and for those that come out. Li et al. (ICLR 2017, section 3.1) rank
    filters by the sum of their weights' sizes; the mean makes units with different numbers of elements comparable.

    Args:
      graph: of the network.
      variables: the traced variables, or those among them that are to count, at the same paths. Only floats count.

    Returns:
      (num_units + 1,) scores for `plan`; 0 for unit 0 and for units without elements.
    """
    sums = np.zeros((graph.num_units + 1, 2))  # of squares, and of elements
    for path, leaf in leaf_paths(variables):
        number = graph.find(path)
        if number is not None and jnp.issubdtype(leaf.dtype, jnp.inexact):
            square = np.square(np.abs(np.asarray(leaf)).astype(np.float64))
            for axis, units in enumerate(graph.units[number]):
                along = np.moveaxis(square, axis, 0).reshape(len(units), -1)
                np.add.at(sums, units, np.stack([along.sum(1), np.full(len(units), along.shape[1])], axis=1))
    sums[0] = 0
    squares, elements = (going_along(graph) @ sums).T
    return np.sqrt(squares / np.maximum(elements, 1))
