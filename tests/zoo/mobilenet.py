"""Mobile networks: Sandler et al. 2018, "MobileNetV2", and Howard et al. 2019, "Searching for MobileNetV3"."""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from . import Network, linen, normal


def divisible(width: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, at most a tenth below `width` (MobileNetV2, in its published code)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor


class Excitation(nn.Module):
    """Squeeze-and-excitation with a hard sigmoid, a quarter as wide as its input (Howard et al. 2019, section 5.3)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weights = x.mean(axis=(1, 2), keepdims=True)
        weights = nn.relu(nn.Conv(divisible(x.shape[-1] / 4, 4), (1, 1))(weights))
        return x * nn.hard_sigmoid(nn.Conv(x.shape[-1], (1, 1))(weights))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection (Sandler et al. 2018, figure 4)."""

    features: int
    strides: int
    expansion: float
    activation: Callable[[jax.Array], jax.Array] = nn.relu6
    kernel: int = 3
    excitation: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        inputs = x.shape[-1]
        hidden = divisible(inputs * self.expansion, 4)
        y = x
        if self.expansion > 1:
            y = nn.Conv(hidden, (1, 1), use_bias=False, name="expand")(y)
            y = self.activation(norm()(y))
        window = (self.kernel, self.kernel)
        y = nn.Conv(hidden, window, self.strides, feature_group_count=hidden, use_bias=False, name="depthwise")(y)
        y = self.activation(norm()(y))
        if self.excitation:
            y = Excitation()(y)
        y = nn.Conv(self.features, (1, 1), use_bias=False, name="project")(y)
        y = norm()(y)
        return x + y if self.strides == 1 and inputs == self.features else y


class MobileNetV2(nn.Module):
    """MobileNetV2 of four blocks (Sandler et al. 2018, table 2)."""

    multiplier: float = 0.5
    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        width = functools.partial(divisible, divisor=4)
        x = nn.Conv(width(16 * self.multiplier), (3, 3), use_bias=False)(x)
        x = nn.relu6(nn.BatchNorm(use_running_average=not train)(x))
        for features, strides, expansion in ((16, 1, 1), (24, 2, 4), (24, 1, 4), (32, 2, 4)):
            x = InvertedResidual(width(features * self.multiplier), strides, expansion)(x, train)
        x = nn.Conv(32, (1, 1), use_bias=False)(x)
        x = nn.relu6(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(self.classes)(x)


class MobileNetV3(nn.Module):
    """MobileNetV3 of four blocks: ReLU first, hard swish later, excitation in some (Howard et al. 2019, table 2)."""

    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.hard_swish(nn.BatchNorm(use_running_average=not train)(x))
        x = InvertedResidual(8, 1, 1, nn.relu, 3, True)(x, train)
        x = InvertedResidual(12, 2, 2.5, nn.relu, 3)(x, train)
        x = InvertedResidual(12, 1, 2.5, nn.hard_swish, 5, True)(x, train)
        x = InvertedResidual(16, 2, 2.5, nn.hard_swish, 5, True)(x, train)
        x = nn.Conv(32, (1, 1), use_bias=False)(x)
        x = nn.hard_swish(nn.BatchNorm(use_running_average=not train)(x))
        x = x.mean(axis=(1, 2), keepdims=True)
        x = nn.hard_swish(nn.Conv(32, (1, 1))(x))
        x = nn.Dropout(0.2, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.classes)(x)


EVAL, TRAIN = {"train": False}, {"train": True}
IMAGES = normal(2, 16, 16, 3)

NETWORKS: tuple[Network, ...] = (
    linen("mobilenet_v2", MobileNetV2(), IMAGES, call=EVAL, train=TRAIN),
    linen("mobilenet_v3", MobileNetV3(), IMAGES, call=EVAL, train=TRAIN),
)
