"""Which form of a convolution is the fastest on a CPU, by its shape and batch.

Times in this file: one 3x3 convolution in float32, with batch 64 if nothing else is said, on 2 cores of x86-64 servers
with AVX-512. A large matrix product reached 200 GFLOP/s there, and 400 where the small maps were measured.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim.ops import depthwise, enlarging, grouped, products, winograd
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
# Multiplications in the time that Winograd's algorithm takes for each number of its tiles, about: 35 to 60 where these
# are many and channels few, up to 130 where products are short. At 60 the choice fits the times of 29 layers: F(4x4)
# takes 0.72 of XLA's time at 32x32x64, 0.62 at 16x16x128, 0.43 at 8x8x256, 0.98 at 16x16x32, 1.4 at 32x32x16.
MOVED = 60
# JAX 0.10: 64 channels on 32x32 take 51 ms by way of YNNPACK, 28 ms without and 30 ms with one more column; 64 and 128
# channels on 16x16 take 23, 12 and 13 ms, 128 and 128 take 24, 25 and 27 ms, 16 and 16 on 32x32 take 3.4, 3.5 and 4 ms.
# JAX 0.12 takes the same times with the library as without.
CHANNELS, FEW_COLUMNS = range(32, 128), 8
# Fewest tiles for F(4x4): products of fewer rows wait for the kernel's tiles, 4 times as many numbers as the kernel.
MANY_TILES = 128

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
    features = kernel.shape[2 if features_first else 3]
    if algorithm := _algorithm(images, features, layer, exact):
        return functools.partial(winograd.convolve, padding=layer.padding, by=algorithm, features_first=features_first)
    if is_small(images, layer):
        if _has_few(images) and not features_first:
            return functools.partial(products.patches, layer=layer)
        return functools.partial(products.taps, layer=layer, features_first=features_first)
    form = _other(images, features, layer, exact)
    if form is None or not features_first:
        return form
    return lambda images, kernel: form(images, kernel.swapaxes(2, 3))


def _other(images: Any, features: int, layer: Layer, exact: bool) -> Form | None:
    inner = functools.partial(_convolve, exact=exact)
    if _is_depthwise(images.shape[-1], features, layer):
        return functools.partial(depthwise.convolve, layer=layer)
    if layer.spread != (1, 1) and layer.strides == layer.dilation == (1, 1):
        return functools.partial(enlarging.convolve, layer=layer, inner=inner)
    if layer.groups > 1:
        return functools.partial(grouped.convolve, layer=layer, inner=inner)
    if layer.is_dense and layer.window == (1, 1) and layer.padding == ((0, 0), (0, 0)):
        return functools.partial(products.pointwise, layer=layer)
    if min(min(pad) for pad in layer.padding) < 0:
        return layer.plain
    return layer.widened if _is_slow_in_xla(images, features, layer) else None


def _is_slow_in_xla(images: Any, features: int, layer: Layer) -> bool:
    """Whether XLA takes a library (YNNPACK) for a convolution that halves its speed."""
    narrow = min(images.shape[-1], features) in CHANNELS
    of_that_kind = layer.is_dense and layer.strides == (1, 1) and images.dtype == jnp.float32
    short = 0 <= images.shape[2] - layer.size(images.shape[1:3])[1] <= 2 < FEW_COLUMNS <= images.shape[2]
    return jax.__version_info__ < (0, 11) and of_that_kind and narrow and short


def _convolve(images: jax.Array, kernel: jax.Array, layer: Layer, exact: bool) -> jax.Array:
    return (forward(images, kernel, layer, exact=exact) or layer.plain)(images, kernel)


def kernel_gradient(images: Any, gradient: Any, layer: Layer, *, exact: bool) -> Form | None:
    """The form of the gradient (height, width, channels a group, features) of the kernel of `layer`, from images (n,
    height, width, channels) and the gradient of the outputs (n, height, width, features); None as for `forward`."""
    channels, features, inner = images.shape[-1], gradient.shape[-1], functools.partial(_gradient, exact=exact)
    if _is_depthwise(channels, features, layer):
        return functools.partial(depthwise.kernel_gradient, layer=layer)
    if layer.spread != (1, 1) and layer.strides == layer.dilation == (1, 1):
        return functools.partial(enlarging.kernel_gradient, layer=layer, inner=inner)
    if layer.groups > 1:
        return functools.partial(grouped.kernel_gradient, layer=layer, inner=inner)
    if not layer.is_dense:
        return None
    if algorithm := _algorithm(images, features, layer, exact):
        return functools.partial(winograd.kernel_gradient, padding=layer.padding, by=algorithm)
    thinned = tuple(-(-n // stride) for n, stride in zip(images.shape[1:3], layer.strides, strict=True))
    if layer.window == (1, 1) and layer.padding[0][0] == layer.padding[1][0] == 0 and thinned == gradient.shape[1:3]:
        return functools.partial(products.pointwise_gradient, layer=layer)
    if is_small(images, layer) and _has_few(images):
        return functools.partial(products.patches_gradient, layer=layer)
    crops = min(low for low, _ in layer.padding) < 0  # XLA's results are wrong there on CPUs
    if max(images.shape[1:3]) <= TINY_MAP or layer.window == (1, 1) or crops:
        return functools.partial(products.taps_gradient, layer=layer)
    return None


def _gradient(images: jax.Array, gradient: jax.Array, layer: Layer, exact: bool) -> jax.Array:
    return (kernel_gradient(images, gradient, layer, exact=exact) or layer.plain_gradient)(images, gradient)


def is_small(images: Any, layer: Layer) -> bool:
    """Whether products of the pixels under each position of the kernel are faster than XLA's convolution."""
    size = images.shape[1:3]
    return layer.is_dense and max(size) <= SMALL_MAP and min(layer.size(size)) > 0 and layer.window != (1, 1)


def _has_few(images: Any) -> bool:
    """Whether a batch, which may be open, is known to be small."""
    return isinstance(images.shape[0], int) and images.shape[0] < FEW_IMAGES


def _is_depthwise(channels: int, features: int, layer: Layer) -> bool:
    return layer.groups == channels == features and layer.spread == layer.dilation == (1, 1)


def _algorithm(images: Any, features: int, layer: Layer, exact: bool) -> winograd.Algorithm | None:
    """Winograd's algorithm that takes the least time; None where the direct one does."""
    of_this_kind = layer.is_dense and layer.window == (3, 3) and layer.strides == (1, 1)
    if not of_this_kind or images.dtype != jnp.float32 or not isinstance(images.shape[0], int):
        return None
    size = layer.size(images.shape[1:3])
    if min(size) < 1 or images.shape[0] == 0:
        return None
    channels = images.shape[-1]
    small = max(images.shape[1:3]) <= SMALL_MAP
    positions = math.prod(3 * n - 2 if small else 3 * n for n in size)  # on small maps, padded zeros cost nothing
    costs: dict[winograd.Algorithm | None, int] = {None: images.shape[0] * positions * channels * features}
    for algorithm in (winograd.F2,) if exact else (winograd.F2, winograd.F4):
        tiles = images.shape[0] * math.prod(algorithm.tiles(size))
        if algorithm is winograd.F2 or tiles >= MANY_TILES:
            moved = tiles * (channels + features) + channels * features
            costs[algorithm] = algorithm.tile**2 * (tiles * channels * features + MOVED * moved)
    return min(costs, key=costs.__getitem__)
