"""Modernised convolutional networks after Liu et al. 2022, "A ConvNet for the 2020s", and Woo et al. 2023."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from . import Network, linen, normal


class LayerScale(nn.Module):
    """A learned factor for each channel, small at first (Touvron et al. 2021, "Going deeper with Transformers")."""

    initial: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma[None, None, None, :]


class GlobalResponse(nn.Module):
    """Global response normalisation: each channel's norm over the mean of all (Woo et al. 2023, "ConvNeXt V2")."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, 1, x.shape[-1])
        gamma = self.param("gamma", nn.initializers.zeros, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        norms = jnp.sqrt(jnp.square(x).sum(axis=(1, 2), keepdims=True) + self.epsilon)
        response = norms / (norms.mean(axis=-1, keepdims=True) + self.epsilon)
        return gamma * (x * response) + beta + x


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, two dense layers with GELU, then a layer scale or a response norm (figure 4)."""

    drop: float
    response: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), feature_group_count=width)(x)
        y = nn.LayerNorm()(y)
        y = nn.gelu(nn.Dense(4 * width)(y))
        if self.response:
            y = GlobalResponse()(y)
        y = nn.Dense(width)(y)
        if not self.response:
            y = LayerScale()(y)
        return x + nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=not train)(y)


class ConvNeXt(nn.Module):
    """Patches, stages with a norm and a strided convolution between, norm, classifier (Liu et al. 2022, table 9)."""

    response: bool
    features: tuple[int, ...] = (8, 16)
    drop: float = 0.1
    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        for stage, features in enumerate(self.features):
            if stage == 0:
                x = nn.LayerNorm()(nn.Conv(features, (2, 2), 2)(x))
            else:
                x = nn.Conv(features, (2, 2), 2)(nn.LayerNorm()(x))
            for _ in range(2):
                x = Block(self.drop, self.response)(x, train)
        return nn.Dense(self.classes)(nn.LayerNorm()(x.mean(axis=(1, 2))))


EVAL, TRAIN = {"train": False}, {"train": True}
IMAGES = normal(2, 16, 16, 3)

NETWORKS: tuple[Network, ...] = (
    linen("convnext", ConvNeXt(response=False), IMAGES, call=EVAL, train=TRAIN, mutable=()),
    linen("convnext_v2", ConvNeXt(response=True), IMAGES, call=EVAL, train=TRAIN, mutable=()),
)
