"""Rates, optimizer and loss that a configuration names."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxslim.core.graph import ChannelGraph
from jaxslim.errors import InputError, first_line
from jaxslim.slim.group_lasso import group_lasso_proximal, group_lasso_subgradient
from jaxslim.slim.sparsify import l1_proximal, l1_subgradient
from jaxslim.training.config import TrainConfig


def learning_rates(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """The rate of each step. A stepped one falls by `lr_drop_factor` at the first epoch that starts at or after each of
    the shares `lr_drops` of the run."""
    total = config.epochs * steps_per_epoch
    rising = round(config.warmup * total)
    if config.schedule == "cosine":
        start = config.learning_rate / (rising + 1)
        return optax.warmup_cosine_decay_schedule(start, config.learning_rate, rising, total)
    if config.schedule == "one-cycle":
        return optax.cosine_onecycle_schedule(total, config.learning_rate)
    factors: dict[int, float] = {}
    for drop in config.lr_drops:
        epoch = math.ceil(round(drop * config.epochs, 6))  # 0.55 * 100 is a little above 55
        boundary = epoch * steps_per_epoch
        factors[boundary] = factors.get(boundary, 1.0) * config.lr_drop_factor
    falling = optax.piecewise_constant_schedule(config.learning_rate, factors)
    rise = optax.linear_schedule(1 / (rising + 1), 1.0, rising)
    return (lambda step: rise(step) * falling(step)) if rising else falling


def optimizer(
    config: TrainConfig, rate: optax.Schedule, scale_mask: Any, graph: ChannelGraph | None = None, steps: int = 0
) -> optax.GradientTransformation:
    """The optax chain of a configuration: subgradients, weight decay, the optimizer, proximal steps.

    With the defaults and `l1`, this is SGD as the PyTorch reference does it. `scale_mask` has the structure of the
    parameters and is true for the scales that L1 pulls on; without `decay_scales`, weight decay spares them. Group
    lasso needs the graph of the network, and the steps of the whole run if its strength grows. With `accumulate`, all
    of it happens once in so many steps, on the mean of their gradients.
    """
    every = config.accumulate
    if every > 1:
        one, slower = dataclasses.replace(config, accumulate=1), lambda count: rate(count * every)
        once = optimizer(one, slower, scale_mask, graph, steps // every)
        return optax.MultiSteps(once, every).gradient_transformation()
    make = getattr(optax, config.optimizer, None)
    if not callable(make) or "learning_rate" not in inspect.signature(make).parameters:
        raise InputError(f"optimizer is {config.optimizer!r}; it must be one of optax's, for example sgd or adamw.")
    takes = inspect.signature(make).parameters
    decayed = None if config.decay_scales else jax.tree.map(lambda is_scale: not is_scale, scale_mask)
    arguments: dict[str, Any] = {"momentum": config.momentum, "weight_decay": config.weight_decay, "mask": decayed}
    arguments = {name: value for name, value in arguments.items() if name in takes} | dict(config.optimizer_args)
    before, after = [], []
    gathered = 1 - config.momentum if "momentum" in takes else 1
    if config.l1 and config.l1_method == "proximal":
        after = [l1_proximal(config.l1 / gathered, rate, scale_mask)]
    elif config.l1:
        before = [l1_subgradient(config.l1, scale_mask)]
    if "weight_decay" not in takes:
        before.append(optax.add_decayed_weights(config.weight_decay, decayed))
    try:
        links = [*before, make(rate, **arguments), *after]
        chain = optax.chain(*links)
        params = jax.tree.map(lambda _: jnp.zeros(2), scale_mask)
        jax.eval_shape(lambda p: chain.update(p, chain.init(p), p), params)  # or the first step would fail
    except InputError:
        raise
    except Exception as error:  # whatever optax and JAX find wrong
        known = ", ".join(name for name in takes if name != "learning_rate")
        raise InputError(
            f"optimizer {config.optimizer} cannot be used with the optimizer_args {dict(config.optimizer_args)} "
            f"({first_line(error)}); its arguments are {known}."
        ) from error
    if not (config.group_lasso and graph):
        return chain
    if config.l1_method == "proximal":
        return optax.chain(*links, group_lasso_proximal(_growing(config, steps, 1 / gathered), rate, graph))
    return optax.chain(group_lasso_subgradient(_growing(config, steps), graph), *links)


def _growing(config: TrainConfig, steps: int, factor: float = 1.0) -> optax.Schedule:
    """The strength of group lasso at each step of the run, times a factor."""
    strength, over = factor * config.group_lasso, round(config.group_lasso_growth * steps)
    return optax.linear_schedule(0.0, strength, over) if over else optax.constant_schedule(strength)


def moving_average(average: Any, new: Any, decay: float, step: Any) -> Any:
    """The exponential moving average after `step` steps; all but floating-point numbers is taken over from `new`.

    The first steps count more: the decay is at most (1 + step) / (10 + step), as in TensorFlow's moving averages.
    """
    weight = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    moved = optax.incremental_update(*(jax.tree.map(_floating, tree) for tree in (new, average)), weight)
    return jax.tree.map(lambda own, other: other if own is None else own, moved, new, is_leaf=lambda leaf: leaf is None)


def _floating(leaf: Any) -> Any:
    return leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None


def losses(config: TrainConfig) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss that a configuration names: a function of logits (n, classes) and labels (n,) that gives losses (n,)."""
    smoothing = config.label_smoothing

    def targets(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)

    if config.loss == "focal":
        return lambda logits, labels: optax.sigmoid_focal_loss(logits, targets(logits, labels)).sum(-1)
    if config.loss == "squared-error":
        return lambda logits, labels: optax.squared_error(logits, targets(logits, labels)).sum(-1)
    if smoothing:
        return lambda logits, labels: optax.softmax_cross_entropy(logits, targets(logits, labels))
    return optax.softmax_cross_entropy_with_integer_labels
