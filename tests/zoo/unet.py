"""Networks that map images to images: Ronneberger et al. 2015, "U-Net", and Ho et al. 2020, "Denoising Diffusion"."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from . import Network, linen, normal


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm and ReLU (Ronneberger et al. 2015, figure 1)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for _ in range(2):
            x = nn.Conv(self.features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return x


class UNet(nn.Module):
    """Max-pooling down, transposed convolutions up, skip connections by concatenation (Ronneberger et al. 2015)."""

    features: tuple[int, ...] = (8, 12, 16)
    classes: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        skips = []
        for features in self.features[:-1]:
            x = DoubleConv(features)(x, train)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = DoubleConv(self.features[-1])(x, train)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        for features, skip in zip(self.features[-2::-1], reversed(skips), strict=True):
            x = nn.ConvTranspose(features, (2, 2), (2, 2))(x)
            x = DoubleConv(features)(jnp.concatenate([skip, x], axis=-1), train)
        return nn.Conv(self.classes, (1, 1))(x)


def sinusoids(steps: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of the step at `width` // 2 frequencies (Ho et al. 2020, appendix B)."""
    rates = jnp.exp(-jnp.log(10_000.0) * jnp.arange(width // 2) / (width // 2 - 1))
    angles = steps[:, None].astype(rates.dtype) * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimedBlock(nn.Module):
    """A residual block with GroupNorm, to which the embedding of the step is added in the middle (Ho et al. 2020)."""

    features: int
    groups: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        y = nn.swish(nn.GroupNorm(self.groups)(x))
        y = nn.Conv(self.features, (3, 3))(y)
        y = y + nn.Dense(self.features)(nn.swish(embedding))[:, None, None, :]
        y = nn.swish(nn.GroupNorm(self.groups)(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = nn.Conv(self.features, (3, 3))(y)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, name="shortcut")(x)
        return x + y


class Attention(nn.Module):
    """Self-attention over all places of a map (Nichol and Dhariwal 2021, "Improved Denoising Diffusion")."""

    heads: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, features = x.shape
        y = nn.Dense(3 * features)(nn.GroupNorm(self.groups)(x))
        y = y.reshape(batch, height * width, self.heads, 3 * features // self.heads)
        query, key, value = jnp.split(y, 3, axis=-1)
        weights = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(query.shape[-1])
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(weights), value)
        return x + nn.Dense(features)(y.reshape(batch, height, width, features))


class DiffusionUNet(nn.Module):
    """Predicts the noise in an image from the image and the step of the diffusion (Ho et al. 2020, appendix B)."""

    features: int = 8
    groups: int = 4
    dropout: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, steps: jax.Array, train: bool = True) -> jax.Array:
        block = functools.partial(TimedBlock, groups=self.groups, dropout=self.dropout)
        embedding = nn.Dense(4 * self.features)(sinusoids(steps, self.features))
        embedding = nn.Dense(4 * self.features)(nn.swish(embedding))
        colours = x.shape[-1]
        x = nn.Conv(self.features, (3, 3))(x)
        skips = [x]
        x = block(self.features)(x, embedding, train)
        skips.append(x)
        x = nn.Conv(self.features, (3, 3), 2)(x)
        x = block(2 * self.features)(x, embedding, train)
        x = Attention(2, self.groups)(x)
        x = block(2 * self.features)(x, embedding, train)
        batch, height, width, features = x.shape
        x = jax.image.resize(x, (batch, 2 * height, 2 * width, features), "nearest")
        x = nn.Conv(features, (3, 3))(x)
        for skip in reversed(skips):
            x = block(self.features)(jnp.concatenate([x, skip], axis=-1), embedding, train)
        return nn.Conv(colours, (3, 3))(nn.swish(nn.GroupNorm(self.groups)(x)))


EVAL, TRAIN = {"train": False}, {"train": True}

NETWORKS: tuple[Network, ...] = (
    linen("unet", UNet(), normal(2, 16, 16, 1), call=EVAL, train=TRAIN),
    linen(
        "diffusion_unet",
        DiffusionUNet(),
        normal(2, 8, 8, 3),
        jnp.array([3, 500], "int32"),
        call=EVAL,
        train=TRAIN,
        mutable=(),
    ),
)
