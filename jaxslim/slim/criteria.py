"""Which parameters score channels, and how: today the scales of BatchNorm."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.errors import InputError


def bn_scale_mask(variables: Mapping[str, Any]) -> Any:
    """Bools with the structure of `variables["params"]`, true for the scales of BatchNorm layers.

    A BatchNorm layer is one that has running statistics: `batch_stats` holds a mean at the path where `params` holds a
    scale. Scales of other norms are left alone.

    Raises:
      InputError: the variables are no mapping with `params`.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError("The variables have no params; pass all that module.init returns, batch_stats included.")
    layers = set(_paths(variables.get("batch_stats", {}), "mean"))
    params = variables["params"]

    def is_scale(path: Any, _: Any) -> bool:
        return path[-1:] == (jax.tree_util.DictKey("scale"),) and tuple(path[:-1]) in layers

    return jax.tree_util.tree_map_with_path(is_scale, params)


def bn_scales(variables: Mapping[str, Any]) -> Any:
    """|scale| of every BatchNorm layer, the channel score of network slimming (Liu et al., ICCV 2017, section 3).

    Args:
      variables: `params` and `batch_stats` of a Linen module.

    Returns:
      The `params` collection with only the scales in it, each an array (channels,) of scores.

    Raises:
      InputError: there is no BatchNorm layer with a scale.
    """
    mask = bn_scale_mask(variables)
    scores = jax.tree.map(lambda use, p: jnp.abs(p) if use else None, mask, variables["params"])
    if not jax.tree.leaves(scores):
        raise InputError(
            "The variables hold no BatchNorm scale (a scale in params beside a mean in batch_stats); "
            "pass both collections, or give plan() scores of your own."
        )
    return {"params": scores}


def scale_values(variables: Any) -> np.ndarray:
    """All |scale| of a network's BatchNorm layers, one after another."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.device_get(jax.tree.leaves(bn_scales(variables)))])


def _paths(tree: Any, name: str) -> list[tuple[Any, ...]]:
    keys: Callable[[Any], tuple[Any, ...]] = tuple
    found = [keys(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [path[:-1] for path in found if path[-1:] == (jax.tree_util.DictKey(name),)]
