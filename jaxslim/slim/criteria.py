"""Criteria: what scores the channels of a network. Today that is the scale of BatchNorm."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.graph import leaf_paths
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
