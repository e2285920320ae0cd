"""The pull that makes BatchNorm scales small: optax transforms and the mask that aims them."""

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
