"""Decoders: a Llama in NNX, plain functions with other rotary embeddings, and steps of decoding with a cache."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import lax

from . import Network, filled, linen, nnx_network, normal, plain, tokens

VOCABULARY, WIDTH, INNER, LAYERS = 32, 32, 48, 2
HEADS, SHARED_HEADS, HEAD_WIDTH = 4, 2, 8
CACHE, POSITION = 8, 3
"""Length of the caches, and the position of the token that is decoded."""
EPSILON = 1e-6


def angles(positions: Any, head_width: int) -> Any:
    """The angle of each position and pair of channels: (length, head_width / 2) (Su et al. 2021, section 3.2)."""
    rates = 10_000.0 ** (-np.arange(0, head_width, 2, dtype=np.float32) / head_width)
    return positions[:, None] * rates[None]


def rotate_halves(x: Any, angle: Any) -> Any:
    """Turns channel i of (b, s, heads, width) with channel i + width / 2."""
    left, right = jnp.split(x, 2, axis=-1)
    sine, cosine = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    return jnp.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)


def rotate_pairs(x: Any, angle: Any) -> Any:
    """Turns channel 2 i of (b, s, heads, width) with channel 2 i + 1."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    sine, cosine = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    return jnp.stack([even * cosine - odd * sine, odd * cosine + even * sine], axis=-1).reshape(x.shape)


