"""Convolutions of images with zeros between their pixels, as in image gradients of strided layers and `ConvTranspose`.

XLA multiplies the zeros too. But outputs that are a stride apart take the same positions of the kernel: each such phase
is a convolution without zeros.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxslim.ops.layer import Layer


def convolve(
    images: jax.Array, kernel: jax.Array, layer: Layer, inner: Callable[[jax.Array, jax.Array, Layer], jax.Array]
) -> jax.Array:
    """Convolve with `inner`, which takes images, kernel and layer, once for each phase; strides are 1."""
    size = layer.size(images.shape[1:3])
    rows, columns = (range(spread) for spread in layer.spread)
    whole = tuple(-(-n // spread) for n, spread in zip(size, layer.spread, strict=True))
    phases = []
    for phase in itertools.product(rows, columns):
        axes = [
            _phase(n, out, window, low, spread, at)
            for n, out, window, (low, _), spread, at in zip(
                images.shape[1:3], whole, layer.window, layer.padding, layer.spread, phase, strict=True
            )
        ]
        part = kernel[axes[0][0], axes[1][0]]
        if 0 in part.shape:
            phases.append(jnp.zeros((images.shape[0], *whole, kernel.shape[-1]), images.dtype))
            continue
        own = dataclasses.replace(
            layer, window=part.shape[:2], spread=(1, 1), padding=tuple(padding for _, padding in axes)
        )
        phases.append(inner(images, part, own))
    joined = jnp.stack([jnp.stack(phases[row * len(columns) : (row + 1) * len(columns)], 3) for row in rows], 2)
    return joined.reshape(images.shape[0], whole[0] * len(rows), whole[1] * len(columns), kernel.shape[-1])[
        :, : size[0], : size[1]
    ]


def _phase(size: int, outputs: int, window: int, low: int, spread: int, at: int) -> tuple[slice, tuple[int, int]]:
    """The positions of the kernel that meet pixels, and the padding with which they make `outputs` outputs."""
    first = (low - at) % spread
    taps = len(range(first, window, spread))
    before = (low - at - first) // spread
    return slice(first, None, spread), (before, outputs - 1 + taps - before - size)
