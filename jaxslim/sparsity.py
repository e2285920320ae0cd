"""The pull that makes BatchNorm scales small: optax transforms and the mask that aims them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxslim.errors import InputError


def l1_subgradient(strength: float, mask: Any) -> optax.GradientTransformation:
    """Add `strength * sign(p)`, the subgradient of `strength * |p|`, to the updates of the masked parameters.

    Put it first in a chain, before weight decay and momentum, to train as network slimming does (Liu et al., ICCV 2017,
    equation 1): the loss gains `strength * sum |scale|`.

    Args:
      strength: lambda of the paper; 1e-4 for VGG on CIFAR.
      mask: pytree of bools with the structure of the parameters (or a prefix of it), or a function from parameters to
        one; see `bn_scale_mask`.

    Raises:
      InputError: `strength` is negative or not a number.

    Example:
      >>> tx = optax.chain(l1_subgradient(0.5, {"w": False, "scale": True}), optax.sgd(1.0))
      >>> params = {"w": jnp.ones(1), "scale": -jnp.ones(1)}
      >>> updates, _ = tx.update({"w": jnp.zeros(1), "scale": jnp.zeros(1)}, tx.init(params), params)
      >>> updates["scale"].tolist(), abs(updates["w"]).tolist()
      ([0.5], [0.0])
    """
    _check_strength(strength)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise InputError("l1_subgradient needs the parameters: call update(gradients, state, params).")
        return jax.tree.map(lambda g, p: g + strength * jnp.sign(p).astype(g.dtype), updates, params), state

    return _masked(optax.GradientTransformation(lambda _: optax.EmptyState(), update), mask)


def l1_proximal(strength: float, learning_rate: optax.ScalarOrSchedule, mask: Any) -> optax.GradientTransformation:
    """Soft-threshold the masked parameters after each step, by `strength` times the learning rate (proximal L1).

    Put it last in a chain: with update u, the parameter p becomes sign(p + u) max(|p + u| - rate * strength, 0). Scales
    that the loss does not hold up become exactly zero and cutting those loses nothing but relu(bias), where the
    subgradient leaves them jittering around zero (ISTA: Beck & Teboulle 2009, equation 1.4).

    Momentum does not gather this pull as it gathers the subgradient's: under momentum m, strength / (1 - m) pulls as
    hard as `l1_subgradient(strength, ...)`.

    Args:
      strength: lambda.
      learning_rate: number, or schedule of the number of steps taken.
      mask: as of `l1_subgradient`.

    Raises:
      InputError: `strength` is negative or not a number.

    Example:
      >>> tx = optax.chain(optax.sgd(0.5), l1_proximal(1.0, 0.5, {"w": False, "scale": True}))
      >>> params = {"w": jnp.ones(2), "scale": jnp.array([0.4, -2.0])}
      >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> optax.apply_updates(params, updates)["scale"].tolist()
      [0.0, -1.5]
    """
    _check_strength(strength)
    if not callable(learning_rate) and not (_is_finite(learning_rate) and learning_rate >= 0):
        raise InputError(f"The learning rate is {learning_rate!r}; it must be a number of at least 0, or a schedule.")
    rate = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise InputError("l1_proximal needs the parameters: call update(gradients, state, params).")

        def shrink(u: jax.Array, p: jax.Array) -> jax.Array:
            after = p + u
            shrunk = jnp.sign(after) * jnp.maximum(jnp.abs(after) - rate(state.count) * strength, 0)
            return (shrunk - p).astype(u.dtype)

        return jax.tree.map(shrink, updates, params), optax.ScaleByScheduleState(count=state.count + 1)

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    return _masked(optax.GradientTransformation(init, update), mask)


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


def _check_strength(strength: float) -> None:
    if not (_is_finite(strength) and strength >= 0):
        raise InputError(f"The L1 strength is {strength!r}; it must be a number of at least 0, for example 1e-4.")


def _is_finite(value: Any) -> bool:
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf" and bool(np.isfinite(value))


def _masked(transform: optax.GradientTransformation, mask: Any) -> optax.GradientTransformation:
    def aimed(params: Any) -> Any:
        tree = mask(params) if callable(mask) else mask
        try:
            return jax.tree.map(lambda use, part: use, tree, params)
        except ValueError as error:
            raise InputError(
                "The mask has another structure than the parameters; pass bn_scale_mask(variables) and use it with "
                'variables["params"].'
            ) from error

    return optax.masked(transform, aimed)


def _paths(tree: Any, name: str) -> list[tuple[Any, ...]]:
    keys: Callable[[Any], tuple[Any, ...]] = tuple
    found = [keys(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [path[:-1] for path in found if path[-1:] == (jax.tree_util.DictKey(name),)]
