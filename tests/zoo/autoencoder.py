"""Denoising autoencoders with tied weights, in plain JAX, after Vincent et al. 2010 and Masci et al. 2011."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import Network, normal, plain

NHWC = ("NHWC", "HWIO", "NHWC")


def dense_apply(params: Any, x: jax.Array) -> jax.Array:
    """Dense layers down, then up by the same matrices, transposed.

    Vincent et al. 2010, "Stacked Denoising Autoencoders", section 2.2.
    """
    for layer in params:
        x = jax.nn.sigmoid(x @ layer["weight"] + layer["hidden"][None, :])
    for layer in params[:0:-1]:
        x = jax.nn.sigmoid(x @ layer["weight"].T + layer["visible"][None, :])
    return x @ params[0]["weight"].T + params[0]["visible"][None, :]


def conv_apply(params: Any, x: jax.Array) -> jax.Array:
    """Strided convolutions down, then their transpositions with the same kernels.

    Masci et al. 2011, "Stacked Convolutional Auto-Encoders for Hierarchical Feature Extraction", section 3.
    """
    for layer in params:
        x = lax.conv_general_dilated(x, layer["weight"], (2, 2), "SAME", dimension_numbers=NHWC)
        x = jnp.tanh(x + layer["hidden"][None, None, None, :])
    for number, layer in reversed(list(enumerate(params))):
        x = lax.conv_transpose(x, layer["weight"], (2, 2), "SAME", dimension_numbers=NHWC, transpose_kernel=True)
        x = x + layer["visible"][None, None, None, :]
        x = x if number == 0 else jnp.tanh(x)
    return x


def corrupted(key: jax.Array, x: jax.Array, share: float = 0.3) -> jax.Array:
    """`x` with a random share of its entries at 0 (Vincent et al. 2010, section 3.3)."""
    return jnp.where(jax.random.bernoulli(key, share, x.shape), 0.0, x)


def dense_train(params: Any, key: jax.Array, x: jax.Array) -> Any:
    """Reconstruction of a corrupted input, and no statistics."""
    return dense_apply(params, corrupted(key, x)), {}


def conv_train(params: Any, key: jax.Array, x: jax.Array) -> Any:
    """Reconstruction of a corrupted input, and no statistics."""
    return conv_apply(params, corrupted(key, x)), {}


def layers(widths: tuple[int, ...], window: tuple[int, ...]) -> Any:
    """Shapes of the weights of each layer, with a bias for each direction."""
    return [
        {"weight": (*window, below, above), "hidden": (above,), "visible": (below,)}
        for below, above in itertools.pairwise(widths)
    ]


WIDTHS, FEATURES = (48, 32, 12), (3, 12, 16)

NETWORKS: tuple[Network, ...] = (
    plain("autoencoder_dense", dense_apply, layers(WIDTHS, ()), normal(4, 48), train=dense_train),
    plain("autoencoder_conv", conv_apply, layers(FEATURES, (3, 3)), normal(2, 8, 8, 3), train=conv_train),
)
