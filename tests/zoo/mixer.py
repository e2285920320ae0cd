"""Networks of dense layers over channels and over tokens, in Linen."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from . import Network, linen, normal, tokens


class MixingMlp(nn.Module):
    """Two layers over the last axis."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        y = nn.gelu(nn.Dense(self.width)(x))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(x.shape[-1])(y)


class Mixer(nn.Module):
    """Tolstikhin et al. (2021), MLP-Mixer: An all-MLP Architecture for Vision."""

    width: int = 24
    token_width: int = 16
    channel_width: int = 48
    layers: int = 2
    patch: int = 4
    classes: int = 10
    dropout: float = 0.1

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> Any:
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, "VALID", name="stem")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        for _ in range(self.layers):
            y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            x = x + jnp.swapaxes(MixingMlp(self.token_width, self.dropout)(y, train), 1, 2)
            x = x + MixingMlp(self.channel_width, self.dropout)(nn.LayerNorm()(x), train)
        return nn.Dense(self.classes, name="head")(jnp.mean(nn.LayerNorm()(x), axis=1))


class SpatialGate(nn.Module):
    """One half of the channels, mixed over tokens, multiplies the other half (section 2.1)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        left, right = jnp.split(x, 2, axis=-1)
        mixed = nn.Dense(x.shape[1])(jnp.swapaxes(nn.LayerNorm()(right), 1, 2))
        return left * (1 + jnp.swapaxes(mixed, 1, 2))


class GatedMlp(nn.Module):
    """Liu et al. (2021), Pay Attention to MLPs: gMLP with spatial gating units."""

    width: int = 24
    inner: int = 48
    layers: int = 2
    vocabulary: int = 32
    dropout: float = 0.1

    @nn.compact
    def __call__(self, text: Any, train: bool = False) -> Any:
        x = nn.Embed(self.vocabulary, self.width)(text)
        for _ in range(self.layers):
            y = nn.gelu(nn.Dense(self.inner)(nn.LayerNorm()(x)))
            y = nn.Dense(self.width)(SpatialGate()(y))
            x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(self.vocabulary, name="head")(nn.LayerNorm()(x))


class Affine(nn.Module):
    """A factor and a shift for each channel: what ResMLP has in place of a norm (section 2)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        scale = self.param("scale", nn.initializers.ones, (1, 1, x.shape[-1]))
        shift = self.param("shift", nn.initializers.zeros, (1, 1, x.shape[-1]))
        return x * scale + shift


class ResMlp(nn.Module):
    """Touvron et al. (2021), ResMLP: Feedforward networks for image classification with data-efficient training."""

    width: int = 24
    layers: int = 2
    patch: int = 4
    classes: int = 10
    dropout: float = 0.1

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> Any:
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, "VALID", name="stem")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        for _ in range(self.layers):
            y = nn.Dense(x.shape[1])(Affine()(x).transpose(0, 2, 1)).transpose(0, 2, 1)
            x = x + Affine()(y)
            x = x + Affine()(MixingMlp(2 * self.width, self.dropout)(Affine()(x), train))
        return nn.Dense(self.classes, name="head")(jnp.mean(Affine()(x), axis=1))


_IMAGES = normal(2, 12, 12, 3)
NETWORKS: tuple[Network, ...] = (
    linen("mixer", Mixer(), _IMAGES, train={"train": True}),
    linen("gmlp", GatedMlp(), tokens(32, 2, 8), train={"train": True}),
    linen("resmlp", ResMlp(), _IMAGES, train={"train": True}),
)
