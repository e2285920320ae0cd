"""Mixtures of experts: by sums over an expert axis in Linen, and by a ragged product in plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from . import Network, linen, plain, tokens

VOCABULARY, WIDTH, INNER, EXPERTS, CHOSEN = 32, 24, 32, 4, 2


class Experts(nn.Module):
    """One network of two layers for each expert, over (experts, places, width)."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        start = nn.initializers.lecun_normal(batch_axis=0)
        up = self.param("up", start, (EXPERTS, x.shape[-1], INNER))
        bias = self.param("up_bias", nn.initializers.zeros, (EXPERTS, INNER))
        down = self.param("down", start, (EXPERTS, INNER, x.shape[-1]))
        y = nn.relu(jnp.einsum("ecd,edf->ecf", x, up) + bias[:, None])
        return jnp.einsum("ecf,efd->ecd", y, down)


class RoutedLayer(nn.Module):
    """Each token goes to the two experts of highest weight, while these have places left (GShard, section 2.2)."""

    places: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        weights = jax.nn.softmax(nn.Dense(EXPERTS, use_bias=False, name="router")(flat))
        best, chosen = lax.top_k(weights, CHOSEN)
        best = best / jnp.sum(best, axis=-1, keepdims=True)
        wanted = jax.nn.one_hot(chosen, EXPERTS)
        # First choices of all tokens take their places before any second choice.
        order = jnp.cumsum(wanted.swapaxes(0, 1).reshape(-1, EXPERTS), axis=0) - 1
        place = jnp.sum(order.reshape(CHOSEN, -1, EXPERTS).swapaxes(0, 1) * wanted, axis=-1)
        seats = jax.nn.one_hot(place.astype(jnp.int32), self.places)
        dispatch = jnp.einsum("tke,tkc->tec", wanted, seats)
        combine = jnp.einsum("tk,tke,tkc->tec", best, wanted, seats)
        y = Experts()(jnp.einsum("tec,td->ecd", dispatch, flat))
        return jnp.einsum("tec,ecd->td", combine, y).reshape(x.shape)


class SoftLayer(nn.Module):
    """Every place is a weighted mean of tokens, every token one of places (Soft MoE, section 2.1)."""

    places: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        slots = self.param("slots", nn.initializers.lecun_normal(), (x.shape[-1], EXPERTS, self.places))
        scores = jnp.einsum("btd,dec->btec", x, slots)
        dispatch = jax.nn.softmax(scores, axis=1)
        combine = jax.nn.softmax(scores.reshape(*scores.shape[:2], -1)).reshape(scores.shape)
        entered = jnp.einsum("btd,btec->becd", x, dispatch)
        y = jax.vmap(Experts())(entered)
        return jnp.einsum("becd,btec->btd", y, combine)


class MixtureOfExperts(nn.Module):
    """Lepikhin et al. (2020), GShard; or, `soft`, Puigcerver et al. (2023), From Sparse to Soft Mixtures of Experts."""

    soft: bool = False
    layers: int = 2
    places: int = 6
    dropout: float = 0.1

    @nn.compact
    def __call__(self, text: Any, train: bool = False) -> Any:
        x = nn.Embed(VOCABULARY, WIDTH)(text)
        for _ in range(self.layers):
            y = nn.MultiHeadDotProductAttention(4, deterministic=True)(nn.LayerNorm()(x))
            x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
            layer = SoftLayer(self.places // 3) if self.soft else RoutedLayer(self.places)
            x = x + nn.Dropout(self.dropout, deterministic=not train)(layer(nn.LayerNorm()(x)))
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(x))


def ragged_layer(params: Any, x: Any) -> Any:
    """Sorts tokens by expert and multiplies each run of tokens with its expert's kernels."""
    weights, chosen = lax.top_k(x @ params["router"], CHOSEN)
    weights = jax.nn.softmax(weights).reshape(-1)
    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=EXPERTS).astype(jnp.int32)
    entered = jnp.repeat(x, CHOSEN, axis=0)[order]
    gate = jax.nn.silu(lax.ragged_dot(entered, params["gate"], sizes))
    y = lax.ragged_dot(gate * lax.ragged_dot(entered, params["up"], sizes), params["down"], sizes)
    y = jnp.zeros_like(y).at[order].set(y) * weights[:, None]
    return jnp.sum(y.reshape(-1, CHOSEN, y.shape[-1]), axis=1)


def mixtral(variables: Any, text: Any) -> Any:
    """Jiang et al. (2024), Mixtral of Experts, without attention, by ragged products (Gale et al. 2022, MegaBlocks)."""
    params = variables["params"]
    x = params["embedding"][text.reshape(-1)]
    for layer in params["layers"]:
        y = x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * layer["scale"][None]
        x = x + ragged_layer(layer, y)
    return (x @ params["head"]).reshape(*text.shape, -1)


LAYER = {
    "scale": (WIDTH,),
    "router": (WIDTH, EXPERTS),
    "gate": (EXPERTS, WIDTH, INNER),
    "up": (EXPERTS, WIDTH, INNER),
    "down": (EXPERTS, INNER, WIDTH),
}
_MIXTRAL = {"embedding": (VOCABULARY, WIDTH), "layers": [LAYER] * 2, "head": (WIDTH, VOCABULARY)}
_TEXT = tokens(VOCABULARY, 2, 8)
NETWORKS: tuple[Network, ...] = (
    linen("moe_routed", MixtureOfExperts(), _TEXT, train={"train": True}, stops=("top_k",)),
    linen("moe_soft", MixtureOfExperts(soft=True), _TEXT, train={"train": True}),
    plain("moe_ragged", mixtral, {"params": _MIXTRAL}, _TEXT, stops=("top_k",)),
)
