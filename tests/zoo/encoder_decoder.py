"""Encoders with decoders, in Linen: two inputs of tokens."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from . import Network, linen, tokens

VOCABULARY = 32


def buckets(queries: int, keys: int, both_ways: bool, count: int = 8, farthest: int = 16) -> np.ndarray:
    """The bucket of each pair of positions: exact when near, in powers when far (T5, section 2.1)."""
    distance = np.arange(keys)[None] - np.arange(queries)[:, None]
    first = np.zeros_like(distance)
    if both_ways:
        count //= 2
        first = count * (distance > 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    near = count // 2
    ratio = np.log(np.maximum(distance, 1) / near) / math.log(farthest / near)
    far = np.minimum(near + (ratio * (count - near)).astype(int), count - 1)
    return first + np.where(distance < near, distance, far)


class RelativeBias(nn.Module):
    """A learned bias for each bucket and head: (1, heads, queries, keys)."""

    heads: int
    both_ways: bool

    @nn.compact
    def __call__(self, queries: int, keys: int) -> Any:
        table = nn.Embed(8, self.heads)(buckets(queries, keys, self.both_ways))
        return table.transpose(2, 0, 1)[None]


class T5Attention(nn.Module):
    """Attention without biases and without division by the width (its start takes care of the scale)."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(self, x: Any, memory: Any, bias: Any) -> Any:
        batch, length, width = x.shape
        inner = self.heads * self.head_width

        def heads(name: str, y: Any) -> Any:
            y = nn.Dense(inner, use_bias=False, name=name)(y)
            return y.reshape(batch, -1, self.heads, self.head_width).transpose(0, 2, 1, 3)

        query, key, value = heads("query", x), heads("key", memory), heads("value", memory)
        scores = query @ key.swapaxes(-1, -2)
        mixed = jax.nn.softmax(scores if bias is None else scores + bias) @ value
        return nn.Dense(width, use_bias=False, name="out")(mixed.transpose(0, 2, 1, 3).reshape(batch, length, inner))


class T5Layer(nn.Module):
    """One layer of the encoder, or of the decoder where there is a memory."""

    heads: int
    head_width: int
    inner: int
    dropout: float

    @nn.compact
    def __call__(self, x: Any, bias: Any, memory: Any, train: bool) -> Any:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.RMSNorm()(x)
        x = x + drop(T5Attention(self.heads, self.head_width, name="self_attention")(y, y, bias))
        if memory is not None:
            y = nn.RMSNorm()(x)
            x = x + drop(T5Attention(self.heads, self.head_width, name="cross_attention")(y, memory, None))
        y = nn.RMSNorm()(x)
        gate = nn.gelu(nn.Dense(self.inner, use_bias=False, name="gate")(y))
        y = drop(gate * nn.Dense(self.inner, use_bias=False, name="up")(y))
        return x + drop(nn.Dense(x.shape[-1], use_bias=False, name="down")(y))


class T5(nn.Module):
    """Raffel et al. (2019), Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer."""

    width: int = 24
    heads: int = 4
    head_width: int = 8
    inner: int = 48
    layers: int = 2
    dropout: float = 0.1

    @nn.compact
    def __call__(self, source: Any, target: Any, train: bool = False) -> Any:
        embedding = nn.Embed(VOCABULARY, self.width)
        memory = self.stack("encoder", embedding(source), None, train)
        y = self.stack("decoder", embedding(target), memory, train)
        return embedding.attend(y * self.width**-0.5)

    def stack(self, name: str, x: Any, memory: Any, train: bool) -> Any:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        length = x.shape[1]
        bias = RelativeBias(self.heads, memory is None, name=f"{name}_bias")(length, length)
        if memory is not None:
            bias = jnp.where(np.tril(np.ones((length, length), bool))[None, None], bias, -1e9)
        x = drop(x)
        for number in range(self.layers):
            layer = T5Layer(self.heads, self.head_width, self.inner, self.dropout, name=f"{name}_{number}")
            x = layer(x, bias, memory, train)
        return drop(nn.RMSNorm(name=f"{name}_norm")(x))


def sines(length: int, width: int) -> np.ndarray:
    """A (1, length, width) table, sines in even channels and cosines in odd ones (Vaswani et al., section 3.5)."""
    angle = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(1, length, width).astype(np.float32)


class Transformer(nn.Module):
    """Vaswani et al. (2017), Attention Is All You Need: norms behind the sums, token 0 as padding."""

    width: int = 32
    heads: int = 4
    inner: int = 48
    layers: int = 2
    dropout: float = 0.1

    @nn.compact
    def __call__(self, source: Any, target: Any, train: bool = False) -> Any:
        embedding = nn.Embed(VOCABULARY, self.width)
        seen = nn.make_attention_mask(jnp.ones_like(source), source > 0)
        memory = self.embedded(embedding, source, train)
        for _ in range(self.layers):
            memory = self.added(memory, self.attention(train)(memory, mask=seen), train)
            memory = self.added(memory, self.feed_forward(memory), train)
        x = self.embedded(embedding, target, train)
        past = nn.combine_masks(nn.make_causal_mask(target), nn.make_attention_mask(target > 0, target > 0))
        seen = nn.make_attention_mask(jnp.ones_like(target), source > 0)
        for _ in range(self.layers):
            x = self.added(x, self.attention(train)(x, mask=past), train)
            x = self.added(x, self.attention(train)(x, memory, mask=seen), train)
            x = self.added(x, self.feed_forward(x), train)
        return nn.Dense(VOCABULARY)(x)

    def embedded(self, embedding: Any, text: Any, train: bool) -> Any:
        x = embedding(text) * math.sqrt(self.width) + sines(text.shape[1], self.width)
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def attention(self, train: bool) -> nn.Module:
        return nn.MultiHeadDotProductAttention(self.heads, dropout_rate=self.dropout, deterministic=not train)

    def feed_forward(self, x: Any) -> Any:
        return nn.Dense(self.width)(nn.relu(nn.Dense(self.inner)(x)))

    def added(self, x: Any, y: Any, train: bool) -> Any:
        return nn.LayerNorm()(x + nn.Dropout(self.dropout, deterministic=not train)(y))


_SOURCE, _TARGET = tokens(VOCABULARY, 2, 8).at[:, -2:].set(0), tokens(VOCABULARY, 2, 6, seed=2).at[:, 0].set(1)
NETWORKS: tuple[Network, ...] = (
    linen("t5", T5(), _SOURCE, _TARGET, train={"train": True}),
    linen("transformer", Transformer(), _SOURCE, _TARGET, train={"train": True}),
)
