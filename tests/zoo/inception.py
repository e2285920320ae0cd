"""Networks of parallel branches after Szegedy et al. 2015, "Rethinking the Inception Architecture"."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from . import Network, linen, normal


class ConvNorm(nn.Module):
    """Convolution, BatchNorm without a scale, ReLU."""

    features: int
    kernel: tuple[int, int]
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(self.features, self.kernel, self.strides, use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, use_scale=False)(x))


class Mixed(nn.Module):
    """Branches of 1x1, of 3x3, of two 3x3, and of max-pooling with 1x1, concatenated (figure 5)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        one = ConvNorm(self.features, (1, 1))(x, train)
        three = ConvNorm(self.features // 2, (1, 1))(x, train)
        three = ConvNorm(self.features, (3, 3))(three, train)
        five = ConvNorm(self.features // 2, (1, 1))(x, train)
        five = ConvNorm(self.features // 2, (3, 3))(five, train)
        five = ConvNorm(self.features // 2, (3, 3))(five, train)
        pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        pooled = ConvNorm(self.features // 2, (1, 1))(pooled, train)
        return jnp.concatenate([one, three, five, pooled], axis=-1)


class Factorised(nn.Module):
    """A branch of 1x1 and one of 1x5 after 5x1, concatenated (figure 6)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        one = ConvNorm(self.features, (1, 1))(x, train)
        long = ConvNorm(self.features // 2, (1, 1))(x, train)
        long = ConvNorm(self.features // 2, (1, 5))(long, train)
        long = ConvNorm(self.features, (5, 1))(long, train)
        return jnp.concatenate([one, long], axis=-1)


class Reduction(nn.Module):
    """Half the resolution: a strided convolution beside max-pooling, concatenated (figure 10)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.features, (3, 3), 2)(x, train)
        return jnp.concatenate([y, nn.max_pool(x, (3, 3), (2, 2), "SAME")], axis=-1)


class Inception(nn.Module):
    """Inception-v3 in small; in training, an auxiliary classifier returns logits beside those of the network."""

    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array | tuple[jax.Array, jax.Array | None]:
        x = ConvNorm(12, (3, 3))(x, train)
        x = Mixed(8)(x, train)
        x = Reduction(8)(x, train)
        auxiliary = None
        if train or self.is_initializing():
            y = nn.avg_pool(x, (2, 2), (2, 2))
            y = ConvNorm(8, (1, 1), name="auxiliary_conv")(y, train)
            auxiliary = nn.Dense(self.classes, name="auxiliary_head")(y.reshape(y.shape[0], -1))
        x = Factorised(12)(x, train)
        x = nn.Dropout(0.2, deterministic=not train)(x.mean(axis=(1, 2)))
        logits = nn.Dense(self.classes)(x)
        return (logits, auxiliary) if train else logits


NETWORKS: tuple[Network, ...] = (
    linen("inception", Inception(), normal(2, 8, 8, 3), call={"train": False}, train={"train": True}),
)
