"""Vision transformers in Linen."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from . import Network, linen, normal


class FusedAttention(nn.Module):
    """Self-attention whose queries, keys and values come from one layer."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        batch, length, width = x.shape
        head_width = width // self.heads
        qkv = nn.Dense(3 * width, name="qkv")(x).reshape(batch, length, 3, self.heads, head_width)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(head_width)
        weights = nn.Dropout(self.dropout, deterministic=not train)(jax.nn.softmax(scores))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.Dense(width, name="out")(mixed.reshape(batch, length, width))


class Mlp(nn.Module):
    """The two layers after attention."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        y = nn.gelu(nn.Dense(self.width)(x))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return nn.Dense(x.shape[-1])(y)


class LayerScale(nn.Module):
    """One learned factor a channel at the end of a branch (Touvron et al. 2021, CaiT, section 2)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        gamma = self.param("gamma", nn.initializers.constant(1e-4), (x.shape[-1],))
        return x * gamma[None, None]


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. (2020), An Image is Worth 16x16 Words: class token, learned positions, fused projections."""

    width: int = 24
    heads: int = 3
    layers: int = 2
    patch: int = 4
    classes: int = 10
    dropout: float = 0.1

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> Any:
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, "VALID", name="patches")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for _ in range(self.layers):
            x = x + LayerScale()(FusedAttention(self.heads, self.dropout)(nn.LayerNorm()(x), train))
            x = x + LayerScale()(Mlp(2 * self.width, self.dropout)(nn.LayerNorm()(x), train))
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x)[:, 0])


class PlainVisionTransformer(nn.Module):
    """Beyer et al. (2022), Better plain ViT baselines: a constant table of sines, here pooled by an attention head.

    The attention head is that of Zhai et al. (2021), Scaling Vision Transformers, section 3.4.
    """

    width: int = 32
    heads: int = 4
    layers: int = 2
    patch: int = 4
    classes: int = 10
    dropout: float = 0.1

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> Any:
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, "VALID", name="patches")(images)
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height * width, self.width) + sines(height, width, self.width)
        for _ in range(self.layers):
            x = x + self.attention(train)(nn.LayerNorm()(x))
            x = x + Mlp(2 * self.width, self.dropout)(nn.LayerNorm()(x), train)
        x = nn.LayerNorm()(x)
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, self.width))
        pooled = self.attention(train)(jnp.tile(probe, (batch, 1, 1)), x)
        pooled = pooled + Mlp(2 * self.width, self.dropout)(nn.LayerNorm()(pooled), train)
        return nn.Dense(self.classes, name="head")(pooled[:, 0])

    def attention(self, train: bool) -> nn.Module:
        return nn.MultiHeadDotProductAttention(self.heads, dropout_rate=self.dropout, deterministic=not train)


def sines(height: int, width: int, channels: int) -> np.ndarray:
    """A (1, height * width, channels) table: a quarter of the channels each for sine and cosine of row and column."""
    rates = 10_000.0 ** -np.linspace(0, 1, channels // 4)
    rows, columns = np.mgrid[:height, :width].reshape(2, -1, 1) * rates
    table = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    return table[None].astype(np.float32)


_IMAGES = normal(2, 12, 12, 3)
NETWORKS: tuple[Network, ...] = (
    linen("vit", VisionTransformer(), _IMAGES, train={"train": True}),
    linen("vit_plain", PlainVisionTransformer(), _IMAGES, train={"train": True}),
)
