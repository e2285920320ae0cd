"""Transformers over shifted windows, in Linen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from . import Network, linen, normal

HIDDEN = -100.0
"""What is added to the score of a pair that may not attend."""


def split_windows(x: Any, window: int) -> Any:
    """(b, h, w, c) -> (b * windows, window * window, c)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def join_windows(x: Any, window: int, height: int, width: int) -> Any:
    """(b * windows, window * window, c) -> (b, h, w, c)."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


def offsets(window: int) -> np.ndarray:
    """Row and column distance of each pair of positions in a window: (window², window², 2), from 0."""
    places = np.mgrid[:window, :window].reshape(2, -1)
    return (places[:, :, None] - places[:, None]).transpose(1, 2, 0) + window - 1


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """(windows, window², window²): hides pairs that the roll brought together from opposite borders."""
    region = np.zeros((1, height, width, 1), np.float32)
    bounds = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in bounds for columns in bounds):
        region[:, rows, columns] = number
    region = split_windows(region, window)[..., 0]
    return np.where(region[:, None] == region[:, :, None], 0, HIDDEN).astype(np.float32)


class TableBias(nn.Module):
    """One learned bias for each distance and head (section 3.2)."""

    window: int
    heads: int

    @nn.compact
    def __call__(self) -> Any:
        side = 2 * self.window - 1
        table = self.param("table", nn.initializers.normal(0.02), (side * side, self.heads))
        pairs = offsets(self.window)
        return table[pairs[..., 0] * side + pairs[..., 1]]


class ContinuousBias(nn.Module):
    """Biases from a small network over log-spaced distances (Swin V2, section 3.3)."""

    window: int
    heads: int

    @nn.compact
    def __call__(self) -> Any:
        distance = (offsets(self.window) - (self.window - 1)) * (8 / (self.window - 1))
        spaced = np.sign(distance) * np.log2(1 + np.abs(distance)) / 3
        y = nn.relu(nn.Dense(16)(jnp.asarray(spaced, jnp.float32)))
        return 16 * nn.sigmoid(nn.Dense(self.heads, use_bias=False)(y))


class WindowAttention(nn.Module):
    """Attention in each window, by dot products or by cosines with a learned temperature (Swin V2, section 3.2)."""

    heads: int
    window: int
    bias: Callable[..., nn.Module]
    cosine: bool

    @nn.compact
    def __call__(self, x: Any, mask: np.ndarray | None) -> Any:
        n, length, width = x.shape
        qkv = nn.Dense(3 * width, name="qkv")(x)
        qkv = qkv.reshape(n, length, 3, self.heads, width // self.heads).transpose(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        if self.cosine:
            query = query / jnp.sqrt(jnp.sum(query**2, axis=-1, keepdims=True) + 1e-6)
            key = key / jnp.sqrt(jnp.sum(key**2, axis=-1, keepdims=True) + 1e-6)
            factor = self.param("temperature_scale", nn.initializers.constant(np.log(10)), (self.heads, 1, 1))
            query = query * jnp.exp(jnp.minimum(factor, np.log(100)))[None]
        else:
            query = query * (width // self.heads) ** -0.5
        scores = jnp.einsum("nhqd,nhkd->nhqk", query, key)
        scores = scores + self.bias(self.window, self.heads)().transpose(2, 0, 1)[None]
        if mask is not None:
            windows = mask.shape[0]
            scores = scores.reshape(-1, windows, self.heads, length, length) + mask[None, :, None]
            scores = scores.reshape(n, self.heads, length, length)
        mixed = jnp.einsum("nhqk,nhkd->nqhd", jax.nn.softmax(scores), value)
        return nn.Dense(width, name="out")(mixed.reshape(n, length, width))


class DropPath(nn.Module):
    """Drops the branch of a whole sample (Huang et al. 2016, stochastic depth)."""

    rate: float

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return nn.Dropout(self.rate, broadcast_dims=range(1, x.ndim), deterministic=not train)(x)


class Block(nn.Module):
    """Two branches; the norm stands before a branch, or behind it in Swin V2 (section 3.2)."""

    heads: int
    window: int
    shift: int
    second: bool

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = x + DropPath(0.1)(self.branch(x, self.attend), train)
        return x + DropPath(0.1)(self.branch(x, self.mix), train)

    def branch(self, x: Any, body: Callable[[Any], Any]) -> Any:
        return nn.LayerNorm()(body(x)) if self.second else body(nn.LayerNorm()(x))

    def attend(self, x: Any) -> Any:
        _, h, w, _ = x.shape
        x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        mask = shift_mask(h, w, self.window, self.shift) if self.shift else None
        bias = ContinuousBias if self.second else TableBias
        y = WindowAttention(self.heads, self.window, bias, cosine=self.second)(split_windows(x, self.window), mask)
        return jnp.roll(join_windows(y, self.window, h, w), (self.shift, self.shift), axis=(1, 2))

    def mix(self, x: Any) -> Any:
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(2 * x.shape[-1])(x)))


def merge_by_strides(x: Any) -> Any:
    """(b, h, w, c) -> (b, h / 2, w / 2, 4 c), from four strided views."""
    return jnp.concatenate([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], axis=-1)


def merge_by_reshape(x: Any) -> Any:
    """(b, h, w, c) -> (b, h / 2, w / 2, 4 c), from one reshape."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)


class Swin(nn.Module):
    """Liu et al. (2021), Swin Transformer: Hierarchical Vision Transformer using Shifted Windows."""

    width: int = 16
    window: int = 4
    stages: int = 2
    patch: int = 2
    classes: int = 10
    second: bool = False
    """Swin Transformer V2: Scaling Up Capacity and Resolution (Liu et al. 2022)."""

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> Any:
        size = (self.patch, self.patch)
        x = nn.LayerNorm()(nn.Conv(self.width, size, size, "VALID", name="patches")(images))
        for stage in range(self.stages):
            width = self.width * 2**stage
            if stage:
                x = self.merge(x, width)
            for number in range(2):
                shift = self.window // 2 if number % 2 and x.shape[1] > self.window else 0
                x = Block(width // 8, self.window, shift, self.second)(x, train)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x).mean(axis=(1, 2)))

    def merge(self, x: Any, width: int) -> Any:
        if self.second:
            return nn.LayerNorm()(nn.Dense(width, use_bias=False)(merge_by_reshape(x)))
        return nn.Dense(width, use_bias=False)(nn.LayerNorm()(merge_by_strides(x)))


_IMAGES = normal(2, 16, 16, 3)
NETWORKS: tuple[Network, ...] = (
    linen("swin", Swin(), _IMAGES, train={"train": True}),
    linen("swin_v2", Swin(second=True), _IMAGES, train={"train": True}),
)
