"""The scales of BatchNorm layers: the criterion of network slimming, and which parameters these are."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.layers import channel_axis
from jaxslim.core.paths import leaf_paths
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
    found = []
    for path, leaf in leaf_paths(variables):
        number = graph.find(path)
        if number is not None and number in graph.batch_scales:
            axis = channel_axis(graph.shapes[number]) or 0
            found.append((graph.units[number][axis], np.abs(np.asarray(leaf, np.float64)).reshape(-1)))
    scored = np.unique(np.concatenate([np.zeros(0, np.int64), *(units for units, _ in found)]))
    if not scored.any():
        advice = "trace evaluation first, or take another criterion, such as magnitude"
        raise InputError(f"The network has no BatchNorm scale whose channels can be cut; {advice}.")
    scores = np.full(graph.num_units + 1, -np.inf)
    scores[scored] = reduced(graph, iter(found), reduce, along=False)[scored]
    scores[0] = 0
    return scores
