"""Networks that shuffle channels: Zhang et al. 2018, "ShuffleNet", and Ma et al. 2018, "ShuffleNet V2"."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from . import Network, linen, normal


def shuffled(x: jax.Array, groups: int) -> jax.Array:
    """Channels in an order that takes one of each group in turn (Zhang et al. 2018, section 3.1)."""
    *places, width = x.shape
    x = x.reshape(*places, groups, width // groups)
    return jnp.swapaxes(x, -1, -2).reshape(*places, width)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; a strided unit concatenates its pooled input (figure 2)."""

    features: int
    strides: int
    groups: int
    first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        hidden = self.features // 4
        outputs = self.features if self.strides == 1 else self.features - x.shape[-1]
        y = nn.Conv(hidden, (1, 1), feature_group_count=1 if self.first else self.groups, use_bias=False)(x)
        y = nn.relu(norm()(y))
        y = shuffled(y, self.groups)
        y = nn.Conv(hidden, (3, 3), self.strides, feature_group_count=hidden, use_bias=False)(y)
        y = norm()(y)
        y = nn.Conv(outputs, (1, 1), feature_group_count=self.groups, use_bias=False)(y)
        y = norm()(y)
        if self.strides == 1:
            return nn.relu(x + y)
        pooled = nn.avg_pool(x, (3, 3), (2, 2), "SAME")
        return nn.relu(jnp.concatenate([pooled, y], axis=-1))


class ShuffleNet(nn.Module):
    """ShuffleNet of two stages with three groups (Zhang et al. 2018, table 1)."""

    groups: int = 3
    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.Conv(12, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = ShuffleUnit(24, 2, self.groups, first=True)(x, train)
        x = ShuffleUnit(24, 1, self.groups)(x, train)
        x = ShuffleUnit(48, 2, self.groups)(x, train)
        x = ShuffleUnit(48, 1, self.groups)(x, train)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


class SplitUnit(nn.Module):
    """One half of the channels passes by; a strided unit has two branches instead (Ma et al. 2018, figure 3)."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        half = self.features // 2
        if self.strides == 1:
            by, y = jnp.split(x, 2, axis=-1)
        else:
            width = x.shape[-1]
            by = nn.Conv(width, (3, 3), self.strides, feature_group_count=width, use_bias=False)(x)
            by = nn.Conv(half, (1, 1), use_bias=False)(norm()(by))
            by, y = nn.relu(norm()(by)), x
        y = nn.Conv(half, (1, 1), use_bias=False)(y)
        y = nn.relu(norm()(y))
        y = nn.Conv(half, (3, 3), self.strides, feature_group_count=half, use_bias=False)(y)
        y = nn.Conv(half, (1, 1), use_bias=False)(norm()(y))
        y = nn.relu(norm()(y))
        return shuffled(jnp.concatenate([by, y], axis=-1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2 of two stages (Ma et al. 2018, table 5)."""

    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.Conv(12, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for features in (16, 24):
            x = SplitUnit(features, 2)(x, train)
            x = SplitUnit(features, 1)(x, train)
        x = nn.Conv(32, (1, 1), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


EVAL, TRAIN = {"train": False}, {"train": True}
IMAGES = normal(2, 16, 16, 3)

NETWORKS: tuple[Network, ...] = (
    linen("shufflenet", ShuffleNet(), IMAGES, call=EVAL, train=TRAIN, stops=("reshape",)),
    linen("shufflenet_v2", ShuffleNetV2(), IMAGES, call=EVAL, train=TRAIN),
)
