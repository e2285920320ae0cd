"""Convolutions where each channel has a kernel of its own: sums of shifted images. XLA's take 20 times as long."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.ops.layer import Layer
from jaxslim.ops.portions import portions, summed
from jaxslim.ops.products import shifted

# Of the gradient, for a portion of images: 2 of 32x32x96 take 14 ms with batch 64, all images at once 50 ms.
PORTION_BYTES = 2**20


def convolve(images: jax.Array, kernel: jax.Array, layer: Layer) -> jax.Array:
    """Convolve (n, height, width, channels) with (height, width, 1, channels)."""
    size = layer.size(images.shape[1:3])
    images, kernel = _precise(images), _precise(kernel)
    parts = zip(np.ndindex(layer.window), shifted(images, size, layer), strict=True)
    return functools.reduce(operator.add, (part * kernel[at][None, None] for at, part in parts))


def kernel_gradient(images: jax.Array, gradient: jax.Array, layer: Layer) -> jax.Array:
    """The gradient (height, width, 1, channels) of the kernel, from that of the outputs."""
    size, channels = gradient.shape[1:3], images.shape[-1]

    def portion(images: jax.Array, gradient: jax.Array) -> jax.Array:
        """Adding up as products with ones keeps XLA from merging the sum with what is added, which is slow."""
        pixels = [(part * gradient).reshape(-1, channels) for part in shifted(images, size, layer)]
        return jnp.concatenate([jnp.ones((1, part.shape[0]), part.dtype) @ part for part in pixels])

    arrays = _precise(images), _precise(gradient)
    if isinstance(images.shape[0], int):
        image_bytes = math.prod(gradient.shape[1:]) * arrays[1].dtype.itemsize
        total = summed(portion, portions(image_bytes, PORTION_BYTES, *arrays))
    else:
        total = portion(*arrays)
    return total.reshape(*layer.window, 1, channels)


def _precise(array: jax.Array) -> jax.Array:
    """Half precision is added up in single precision."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
