"""Mixed depthwise kernels after Tan and Le 2019, "MixConv: Mixed Depthwise Convolutional Kernels"."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from . import Network, linen, normal


def shares(width: int, groups: int) -> list[int]:
    """Sizes of the groups of channels: equal, but for the first, which takes what is left over (section 3.2)."""
    size = width // groups
    return [width - size * (groups - 1), *[size] * (groups - 1)]


def split(x: jax.Array, groups: int) -> list[jax.Array]:
    """The groups of channels of `x`."""
    return jnp.split(x, np.cumsum(shares(x.shape[-1], groups))[:-1], axis=-1)


class MixConv(nn.Module):
    """A depthwise convolution with another kernel size for each group of channels (figure 2)."""

    kernels: tuple[int, ...]
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = []
        for kernel, part in zip(self.kernels, split(x, len(self.kernels)), strict=True):
            width = part.shape[-1]
            conv = nn.Conv(width, (kernel, kernel), self.strides, feature_group_count=width, use_bias=False)
            outputs.append(conv(part))
        return jnp.concatenate(outputs, axis=-1)


class GroupedPointwise(nn.Module):
    """1x1 convolutions, one for each group of channels, concatenated."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        widths = shares(self.features, self.groups)
        parts = split(x, self.groups)
        outputs = [nn.Conv(n, (1, 1), use_bias=False)(part) for n, part in zip(widths, parts, strict=True)]
        return jnp.concatenate(outputs, axis=-1)


class MixBlock(nn.Module):
    """An inverted residual with a mixed convolution and squeeze-and-excitation (section 4)."""

    features: int
    strides: int
    expansion: int
    kernels: tuple[int, ...]
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        inputs = x.shape[-1]
        y = GroupedPointwise(inputs * self.expansion, self.groups, name="expand")(x)
        y = nn.swish(norm()(y))
        y = MixConv(self.kernels, self.strides)(y)
        y = nn.swish(norm()(y))
        weights = y.mean(axis=(1, 2), keepdims=True)
        weights = nn.swish(nn.Conv(inputs // 2, (1, 1), name="squeeze")(weights))
        y = y * nn.sigmoid(nn.Conv(y.shape[-1], (1, 1), name="excite")(weights))
        y = GroupedPointwise(self.features, self.groups, name="project")(y)
        y = norm()(y)
        return x + y if self.strides == 1 and inputs == self.features else y


class MixNet(nn.Module):
    """MixNet of three blocks (Tan and Le 2019, figure 5)."""

    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.Conv(10, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = MixBlock(10, 1, 2, (3, 5, 7), 1)(x, train)
        x = MixBlock(12, 2, 2, (3, 5), 2)(x, train)
        x = MixBlock(12, 1, 2, (3, 5, 7), 2)(x, train)
        x = nn.Conv(32, (1, 1), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(self.classes)(x)


NETWORKS: tuple[Network, ...] = (
    linen("mixnet", MixNet(), normal(2, 16, 16, 3), call={"train": False}, train={"train": True}),
)
