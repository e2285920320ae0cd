"""Pre-activation residual networks after He et al. 2016, "Identity Mappings in Deep Residual Networks"."""

import functools
from typing import Any

import jax
from flax import linen as nn

from . import Network, linen, normal


class PreBottleneck(nn.Module):
    """Norm and ReLU before each of three convolutions; a projection reads the raw input (He et al. 2016, figure 1b)."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        outputs = 4 * self.features
        y = nn.relu(norm()(x))
        y = nn.Conv(self.features, (1, 1), use_bias=False)(y)
        y = nn.relu(norm()(y))
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(y)
        y = nn.relu(norm()(y))
        y = nn.Conv(outputs, (1, 1), use_bias=False)(y)
        if self.strides > 1 or x.shape[-1] != outputs:
            x = nn.Conv(outputs, (1, 1), self.strides, use_bias=False, name="projection")(x)
        return x + y


class WideBlock(nn.Module):
    """Two 3x3 convolutions with dropout between; a projection reads the activated input.

    Zagoruyko and Komodakis 2016, "Wide Residual Networks", figure 1d.
    """

    features: int
    strides: int
    dropout: float = 0.3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        active = nn.relu(norm()(x))
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(active)
        y = nn.relu(norm()(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
        if self.strides > 1 or x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), self.strides, use_bias=False, name="projection")(active)
        return x + y


class PreResNet(nn.Module):
    """Three stages at full, half and quarter resolution, and a norm in front of the classifier (He et al. 2016)."""

    block: Any
    blocks: int
    features: tuple[int, int, int]
    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        for stage, features in enumerate(self.features):
            for number in range(self.blocks):
                strides = 2 if stage > 0 and number == 0 else 1
                x = self.block(features, strides)(x, train)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


EVAL, TRAIN = {"train": False}, {"train": True}
IMAGES = normal(2, 8, 8, 3)

NETWORKS: tuple[Network, ...] = (
    linen("preresnet_bottleneck", PreResNet(PreBottleneck, 2, (4, 6, 8)), IMAGES, call=EVAL, train=TRAIN),
    linen("wide_resnet", PreResNet(WideBlock, 1, (16, 24, 32)), IMAGES, call=EVAL, train=TRAIN),
)
