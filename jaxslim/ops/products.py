"""Convolutions as matrix products: of single pixels, of the pixels under each position of a kernel, or of patches."""

import functools
import math
import operator
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxslim.ops.layer import Layer

# Rows of one product that is summed over its rows. With 64 and 256 channels on 32x32, batch 64, one product takes 38 ms
# and 64 products of 1024 rows take 20 ms: few results are not divided among cores.
ROWS = 4096


def pointwise(images: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    """A kernel of 1x1, without padding: one product."""
    return _product(_thinned(images, layer), kernel[0, 0])


def pointwise_gradient(images: jax.Array, gradient: jax.Array, layer: Layer) -> jax.Array:
    """The gradient of such a kernel."""
    return _summed_product(_thinned(images, layer), gradient)[None, None]


def taps(images: jax.Array, kernel: jax.Array, layer: Layer, features_first: bool = False) -> jax.Array:
    """One product per position of the kernel, with only the pixels under that position: padded zeros cost nothing.

    `features_first` says that the last two axes of the kernel are exchanged.
    """
    size, parts = layer.size(images.shape[1:3]), []
    for position, pixels, outputs in _overlaps(images.shape[1:3], size, layer):
        around = [(cut.start, n - cut.stop, 0) for cut, n in zip(outputs, size, strict=True)]
        part = _product(images[:, *pixels], kernel[position], features_first)
        parts.append(lax.pad(part, np.zeros((), part.dtype), [(0, 0, 0), *around, (0, 0, 0)]))
    return functools.reduce(operator.add, parts)


def taps_gradient(images: jax.Array, gradient: jax.Array, layer: Layer) -> jax.Array:
    """The gradient of the kernel, one product per position."""
    parts = [
        _summed_product(images[:, *pixels], gradient[:, *outputs])
        for _, pixels, outputs in _overlaps(images.shape[1:3], gradient.shape[1:3], layer)
    ]
    return jnp.stack(parts).reshape(*layer.window, images.shape[-1], gradient.shape[-1])


def patches(images: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    """One product of all patches of the images, laid side by side (im2col)."""
    size = layer.size(images.shape[1:3])
    return _product(jnp.concatenate(shifted(images, size, layer), -1), kernel.reshape(-1, kernel.shape[-1]))


def patches_gradient(images: jax.Array, gradient: jax.Array, layer: Layer) -> jax.Array:
    """The gradient of the kernel as one product of all patches."""
    laid = jnp.concatenate(shifted(images, gradient.shape[1:3], layer), -1)
    return _summed_product(laid, gradient).reshape(*layer.window, images.shape[-1], gradient.shape[-1])


def shifted(images: jax.Array, size: Sequence[int], layer: Layer) -> list[jax.Array]:
    """For each position of the kernel, the pixel under that position for each of `size` outputs."""
    reach = ((n - 1) * stride + window for n, stride, window in zip(size, layer.strides, layer.window, strict=True))
    around = [(low, end - low - n, 0) for n, end, (low, _) in zip(images.shape[1:3], reach, layer.padding, strict=True)]
    padded = lax.optimization_barrier(lax.pad(images, np.zeros((), images.dtype), [(0, 0, 0), *around, (0, 0, 0)]))
    return [
        padded[:, *(slice(at, at + (n - 1) * s + 1, s) for at, n, s in zip(position, size, layer.strides, strict=True))]
        for position in np.ndindex(layer.window)
    ]


def _thinned(images: jax.Array, layer: Layer) -> jax.Array:
    return images[:, :: layer.strides[0], :: layer.strides[1]]


def _product(pixels: jax.Array, matrix: jax.Array, features_first: bool = False) -> jax.Array:
    """Half precision is added up in single precision."""
    exact = jnp.promote_types(pixels.dtype, jnp.float32)
    rows = pixels.reshape(math.prod(pixels.shape[:-1]), pixels.shape[-1])
    out = lax.dot_general(rows, matrix, (((1,), (int(features_first),)), ((), ())), preferred_element_type=exact)
    return out.reshape(*pixels.shape[:-1], out.shape[-1])


def _summed_product(pixels: jax.Array, gradient: jax.Array) -> jax.Array:
    """(channels, features), summed over images and pixels, in parts that each core takes some of."""
    rows = math.prod(gradient.shape[:-1])
    parts = 1
    if isinstance(rows, int):  # an open batch has no number
        parts = next(n for n in range(max(1, rows // ROWS), 0, -1) if rows % n == 0)
    exact = jnp.promote_types(pixels.dtype, jnp.float32)
    one, other = (array.reshape(parts, rows // parts, array.shape[-1]) for array in (pixels, gradient))
    found = lax.dot_general(one, other, (((1,), (1,)), ((0,), (0,))), preferred_element_type=exact)
    return found.sum(0)


def _overlaps(
    images: Sequence[int], outputs: Sequence[int], layer: Layer
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """Each position of the kernel, the pixels that meet it, and the outputs that these go into."""
    for position in np.ndindex(layer.window):
        axes = [
            _overlap(n, out, at - low, stride)
            for n, out, at, (low, _), stride in zip(
                images, outputs, position, layer.padding, layer.strides, strict=True
            )
        ]
        yield position, tuple(pixels for pixels, _ in axes), tuple(outs for _, outs in axes)


def _overlap(size: int, outputs: int, offset: int, stride: int) -> tuple[slice, slice]:
    """Pixels and outputs of one axis, where output i takes pixel i * stride + offset."""
    first = min(max(0, -(offset // stride)), outputs)
    end = max(first, min(outputs, (size - 1 - offset) // stride + 1))
    if first == end:
        return slice(0, 0), slice(0, 0)
    start = first * stride + offset
    return slice(start, start + (end - first - 1) * stride + 1, stride), slice(first, end)
