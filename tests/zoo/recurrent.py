"""Recurrent networks: Flax's cells in Linen, and one fused layer in plain JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from . import Network, linen, normal, plain, tokens

VOCABULARY, CLASSES = 32, 5


class LanguageModel(nn.Module):
    """Zaremba et al. (2014), Recurrent Neural Network Regularization: dropout between layers, not along time."""

    cell: Callable[..., nn.Module] = nn.LSTMCell
    width: int = 24
    hidden: int = 32
    layers: int = 2
    dropout: float = 0.2

    @nn.compact
    def __call__(self, text: Any, train: bool = False) -> Any:
        x = nn.Embed(VOCABULARY, self.width)(text)
        for _ in range(self.layers):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.RNN(self.cell(self.hidden))(x)
        return nn.Dense(VOCABULARY)(nn.Dropout(self.dropout, deterministic=not train)(x))


class Tagger(nn.Module):
    """Graves and Schmidhuber (2005), Framewise phoneme classification with bidirectional LSTM."""

    hidden: int = 16
    layers: int = 2
    dropout: float = 0.2

    @nn.compact
    def __call__(self, frames: Any, train: bool = False) -> Any:
        x = frames
        for _ in range(self.layers):
            forward, backward = nn.RNN(nn.OptimizedLSTMCell(self.hidden)), nn.RNN(nn.OptimizedLSTMCell(self.hidden))
            x = nn.Bidirectional(forward, backward)(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


class SequenceClassifier(nn.Module):
    """Cho et al. (2014), Learning Phrase Representations using RNN Encoder-Decoder: its GRU encoder, both ways.

    The sequences have different lengths; the last states of both directions go to the head.
    """

    hidden: int = 24
    dropout: float = 0.2

    @nn.compact
    def __call__(self, frames: Any, lengths: Any, train: bool = False) -> Any:
        x = nn.Dense(self.hidden)(frames)
        forward, backward = nn.RNN(nn.GRUCell(self.hidden)), nn.RNN(nn.GRUCell(self.hidden))
        (last, first), _ = nn.Bidirectional(forward, backward, return_carry=True)(x, seq_lengths=lengths)
        state = nn.Dropout(self.dropout, deterministic=not train)(jnp.concatenate([last, first], axis=-1))
        return nn.Dense(CLASSES)(state)


def fused_lstm(variables: Any, frames: Any) -> Any:
    """Hochreiter and Schmidhuber (1997), Long Short-Term Memory, with forget gates (Gers et al. 2000).

    One kernel holds all four gates, as in cuDNN; a loop runs over time.
    """
    x = frames.swapaxes(0, 1)
    for layer in variables["layers"]:
        hidden = layer["recurrent"].shape[0]

        def step(carry: Any, new: Any, layer: Any = layer) -> Any:
            state, memory = carry
            gates = new + state @ layer["recurrent"] + layer["bias"][None]
            enter, forget, candidate, leave = jnp.split(gates, 4, axis=-1)
            memory = jax.nn.sigmoid(forget) * memory + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            state = jax.nn.sigmoid(leave) * jnp.tanh(memory)
            return (state, memory), state

        start = jnp.zeros((x.shape[1], hidden))
        _, x = lax.scan(step, (start, start), x @ layer["input"])
    return x[-1] @ variables["head"]["kernel"] + variables["head"]["bias"][None]


def lstm_shapes(width: int, hidden: int, layers: int) -> Any:
    kernels = {"recurrent": (hidden, 4 * hidden), "bias": (4 * hidden,)}
    first, *others = (width, *[hidden] * (layers - 1))
    stack = [{"input": (size, 4 * hidden), **kernels} for size in (first, *others)]
    return {"params": {"layers": stack, "head": {"kernel": (hidden, CLASSES), "bias": (CLASSES,)}}}


def fused_lstm_of(variables: Any, frames: Any) -> Any:
    return fused_lstm(variables["params"], frames)


_FRAMES, _TEXT = normal(3, 6, 12), tokens(VOCABULARY, 2, 6)
_LENGTHS = jnp.asarray([6, 4, 5], jnp.int32)
NETWORKS: tuple[Network, ...] = (
    linen("lstm", LanguageModel(), _TEXT, train={"train": True}),
    linen("gru", LanguageModel(cell=nn.GRUCell), _TEXT, train={"train": True}),
    linen("lstm_bidirectional", Tagger(), _FRAMES, train={"train": True}),
    linen("gru_bidirectional", SequenceClassifier(), _FRAMES, _LENGTHS, train={"train": True}),
    plain("lstm_fused", fused_lstm_of, lstm_shapes(12, 24, 2), _FRAMES),
)
