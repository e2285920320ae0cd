"""A variational autoencoder of images after Kingma and Welling 2014, "Auto-Encoding Variational Bayes"."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from . import Network, linen, normal


class ResidualBlock(nn.Module):
    """GroupNorm, swish and a 3x3 convolution, twice, and a shortcut (Esser et al. 2021, "Taming Transformers")."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.Conv(self.features, (3, 3))(nn.swish(nn.GroupNorm(self.groups)(x)))
        y = nn.Conv(self.features, (3, 3))(nn.swish(nn.GroupNorm(self.groups)(y)))
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), name="shortcut")(x)
        return x + y


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """(b, h, w, factor² c) -> (b, factor h, factor w, c): channels become places (Shi et al. 2016, "Sub-Pixel CNN")."""
    batch, height, width, features = x.shape
    x = x.reshape(batch, height, width, factor, factor, features // factor**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, factor * height, factor * width, -1)


class Encoder(nn.Module):
    """Mean and logarithm of the variance of the latents of an image (Kingma and Welling 2014, appendix C)."""

    features: int
    groups: int
    latents: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.Conv(self.features, (3, 3))(x)
        x = ResidualBlock(self.features, self.groups)(x)
        x = nn.Conv(self.features, (3, 3), 2)(x)
        x = ResidualBlock(2 * self.features, self.groups)(x)
        x = nn.swish(nn.GroupNorm(self.groups)(x))
        mean, log_variance = jnp.split(nn.Conv(2 * self.latents, (3, 3))(x), 2, axis=-1)
        return mean, log_variance


class Decoder(nn.Module):
    """From latents to images, with pixels shuffled out of channels."""

    features: int
    groups: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.Conv(2 * self.features, (3, 3))(z)
        x = ResidualBlock(2 * self.features, self.groups)(x)
        x = nn.Conv(4 * self.features, (3, 3))(x)
        x = pixel_shuffle(x, 2)
        x = ResidualBlock(self.features, self.groups)(x)
        return nn.Conv(3, (3, 3))(nn.swish(nn.GroupNorm(self.groups)(x)))


class VAE(nn.Module):
    """Evaluation decodes the mean; training decodes a sample, and returns what the loss needs beside it."""

    features: int = 8
    groups: int = 4
    latents: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
        mean, log_variance = Encoder(self.features, self.groups, self.latents)(x)
        decoder = Decoder(self.features, self.groups)
        if not train:
            return decoder(mean)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape, mean.dtype)
        return decoder(mean + jnp.exp(0.5 * log_variance) * noise), mean, log_variance


NETWORKS: tuple[Network, ...] = (
    linen(
        "vae",
        VAE(),
        normal(2, 8, 8, 3),
        call={"train": False},
        train={"train": True},
        mutable=(),
        rngs=("noise",),
    ),
)
