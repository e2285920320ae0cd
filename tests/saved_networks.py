"""Networks that are saved in one process and loaded in another."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx


class Linen(nn.Module):
    """Its fields are of kinds that no metadata can describe."""

    act: Callable[[Any], Any] = nn.relu
    more: Any = dataclasses.field(default_factory=lambda: {"hidden": 6})

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = self.act(nn.BatchNorm(use_running_average=not train)(x)).mean((1, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(self.act(nn.Dense(self.more["hidden"])(x)))


class Layers(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.conv, self.norm = nnx.Conv(2, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.List([nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])

    def __call__(self, x: Any) -> Any:
        x = self.dropout(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))
        return self.dense[1](nnx.relu(self.dense[0](x)))


class Weights(NamedTuple):
    """Fields in another order than the alphabet's."""

    last: Any
    first: Any
    key: Any


def function(weights: Weights, inputs: Any) -> Any:
    """Draws from a key of its own, and reads dicts, lists and nothing."""
    x, shift = inputs["image"].mean((1, 2)), inputs["shift"]
    for kernel in weights.first:
        x = jnp.tanh(x @ kernel)
    noise = jax.random.uniform(weights.key, (1, 3))
    return {"logits": x @ weights.last["kernel"] + shift[0] + 0 * noise, "none": None, "pair": (x.sum(1), noise)}


def images(batch: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 6, 6, 2)).astype(np.float32)


def dict_inputs(batch: int = 4) -> Any:
    return {"image": images(batch), "shift": [np.ones((batch, 3), np.float32)]}


def weights(seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Weights({"kernel": draw(5, 3)}, [draw(2, 7), draw(7, 5)], jax.random.key(seed))
