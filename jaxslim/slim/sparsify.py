"""L1 penalties that make scales small, as optax transforms for the parameters that a mask names."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxslim.core.paths import leaf_paths
from jaxslim.errors import InputError


def l1_subgradient(strength: float, mask: Any) -> optax.GradientTransformation:
    """Add `strength * sign(p)`, the subgradient of `strength * |p|`, to the updates of the masked parameters.

    Put it first in a chain, before weight decay and momentum. The loss then gains `strength * sum |scale|`, as in
    network slimming (Liu et al., ICCV 2017, equation 1).

    Args:
      strength: lambda of the paper; 1e-4 for VGG on CIFAR.
      mask: bools with the structure of the parameters (or a prefix of it), or a function that makes them from the
        parameters; see `bn_scale_mask` and `scale_mask`.

    Raises:
      InputError: `strength` is negative or not a number; later, `init` and `update` refuse a mask that does not fit the
        parameters or is true for none.

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

    Put it last in a chain: with update u, the parameter p becomes sign(p + u) max(|p + u| - rate * strength, 0). A
    scale that the loss does not need becomes exactly zero, and cutting it loses nothing but relu(bias); under
    `l1_subgradient` it jitters around zero (ISTA: Beck & Teboulle 2009, equation 1.4).

    Momentum m multiplies the pull of `l1_subgradient` by 1 / (1 - m), but not this one. So `l1_proximal` needs
    strength / (1 - m) to pull as hard as `l1_subgradient` with strength.

    Args:
      strength: lambda.
      learning_rate: a number, or a schedule: a function of the number of steps taken.
      mask: as for `l1_subgradient`.

    Raises:
      InputError: as for `l1_subgradient`, or the learning rate is negative or not a number.

    Example:
      >>> tx = optax.chain(optax.sgd(0.5), l1_proximal(1.0, 0.5, {"w": False, "scale": True}))
      >>> params = {"w": jnp.ones(2), "scale": jnp.array([0.4, -2.0])}
      >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> optax.apply_updates(params, updates)["scale"].tolist()
      [0.0, -1.5]
    """
    _check_strength(strength)
    if not callable(learning_rate) and not 0 <= learning_rate < math.inf:
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

    init = optax.scale_by_schedule(rate).init  # counts the steps
    return _masked(optax.GradientTransformation(init, update), mask)


def _check_strength(strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise InputError(f"The L1 strength is {strength!r}; it must be a number of at least 0, for example 1e-4.")


def _masked(transform: optax.GradientTransformation, mask: Any) -> optax.GradientTransformation:
    def checked(params: Any) -> Any:
        tree = mask(params) if callable(mask) else mask
        try:
            whole = jax.tree.map(lambda use, part: use, tree, params)
        except ValueError as error:
            advice = 'pass bn_scale_mask(variables) and use it with variables["params"].'
            raise InputError(f"The mask has another structure than the parameters; {advice}") from error
        if not any(jax.tree.leaves(whole)):
            scales = ["/".join(path) for path, _ in leaf_paths(params) if path[-1:] == ("scale",)]
            shown = ", ".join(scales[:4]) + (f" and {len(scales) - 4} more" if len(scales) > 4 else "")
            found = f"The parameters hold {f'the scales {shown}' if scales else 'no scales'}"
            problem = "The mask is true for no parameter, so L1 would pull on nothing."
            raise InputError(f"{problem} {found}; pass a mask of your own, or train without L1.")
        return whole

    return optax.masked(transform, checked)
