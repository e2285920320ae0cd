"""Convolutions of images with zeros between their pixels, as in image gradients of strided layers and `ConvTranspose`.

XLA multiplies the zeros too. But outputs that are a stride apart take the same positions of the kernel: each such phase
is a convolution without zeros.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.ops.layer import Layer

Inner = Callable[[jax.Array, jax.Array, Layer], jax.Array]


def convolve(images: jax.Array, kernel: jax.Array, layer: Layer, inner: Inner) -> jax.Array:
    """Convolve with `inner`, which takes images, kernel and layer, once for each phase; strides are 1."""
    size = layer.size(images.shape[1:3])
    whole = tuple(-(-n // spread) for n, spread in zip(size, layer.spread, strict=True))
    phases = np.empty(layer.spread, object)
    for phase, positions, own in _phases(images.shape[1:3], whole, layer):
        part = kernel[positions]
        empty = jnp.zeros((images.shape[0], *whole, kernel.shape[-1]), images.dtype)
        phases[phase] = empty if 0 in part.shape else inner(images, part, own)
    joined = jnp.stack([jnp.stack(list(row), 3) for row in phases], 2)
    outputs = joined.reshape(images.shape[0], joined.shape[1] * joined.shape[2], -1, kernel.shape[-1])
    return outputs[:, : size[0], : size[1]]


def kernel_gradient(images: jax.Array, gradient: jax.Array, layer: Layer, inner: Inner) -> jax.Array:
    """The gradient of the kernel, from that of the outputs; `inner` takes images, gradient and layer."""
    size = gradient.shape[1:3]
    whole = tuple(-(-n // spread) for n, spread in zip(size, layer.spread, strict=True))
    missing = [(0, n * spread - own) for n, spread, own in zip(whole, layer.spread, size, strict=True)]
    padded = jnp.pad(gradient, ((0, 0), *missing, (0, 0)))
    found = jnp.zeros((*layer.window, images.shape[-1] // layer.groups, gradient.shape[-1]), images.dtype)
    for (row, column), positions, own in _phases(images.shape[1:3], whole, layer):
        if 0 not in own.window:
            part = inner(images, padded[:, row :: layer.spread[0], column :: layer.spread[1]], own)
            found = found.at[positions].set(part.astype(found.dtype))
    return found


def _phases(
    images: Sequence[int], whole: Sequence[int], layer: Layer
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], Layer]]:
    """For outputs that are a stride apart: where they start, the positions of the kernel, and their own layer."""
    for phase in np.ndindex(layer.spread):
        axes = [
            _phase(n, out, window, low, spread, at)
            for n, out, window, (low, _), spread, at in zip(
                images, whole, layer.window, layer.padding, layer.spread, phase, strict=True
            )
        ]
        positions = tuple(slice(first, None, spread) for (first, _, _), spread in zip(axes, layer.spread, strict=True))
        rows, columns = (taps for _, taps, _ in axes)
        padding = axes[0][2], axes[1][2]
        yield phase, positions, dataclasses.replace(layer, window=(rows, columns), spread=(1, 1), padding=padding)


def _phase(size: int, outputs: int, window: int, low: int, spread: int, at: int) -> tuple[int, int, tuple[int, int]]:
    """The first position of the kernel that meets pixels, how many do, and the padding that makes `outputs` outputs."""
    first = (low - at) % spread
    taps = len(range(first, window, spread))
    before = (low - at - first) // spread
    return first, taps, (before, outputs - 1 + taps - before - size)
