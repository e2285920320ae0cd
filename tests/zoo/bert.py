"""Encoders of text with norms behind the sums: inputs in a dict, in Linen, and two arrays, in NNX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from . import Network, linen, nnx_network, tokens

VOCABULARY = 32


class BertLayer(nn.Module):
    """Attention and two dense layers, each followed by a sum and a norm."""

    heads: int
    inner: int
    dropout: float

    @nn.compact
    def __call__(self, x: Any, bias: Any, train: bool) -> Any:
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        split = (self.heads, width // self.heads)
        query, key, value = (
            nn.Dense(width, name=name)(x).reshape(*x.shape[:2], *split) for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query / jnp.sqrt(split[1]), key) + bias
        mixed = jnp.einsum("bhqk,bkhd->bqhd", drop(jax.nn.softmax(scores)), value).reshape(x.shape)
        x = nn.LayerNorm(epsilon=1e-12)(x + drop(nn.Dense(width, name="out")(mixed)))
        y = nn.Dense(width, name="down")(nn.gelu(nn.Dense(self.inner, name="up")(x), approximate=False))
        return nn.LayerNorm(epsilon=1e-12)(x + drop(y))


class Bert(nn.Module):
    """Devlin et al. (2018), BERT: Pre-training of Deep Bidirectional Transformers; with the heads of both its tasks."""

    width: int = 32
    heads: int = 4
    inner: int = 48
    layers: int = 2
    longest: int = 16
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Any, train: bool = False) -> Any:
        words, drop = nn.Embed(VOCABULARY, self.width), nn.Dropout(self.dropout, deterministic=not train)
        places = jnp.arange(batch["input_ids"].shape[1])[None]
        x = words(batch["input_ids"]) + nn.Embed(self.longest, self.width, name="positions")(places)
        x = x + nn.Embed(2, self.width, name="types")(batch["token_type_ids"])
        x = drop(nn.LayerNorm(epsilon=1e-12)(x))
        bias = jnp.where(batch["attention_mask"][:, None, None] > 0, 0.0, jnp.finfo(x.dtype).min)
        for _ in range(self.layers):
            x = BertLayer(self.heads, self.inner, self.dropout)(x, bias, train)
        pooled = nn.tanh(nn.Dense(self.width, name="pooler")(x[:, 0]))
        y = nn.LayerNorm(epsilon=1e-12)(nn.gelu(nn.Dense(self.width, name="transform")(x), approximate=False))
        shift = self.param("prediction_bias", nn.initializers.zeros, (VOCABULARY,))
        return {"words": words.attend(y) + shift[None, None], "next_sentence": nn.Dense(2, name="next")(drop(pooled))}


class SentenceLayer(nnx.Module):
    """The same layer out of NNX's own attention."""

    def __init__(self, width: int, heads: int, inner: int, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(heads, width, dropout_rate=0.1, decode=False, rngs=rngs)
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, inner, rngs=rngs)
        self.down = nnx.Linear(inner, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: Any, mask: Any) -> Any:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask)))
        return self.norm(x + self.dropout(self.down(nnx.gelu(self.up(x)))))


class SentenceClassifier(nnx.Module):
    """Sanh et al. (2019), DistilBERT: no token types and no pooler; here it classifies the mean of the words."""

    def __init__(self, width: int, heads: int, inner: int, layers: int, rngs: nnx.Rngs) -> None:
        self.words = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((16, width)))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.layers = nnx.List([SentenceLayer(width, heads, inner, rngs) for _ in range(layers)])
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, text: Any, mask: Any) -> Any:
        x = self.norm(self.words(text) + self.positions[: text.shape[1]][None])
        for layer in self.layers:
            x = layer(x, mask[:, None, None] > 0)
        weights = mask[..., None] / jnp.sum(mask, axis=1)[:, None, None]
        return self.head(jnp.sum(x * weights, axis=1))


_MASK = jnp.ones((2, 8), jnp.int32).at[1, 5:].set(0)
_BATCH = {
    "input_ids": tokens(VOCABULARY, 2, 8),
    "token_type_ids": jnp.zeros((2, 8), jnp.int32).at[:, 4:].set(1),
    "attention_mask": _MASK,
}
NETWORKS: tuple[Network, ...] = (
    linen("bert", Bert(), _BATCH, train={"train": True}),
    nnx_network("distilbert", SentenceClassifier(32, 4, 48, 2, nnx.Rngs(0)), _BATCH["input_ids"], _MASK),
)
