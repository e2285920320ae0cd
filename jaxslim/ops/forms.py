"""Which form of a convolution is the fastest on a CPU, by its shape and batch."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim.ops import depthwise, enlarging, products, winograd
from jaxslim.ops.layer import Layer

# Largest height and width at which matrix products are faster, forward and for the gradient of the images. With 512
# channels in and out, a 4x4 map takes 10 ms each way, where XLA takes 13 and 14 ms. On 2x2 maps the kernel is larger
# than the image, so XLA leaves its fast path: hundreds of ms against 2 and 4. On 8x8 maps XLA is faster.
SMALL_MAP = 4
# The same for the gradient of the kernel. A 2x2 map takes 3 ms. A 4x4 map takes 12 to 14 ms, where XLA takes 11.6 ms.
TINY_MAP = 2
# Smallest batch for one product per position of the kernel; a smaller batch is one product of patches. Taking the
# kernel apart copies it. One image of 2x2x512 takes 0.4 ms and as patches 0.2 ms; 64 images take 2.2 and 4.4 ms.
FEW_IMAGES = 8
MOVED = 12
"""Multiplications that take as long as a number that is read or written."""


Form = Callable[[jax.Array, jax.Array], jax.Array]


def forward(images: Any, kernel: Any, layer: Layer, features_first: bool = False, *, exact: bool) -> Form | None:
    """The form of a convolution of images (n, height, width, channels) with a kernel (height, width, channels a group,
    features); None where XLA's is as fast.

    Args:
      images: of which the batch may be open; the shape and type, or the array.
      kernel: the same of the kernel.
      layer: what to compute.
      features_first: whether the kernel comes with its last two axes exchanged, as where a gradient goes back.
      exact: whether to leave out forms that round more than XLA's.
    """
    if algorithm := _algorithm(images, kernel, layer, exact):
        return functools.partial(winograd.convolve, padding=layer.padding, by=algorithm, features_first=features_first)
    features = kernel.shape[2 if features_first else 3]
    form = _other(images, features, layer, exact)
    if form is None or not features_first:
        return form
    return lambda images, kernel: form(images, kernel.swapaxes(2, 3))


def _other(images: Any, features: int, layer: Layer, exact: bool) -> Form | None:
    if _is_depthwise(images.shape[-1], features, layer):
        return functools.partial(depthwise.convolve, layer=layer)
    if layer.spread != (1, 1) and layer.strides == layer.dilation == (1, 1):
        return functools.partial(enlarging.convolve, layer=layer, inner=functools.partial(_convolve, exact=exact))
    if layer.is_dense and layer.window == (1, 1) and layer.padding == ((0, 0), (0, 0)):
        return functools.partial(products.pointwise, layer=layer)
    if layer.is_dense and max(images.shape[1:3]) <= SMALL_MAP and min(layer.size(images.shape[1:3])) > 0:
        few = isinstance(images.shape[0], int) and images.shape[0] < FEW_IMAGES  # an open batch has no number
        return functools.partial(products.patches if few else products.taps, layer=layer)
    if min(min(pad) for pad in layer.padding) < 0:
        return layer.plain
    return None


def _convolve(images: jax.Array, kernel: jax.Array, layer: Layer, exact: bool) -> jax.Array:
    return (forward(images, kernel, layer, exact=exact) or layer.plain)(images, kernel)


def kernel_gradient(images: Any, gradient: Any, layer: Layer, *, exact: bool) -> Form | None:
    """The form of the gradient (height, width, channels a group, features) of the kernel of `layer`, from images (n,
    height, width, channels) and the gradient of the outputs (n, height, width, features); None as for `forward`."""
    channels, features = images.shape[-1], gradient.shape[-1]
    if _is_depthwise(channels, features, layer):
        return functools.partial(depthwise.kernel_gradient, layer=layer)
    if not layer.is_dense:
        return None
    shape = jax.ShapeDtypeStruct((*layer.window, channels, features), images.dtype)
    if algorithm := _algorithm(images, shape, layer, exact):
        return functools.partial(winograd.kernel_gradient, padding=layer.padding, by=algorithm)
    if layer.window == (1, 1) and layer.padding[0][0] == layer.padding[1][0] == 0:
        return functools.partial(products.pointwise_gradient, layer=layer)
    crops = min(low for low, _ in layer.padding) < 0  # XLA's results are wrong there on CPUs
    if max(images.shape[1:3]) <= TINY_MAP or crops:
        return functools.partial(products.taps_gradient, layer=layer)
    return None


def _is_depthwise(channels: int, features: int, layer: Layer) -> bool:
    return layer.groups == channels == features and layer.spread == layer.dilation == (1, 1)


def _algorithm(images: Any, kernel: Any, layer: Layer, exact: bool) -> winograd.Algorithm | None:
    """Winograd's algorithm that takes the least time; None where the direct one does."""
    of_this_kind = layer.is_dense and layer.window == (3, 3) and layer.strides == (1, 1)
    if not of_this_kind or images.dtype != jnp.float32 or not isinstance(images.shape[0], int):
        return None
    size = layer.size(images.shape[1:3])
    if min(size) < 1 or images.shape[0] == 0:
        return None
    channels, features = images.shape[-1], math.prod(kernel.shape[2:]) // images.shape[-1]
    costs: dict[winograd.Algorithm | None, float] = {None: images.shape[0] * math.prod(size) * 9 * channels * features}
    for algorithm in (winograd.F2,) if exact else (winograd.F2, winograd.F4):
        tiles = images.shape[0] * math.prod(algorithm.tiles(size))
        moved = tiles * (channels + features) + channels * features
        costs[algorithm] = algorithm.tile**2 * (tiles * channels * features + MOVED * moved)
    return min(costs, key=costs.__getitem__)