def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
    """Attention over (b, s, heads, width), where `mask` (queries, keys) is true."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[None, None], scores, -1e9))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def attend_grouped(query: Any, key: Any, value: Any, mask: Any) -> Any:
    """As `attend`, each group of query heads against its one head of keys, which is not repeated."""
    batch, length, heads, width = query.shape
    query = query.reshape(batch, length, key.shape[2], heads // key.shape[2], width)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", query, key) * width**-0.5
    weights = jax.nn.softmax(jnp.where(mask[None, None, None], scores, -1e9))
    return jnp.einsum("bhgqk,bkhd->bqhgd", weights, value).reshape(batch, length, heads, width)


def causal(length: int) -> np.ndarray:
    return np.tril(np.ones((length, length), bool))


class LlamaAttention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023): a head of keys and values for every two heads of queries."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.query = nnx.Linear(WIDTH, HEADS * HEAD_WIDTH, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(WIDTH, SHARED_HEADS * HEAD_WIDTH, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(WIDTH, SHARED_HEADS * HEAD_WIDTH, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(HEADS * HEAD_WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        batch, length, _ = x.shape
        angle = angles(np.arange(length), HEAD_WIDTH)
        query = rotate_halves(self.query(x).reshape(batch, length, HEADS, HEAD_WIDTH), angle)
        key = rotate_halves(self.key(x).reshape(batch, length, SHARED_HEADS, HEAD_WIDTH), angle)
        value = self.value(x).reshape(batch, length, SHARED_HEADS, HEAD_WIDTH)
        key, value = (jnp.repeat(y, HEADS // SHARED_HEADS, axis=2) for y in (key, value))
        return self.out(attend(query, key, value, causal(length)).reshape(batch, length, -1))


class SwiGlu(nnx.Module):
    """Shazeer (2020), GLU Variants Improve Transformer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(WIDTH, INNER, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, INNER, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(INNER, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nnx.Module):
    """Attention and a gated layer, each behind a norm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = LlamaAttention(rngs)
        self.mlp_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.mlp = SwiGlu(rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Llama(nnx.Module):
    """Touvron et al. (2023), LLaMA, with the grouped queries of Llama 2 and the embedding tied to the head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nnx.List([LlamaBlock(rngs) for _ in range(LAYERS)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)

    def __call__(self, text: Any) -> Any:
        x = self.embedding(text)
        for block in self.blocks:
            x = block(x)
        return self.embedding.attend(self.norm(x))


LAYER_SHAPES = {
    "attention_norm": {"scale": (WIDTH,)},
    "query": (WIDTH, HEADS * HEAD_WIDTH),
    "key": (WIDTH, SHARED_HEADS * HEAD_WIDTH),
    "value": (WIDTH, SHARED_HEADS * HEAD_WIDTH),
    "out": (HEADS * HEAD_WIDTH, WIDTH),
    "mlp_norm": {"scale": (WIDTH,)},
    "gate": (WIDTH, INNER),
    "up": (WIDTH, INNER),
    "down": (INNER, WIDTH),
}
ENDS = {"embedding": (VOCABULARY, WIDTH), "norm": {"scale": (WIDTH,)}}


def rms_norm(scale: Any, x: Any) -> Any:
    """Zhang and Sennrich (2019), Root Mean Square Layer Normalization."""
    return x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPSILON) * scale[None, None]


def heads_of(x: Any, kernel: Any) -> Any:
    return (x @ kernel).reshape(*x.shape[:2], -1, HEAD_WIDTH)


def gated(layer: Any, x: Any) -> Any:
    y = rms_norm(layer["mlp_norm"]["scale"], x)
    return x + (jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"]


def block(layer: Any, x: Any) -> Any:
    """One layer with rotary pairs and grouped queries."""
    batch, length, _ = x.shape
    y = rms_norm(layer["attention_norm"]["scale"], x)
    angle = angles(np.arange(length), HEAD_WIDTH)
    query, key = (rotate_pairs(heads_of(y, layer[name]), angle) for name in ("query", "key"))
    mixed = attend_grouped(query, key, heads_of(y, layer["value"]), causal(length))
    return gated(layer, x + mixed.reshape(batch, length, -1) @ layer["out"])


def gpt(variables: Any, text: Any) -> Any:
    """Rotary embeddings on interleaved pairs (Su et al. 2021, RoFormer), with the layers in a list."""
    x = variables["embedding"][text]
    for layer in variables["layers"]:
        x = block(layer, x)
    return rms_norm(variables["norm"]["scale"], x) @ variables["embedding"].T


def gpt_scanned(variables: Any, text: Any) -> Any:
    """The same with stacked layers in a loop, each computed again for its gradient (Chen et al. 2016)."""
    step = jax.checkpoint(block)
    x, _ = lax.scan(lambda x, layer: (step(layer, x), None), variables["embedding"][text], variables["layers"])
    return rms_norm(variables["norm"]["scale"], x) @ variables["embedding"].T


def gpt_step(variables: Any, text: Any, position: Any, caches: Any) -> Any:
    """Decodes one token with rotary halves; the caches of all layers come in and go out (Pope et al. 2022)."""
    x = variables["embedding"][text]
    angle = angles(position + jnp.arange(1), HEAD_WIDTH)
    mask = jnp.arange(CACHE)[None] <= position
    filled_caches = []
    for layer, cache in zip(variables["layers"], caches, strict=True):
        y = rms_norm(layer["attention_norm"]["scale"], x)
        query, key = (rotate_halves(heads_of(y, layer[name]), angle) for name in ("query", "key"))
        cache = {
            "key": lax.dynamic_update_slice(cache["key"], key, (0, position, 0, 0)),
            "value": lax.dynamic_update_slice(cache["value"], heads_of(y, layer["value"]), (0, position, 0, 0)),
        }
        key, value = (jnp.repeat(cache[name], HEADS // SHARED_HEADS, axis=2) for name in ("key", "value"))
        x = x + attend(query, key, value, mask).reshape(*x.shape[:2], -1) @ layer["out"]
        x = gated(layer, x)
        filled_caches.append(cache)
    return rms_norm(variables["norm"]["scale"], x) @ variables["embedding"].T, filled_caches


class CachedAttention(nn.Module):
    """Attention of one token to all before it, whose keys and values lie in the collection `cache`."""

    @nn.compact
    def __call__(self, x: Any, position: Any) -> Any:
        batch, length, width = x.shape
        query, key, value = jnp.split(nn.Dense(3 * width, name="qkv")(x), 3, axis=-1)
        query, key, value = (y.reshape(batch, length, HEADS, width // HEADS) for y in (query, key, value))
        key, value = self.remember("key", key, position), self.remember("value", value, position)
        mixed = attend(query, key, value, jnp.arange(CACHE)[None] <= position)
        return nn.Dense(width, name="out")(mixed.reshape(batch, length, width))

    def remember(self, name: str, new: Any, position: Any) -> Any:
        batch, _, *rest = new.shape
        cache = self.variable("cache", name, jnp.zeros, (batch, CACHE, *rest))
        cache.value = lax.dynamic_update_slice(cache.value, new, (0, position, 0, 0))
        return cache.value


class Gpt2Step(nn.Module):
    """Radford et al. (2019), Language Models are Unsupervised Multitask Learners: one step of its decoding."""

    @nn.compact
    def __call__(self, text: Any, position: Any) -> Any:
        embedding = nn.Embed(VOCABULARY, WIDTH)
        table = self.param("positions", nn.initializers.normal(0.02), (CACHE, WIDTH))
        x = embedding(text) + lax.dynamic_slice(table, (position, 0), (1, WIDTH))[None]
        for _ in range(LAYERS):
            x = x + CachedAttention()(nn.LayerNorm()(x), position)
            x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(INNER)(nn.LayerNorm()(x))))
        return embedding.attend(nn.LayerNorm()(x))


class FlaxStep(nn.Module):
    """The decoder of Vaswani et al. (2017), Attention Is All You Need, with the cache that Flax's attention keeps."""

    @nn.compact
    def __call__(self, text: Any) -> Any:
        x = nn.Embed(VOCABULARY, WIDTH)(text)
        for _ in range(LAYERS):
            x = x + nn.MultiHeadDotProductAttention(HEADS, decode=True)(nn.LayerNorm()(x))
            x = x + nn.Dense(WIDTH)(nn.relu(nn.Dense(INNER)(nn.LayerNorm()(x))))
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(x))


def flax_step(name: str) -> Network:
    """A step in the middle of a text: the caches have their length from a first call with the whole text."""
    network = linen(name, FlaxStep(), tokens(VOCABULARY, 2, 1), call={"mutable": ["cache"]})
    shapes = jax.eval_shape(lambda: FlaxStep().init(jax.random.key(0), tokens(VOCABULARY, 2, CACHE)))
    variables = filled(shapes)
    counters = {"cache_index": jnp.asarray(POSITION, jnp.int32)}
    cache = jax.tree.map(lambda node: node | counters, variables["cache"], is_leaf=lambda node: "cache_index" in node)
    return Network(**{**vars(network), "variables": variables | {"cache": cache}})


def stacked(shapes: Any) -> Any:
    return jax.tree.map(lambda shape: (LAYERS, *shape), shapes, is_leaf=lambda node: isinstance(node, tuple))


_TEXT = tokens(VOCABULARY, 2, 8)
_TOKEN, _POSITION = tokens(VOCABULARY, 2, 1), jnp.asarray(POSITION, jnp.int32)
_CACHES = [
    {name: normal(2, CACHE, SHARED_HEADS, HEAD_WIDTH, seed=seed + layer) for seed, name in enumerate(("key", "value"))}
    for layer in range(LAYERS)
]
NETWORKS: tuple[Network, ...] = (
    nnx_network("llama", Llama(nnx.Rngs(0)), _TEXT),
    plain("gpt", gpt, {**ENDS, "layers": [LAYER_SHAPES] * LAYERS}, _TEXT),
    plain("gpt_scanned", gpt_scanned, {**ENDS, "layers": stacked(LAYER_SHAPES)}, _TEXT),
    plain("gpt_step", gpt_step, {**ENDS, "layers": [LAYER_SHAPES] * LAYERS}, _TOKEN, _POSITION, _CACHES),
    linen("gpt2_step", Gpt2Step(), _TOKEN, _POSITION, call={"mutable": ["cache"]}),
    flax_step("flax_step"),
)
