"""The scales of BatchNorm layers: the criterion of network slimming, and which parameters these are."""

import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.layers import channel_axis
from jaxslim.core.paths import Path, leaf_paths
from jaxslim.errors import InputError
from jaxslim.slim.criteria.units import Reduce, reduced


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


def scale_values(variables: Mapping[str, Any], mask: Any = None) -> np.ndarray:
    """The |scale| of all BatchNorm layers as one array (channels of all layers,); empty if there are none.

    `mask` has the structure of `params`, and is true for other vectors to take in place of these, such as gates.
    """
    scales = jax.device_get(jax.tree.leaves(_absolute_scales(variables, mask)))
    return np.concatenate([np.zeros(0, np.float32), *map(np.ravel, scales)])


def _absolute_scales(variables: Mapping[str, Any], mask: Any = None) -> Any:
    mask = bn_scale_mask(variables) if mask is None else mask
    return jax.tree.map(lambda use, p: jnp.abs(p) if use else None, mask, variables["params"])


def batch_scales(graph: ChannelGraph, variables: Any) -> Any:
    """|scale| of the BatchNorm layers that the trace finds, each at its path; None if no channel of theirs can go."""
    found: dict[str, Any] = {}
    any_goes = False
    for path, number, scales in _sizes(graph, variables, graph.batch_scales):
        place = functools.reduce(lambda node, name: node.setdefault(name, {}), path[:-1], found)
        place[path[-1]] = scales
        any_goes |= any(units.any() for units in graph.units[number])
    return found if any_goes else None


def _sizes(graph: ChannelGraph, variables: Any, wanted: Collection[int]) -> Iterator[tuple[Path, int, np.ndarray]]:
    """Path, number and |scale| of each vector of scales whose number in the graph is `wanted`."""
    for path, leaf in leaf_paths(variables):
        number = graph.find(path)
        if number is not None and number in wanted:
            yield path, number, np.abs(np.asarray(leaf, np.float64))


def bn_scale(graph: ChannelGraph, variables: Any, reduce: Reduce = "max") -> np.ndarray:
    """|scale| of the BatchNorm layers that a unit passes, in whatever framework (Liu et al., ICCV 2017, section 3).

    The trace tells which vectors these are: they multiply channels that the root of another vector, the running
    variance, has normalised.

    Args:
      graph: of the network, traced in evaluation, perhaps with further modes.
      variables: the traced variables, or those among them that hold the scales.
      reduce: what is made of several scales of a unit.

    Returns:
      (num_units + 1,) scores; -inf for units that pass no BatchNorm, which a plan leaves alone.

    Raises:
      InputError: the network has no BatchNorm scale whose channels can be cut.
    """
    scores = _of_units(graph, variables, graph.batch_scales, reduce)
    if scores is None:
        advice = "trace evaluation first, or take another criterion, such as magnitude"
        raise InputError(f"The network has no BatchNorm scale whose channels can be cut; {advice}.")
    return scores


def scale(graph: ChannelGraph, variables: Any, reduce: Reduce = "max") -> np.ndarray:
    """|scale| of all vectors that multiply a unit's channels: gates, layer scales, and the scales of any norm.

    For networks without BatchNorm whose scales were pulled on, as the gates of a fully connected network (Liu et al.,
    ICCV 2017, section 5.2).

    Args:
      graph: of the network.
      variables: the traced variables, or those among them that hold the scales.
      reduce: what is made of several scales of a unit.

    Returns:
      (num_units + 1,) scores; -inf for units that no such vector multiplies, which a plan leaves alone. A group of
      GroupNorm has those of its channels.

    Raises:
      InputError: no such vector multiplies channels that can be cut.
    """
    scores = _of_units(graph, variables, graph.scales, reduce)
    if scores is None:
        raise InputError(
            "The network has no vector that multiplies channels; take another criterion, such as magnitude."
        )
    return scores


def pulled_scale(graph: ChannelGraph, variables: Any) -> Any:
    """What a network is cut by that was trained with L1: `batch_scales`, or without BatchNorm `scale`."""
    found = batch_scales(graph, variables)
    return scale(graph, variables) if found is None else found


def _of_units(graph: ChannelGraph, variables: Any, wanted: Collection[int], reduce: Reduce) -> np.ndarray | None:
    """Scores of all units by the vectors `wanted`; None if these multiply no channel that can be cut."""
    found = []
    for _, number, scales in _sizes(graph, variables, wanted):
        axis = channel_axis(graph.shapes[number]) or 0
        rows = np.moveaxis(scales, axis, 0)  # a scan stacks those of its rounds
        found.append((graph.units[number][axis], rows.reshape(len(rows), -1).max(1)))
    scored = np.unique(np.concatenate([np.zeros(0, np.int64), *(units for units, _ in found)]))
    if not scored.any():
        return None
    scores = np.full(graph.num_units + 1, -np.inf)
    scores[scored] = reduced(graph, iter(found), reduce, along=False)[scored]
    # A row or a column of a grid, such as a group of GroupNorm, has the scales of its elements.
    elements = reduced(graph, iter([(scored, np.ones(len(scored)))]), "max") > 0
    lines = (graph.places > 0) & elements & np.isneginf(scores)
    scores[lines] = reduced(graph, iter(found), reduce)[lines]
    scores[0] = 0
    return scores
