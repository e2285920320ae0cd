"""Convolutions where each channel has a kernel of its own: sums of shifted images, since XLA's take 20 times as long."""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxslim.ops.layer import Layer
from jaxslim.ops.sums import channel_sums


def convolve(images: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    """Convolve (n, height, width, channels) with (height, width, 1, channels)."""
    size = layer.size(images.shape[1:3])
    images, kernel = _precise(images), _precise(kernel)
    shifted = zip(np.ndindex(layer.window), _shifted(images, size, layer), strict=True)
    return functools.reduce(operator.add, (part * kernel[at][0] for at, part in shifted))


def kernel_gradient(images: jax.Array, gradient: jax.Array, layer: Layer) -> jax.Array:
    """The gradient (height, width, 1, channels) of the kernel, from that of the outputs."""
    images, gradient = _precise(images), _precise(gradient)
    sums = [channel_sums(part * gradient) for part in _shifted(images, gradient.shape[1:3], layer)]
    return jnp.stack(sums).reshape(*layer.window, 1, images.shape[-1])


def _shifted(images: jax.Array, size: Sequence[int], layer: Layer) -> list[jax.Array]:
    """For each position of the kernel, the pixel under that position for each output."""
    reach = ((n - 1) * stride + window for n, stride, window in zip(size, layer.strides, layer.window, strict=True))
    around = [(low, end - low - n, 0) for n, end, (low, _) in zip(images.shape[1:3], reach, layer.padding, strict=True)]
    padded = lax.optimization_barrier(lax.pad(images, np.zeros((), images.dtype), [(0, 0, 0), *around, (0, 0, 0)]))
    return [
        padded[:, *(slice(at, at + (n - 1) * s + 1, s) for at, n, s in zip(position, size, layer.strides, strict=True))]
        for position in np.ndindex(layer.window)
    ]


def _precise(array: jax.Array) -> jax.Array:
    """Half precision is added up in single precision."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
