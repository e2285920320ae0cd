"""State space models with selection, in Linen."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from . import Network, linen, tokens

VOCABULARY = 32


def scan_steps(decay: Any, drive: Any) -> Any:
    """All states of h = decay h + drive along axis 1, one after another."""
    start = jnp.zeros_like(drive[:, 0])

    def step(state: Any, now: Any) -> Any:
        state = now[0] * state + now[1]
        return state, state

    _, states = lax.scan(step, start, (decay.swapaxes(0, 1), drive.swapaxes(0, 1)))
    return states.swapaxes(0, 1)


def scan_in_parallel(decay: Any, drive: Any) -> Any:
    """The same by pairwise combination (section 3.3.2)."""

    def combine(left: Any, right: Any) -> Any:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return lax.associative_scan(combine, (decay, drive), axis=1)[1]


class SelectiveLayer(nn.Module):
    """Algorithm 2 of the paper in its gated block (figure 3): step size, input and output map depend on the token."""

    inner: int
    states: int
    rank: int
    scan: Callable[[Any, Any], Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        width = x.shape[-1]
        x, gate = jnp.split(nn.Dense(2 * self.inner, use_bias=False, name="enter")(x), 2, axis=-1)
        x = nn.Conv(self.inner, (4,), padding=[(3, 0)], feature_group_count=self.inner, name="conv")(x)
        x = nn.silu(x)
        parts = nn.Dense(self.rank + 2 * self.states, use_bias=False, name="select")(x)
        step, write, read = jnp.split(parts, [self.rank, self.rank + self.states], axis=-1)
        step = nn.softplus(nn.Dense(self.inner, name="step")(step))
        rate = -jnp.exp(self.param("log_rate", nn.initializers.zeros, (self.inner, self.states)))
        decay = jnp.exp(step[..., None] * rate[None, None])
        drive = (step * x)[..., None] * write[:, :, None]
        y = jnp.einsum("bldn,bln->bld", self.scan(decay, drive), read)
        y = y + x * self.param("direct", nn.initializers.ones, (self.inner,))[None, None]
        return nn.Dense(width, use_bias=False, name="leave")(y * nn.silu(gate))


class Mamba(nn.Module):
    """Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State Spaces."""

    width: int = 24
    states: int = 4
    layers: int = 2
    scan: Callable[[Any, Any], Any] = scan_steps
    dropout: float = 0.1

    @nn.compact
    def __call__(self, text: Any, train: bool = False) -> Any:
        embedding = nn.Embed(VOCABULARY, self.width)
        x = embedding(text)
        for _ in range(self.layers):
            layer = SelectiveLayer(2 * self.width, self.states, math.ceil(self.width / 8), self.scan)
            x = x + nn.Dropout(self.dropout, deterministic=not train)(layer(nn.RMSNorm()(x)))
        return embedding.attend(nn.RMSNorm()(x))


class StateSpaceDuality(nn.Module):
    """The layer of Mamba-2 in its quadratic form (section 5): masked attention whose mask is a product of decays."""

    inner: int
    heads: int
    states: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        batch, length, width = x.shape
        sizes = (self.inner, self.inner, self.states, self.states, self.heads)
        bounds = [sum(sizes[: number + 1]) for number in range(4)]
        parts = nn.Dense(sum(sizes), use_bias=False, name="enter")(x)
        gate, x, write, read, step = jnp.split(parts, bounds, axis=-1)
        mixed = jnp.concatenate([x, write, read], axis=-1)
        channels = mixed.shape[-1]
        mixed = nn.silu(nn.Conv(channels, (4,), padding=[(3, 0)], feature_group_count=channels, name="conv")(mixed))
        x, write, read = jnp.split(mixed, [self.inner, self.inner + self.states], axis=-1)
        x = x.reshape(batch, length, self.heads, -1)
        shift = self.param("step_bias", nn.initializers.zeros, (self.heads,))
        step = nn.softplus(step + shift[None, None])
        rate = -jnp.exp(self.param("log_rate", nn.initializers.zeros, (self.heads,)))
        total = jnp.cumsum(step * rate[None, None], axis=1)
        past = jnp.tril(jnp.ones((length, length), bool))[None, :, :, None]
        decay = jnp.exp(jnp.where(past, total[:, :, None] - total[:, None], -jnp.inf))
        weights = jnp.einsum("bqn,bkn,bqkh->bqkh", read, write, decay)
        y = jnp.einsum("bqkh,bkh,bkhp->bqhp", weights, step, x)
        y = y + x * self.param("direct", nn.initializers.ones, (self.heads,))[None, None, :, None]
        y = nn.RMSNorm()(y.reshape(batch, length, self.inner) * nn.silu(gate))
        return nn.Dense(width, use_bias=False, name="leave")(y)


class Mamba2(nn.Module):
    """Dao and Gu (2024), Transformers are SSMs: Generalized Models through Structured State Space Duality."""

    width: int = 24
    heads: int = 4
    states: int = 8
    layers: int = 2
    dropout: float = 0.1

    @nn.compact
    def __call__(self, text: Any, train: bool = False) -> Any:
        embedding = nn.Embed(VOCABULARY, self.width)
        x = embedding(text)
        for _ in range(self.layers):
            y = StateSpaceDuality(2 * self.width, self.heads, self.states)(nn.RMSNorm()(x))
            x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        return embedding.attend(nn.RMSNorm()(x))


_TEXT = tokens(VOCABULARY, 2, 8)
NETWORKS: tuple[Network, ...] = (
    linen("mamba", Mamba(), _TEXT, train={"train": True}),
    linen("mamba_parallel", Mamba(scan=scan_in_parallel), _TEXT, train={"train": True}),
    linen("mamba2", Mamba2(), _TEXT, train={"train": True}),
)
