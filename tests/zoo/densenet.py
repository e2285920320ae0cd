"""Densely connected networks after Huang et al. 2017, "Densely Connected Convolutional Networks"."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from . import Network, linen, normal


class DenseLayer(nn.Module):
    """Adds `growth` channels to its input; a 1x1 convolution comes first in the bottleneck form (section 3)."""

    growth: int
    bottleneck: bool
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        y = nn.relu(norm()(x))
        if self.bottleneck:
            y = nn.Conv(4 * self.growth, (1, 1), use_bias=False)(y)
            y = nn.relu(norm()(y))
        y = nn.Conv(self.growth, (3, 3), use_bias=False)(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Between blocks: a 1x1 convolution to a share of the channels, then average pooling (section 3)."""

    compression: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = int(x.shape[-1] * self.compression)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(width, (1, 1), use_bias=False)(x)
        return nn.avg_pool(x, (2, 2), (2, 2))


class DenseNet(nn.Module):
    """Dense blocks with transitions between (Huang et al. 2017); DenseNet-BC with bottlenecks and compression."""

    blocks: tuple[int, ...]
    stem: int
    growth: int
    bottleneck: bool
    compression: float
    dropout: float = 0.2
    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.Conv(self.stem, (3, 3), use_bias=False)(x)
        for number, layers in enumerate(self.blocks):
            if number > 0:
                x = Transition(self.compression)(x, train)
            for _ in range(layers):
                x = DenseLayer(self.growth, self.bottleneck, self.dropout)(x, train)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


EVAL, TRAIN = {"train": False}, {"train": True}
IMAGES = normal(2, 8, 8, 3)

NETWORKS: tuple[Network, ...] = (
    linen("densenet", DenseNet((4,), 8, 4, bottleneck=False, compression=1.0), IMAGES, call=EVAL, train=TRAIN),
    linen("densenet_bc", DenseNet((2, 2), 8, 4, bottleneck=True, compression=0.5), IMAGES, call=EVAL, train=TRAIN),
)
