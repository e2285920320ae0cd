"""A convolution and a BatchNorm that are faster on CPUs than XLA's own, with the same parameters and results.

Your own networks can use both: `nn.Conv(..., conv_general_dilated=conv)`, and `BatchNorm(...)` in place of Flax's. On
other platforms they do what Flax and XLA do. `conv` goes by the platform that the program is compiled for, everything
else by JAX's default backend. On CPUs both have hand-written gradients: `jax.grad` and `jax.vjp` work, `jax.jvp` does
not.

Times in this file: one 3x3 convolution, or one normalisation with its ReLU, in float32 with batch 64 on 2 cores of an
x86-64 server. A large matrix product reached 400 GFLOP/s there.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

# Largest height and width at which matrix products are faster, forward and for the gradient of the images. With 512
# channels in and out, a 4x4 map takes 10 ms each way, where XLA takes 13 and 14 ms. On 2x2 maps the kernel is larger
# than the image, so XLA leaves its fast path: hundreds of ms against 2 and 4. On 8x8 maps XLA is faster.
SMALL_MAP = 4
# The same for the gradient of the kernel. A 2x2 map takes 3 ms. A 4x4 map takes 12 to 14 ms, where XLA takes 11.6 ms.
TINY_MAP = 2
# Smallest batch for one product per position of the kernel; a smaller batch is one product of patches. Taking the
# kernel apart copies it. One image of 2x2x512 takes 0.4 ms and as patches 0.2 ms; 64 images take 2.2 and 4.4 ms.
FEW_IMAGES = 8
# Positions that the first of two stages of batch statistics adds up: 32x32x64 takes 0.3 ms, in one stage 3.7 ms.
ROW = 128
_CHANNELS_LAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options to compile a step with: `jax.jit(step, compiler_options=jaxslim.ops.compiler_options())`.

    On CPUs they turn off XLA's newer library for convolutions (YNNPACK). Measured on 2 cores at batch 64, in ms for the
    forward pass and the two gradients: 64 channels on 32x32 take 168, 167 and 184 with the library, 100, 96 and 129
    without; 128 channels on 16x16 take 137, 112 and 210 with it, 117, 111 and 148 without.

    Returns:
      Options that this JAX knows; none on other platforms.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # an XLA without that library
        return {}
    return options


def conv(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, which on CPUs becomes matrix products where these are faster.

    Args:
      images: (n, height, width, channels), or anything that `lax.conv_general_dilated` takes.
      kernel: (height, width, channels, features).
      window_strides: as `lax.conv_general_dilated` takes it, like all arguments that follow.

    Returns:
      (n, height, width, features).
    """
    plain: Callable[..., jax.Array] = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **options,
    )
    size = max(images.shape[1:3])
    if (
        dimension_numbers != _CHANNELS_LAST
        or feature_group_count != 1
        or not {*(lhs_dilation or ()), *(rhs_dilation or ())} <= {1}
        or math.prod(kernel.shape[:2]) == 1
        or size > SMALL_MAP
        or any(value is not None for name, value in options.items() if name != "precision")
    ):
        return plain(images, kernel)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], window_strides, padding)
    if any(n + sum(pad) < window for n, pad, window in zip(images.shape[1:3], padding, kernel.shape, strict=False)):
        return plain(images, kernel)  # there are no outputs
    arguments: dict[str, Any] = {"strides": window_strides, "padding": padding, "precision": options.get("precision")}
    taps, patches = functools.partial(_taps, **arguments), functools.partial(_patches, **arguments)
    few = isinstance(images.shape[0], int) and len(images) < FEW_IMAGES  # a program for any batch has no number there
    product = patches if few else taps
    on_cpu = _bilinear(product, to_images=taps, to_kernel=product if size <= TINY_MAP else plain)
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=plain)


def _bilinear(forward: Any, *, to_images: Any, to_kernel: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`forward`, linear in images and kernel. Its gradients transpose `to_images` and `to_kernel`, which equal it."""

    def backward(arguments: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, kernel = arguments
        (images_gradient,) = jax.linear_transpose(lambda x: to_images(x, kernel), images)(gradient)
        (kernel_gradient,) = jax.linear_transpose(lambda w: to_kernel(images, w), kernel)(gradient)
        return images_gradient, kernel_gradient

    function = jax.custom_vjp(lambda images, kernel: forward(images, kernel))
    function.defvjp(lambda *arguments: (forward(*arguments), arguments), backward)
    return function


def _taps(images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, precision: Any) -> jax.Array:
    """One matrix product per position of the kernel, with only the pixels under it: padded zeros cost nothing."""
    (_, *size, _), (height, width, *_) = images.shape, kernel.shape
    rows = [_overlap(size[0], height, position, strides[0], padding[0]) for position in range(height)]
    columns = [_overlap(size[1], width, position, strides[1], padding[1]) for position in range(width)]
    exact = jnp.promote_types(images.dtype, jnp.float32)  # half precision is added up in float32
    parts = []
    for row, (in_rows, around_rows) in enumerate(rows):
        for column, (in_columns, around_columns) in enumerate(columns):
            pixels, tap = images[:, in_rows, in_columns], kernel[row, column]
            part = jnp.matmul(pixels, tap, precision=precision, preferred_element_type=exact)
            around = ((0, 0, 0), (*around_rows, 0), (*around_columns, 0), (0, 0, 0))
            parts.append(lax.pad(part, np.zeros((), part.dtype), around))
    return functools.reduce(operator.add, parts).astype(images.dtype)


def _overlap(size: int, window: int, position: int, stride: int, padding: tuple[int, int]) -> tuple[slice, Any]:
    """The pixels of one axis under a position of the kernel, and how many outputs before and after meet padding."""
    outputs = (size + sum(padding) - window) // stride + 1
    offset = position - padding[0]
    first = min(max(0, -(offset // stride)), outputs)
    end = max(first, min(outputs, (size - 1 - offset) // stride + 1))
    start = first * stride + offset
    pixels = slice(start, start + (end - first - 1) * stride + 1, stride) if first < end else slice(0)
    return pixels, (first, outputs - end)


def _patches(images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, precision: Any) -> jax.Array:
    """One matrix product of all patches of the images, laid side by side (im2col)."""
    height, width, channels, features = kernel.shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    last_row, last_column = (size - window for size, window in zip(padded.shape[1:3], (height, width), strict=True))
    patches = [
        padded[:, row : row + last_row + 1 : strides[0], column : column + last_column + 1 : strides[1]]
        for row in range(height)
        for column in range(width)
    ]
    flat = kernel.reshape(height * width * channels, features)
    return jnp.matmul(jnp.concatenate(patches, axis=-1), flat, precision=precision)


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm`, trained faster on CPUs: statistics in two stages, gradients in one pass.

    With its ReLU, forward and gradients take 6.5 ms on 32x32x64 (Flax 33 ms), 1.9 ms on 16x16x128 (15 ms) and 1.0 ms on
    8x8x256 (8.7 ms). The variance is always that of `use_fast_variance=False`. Running statistics pass no gradient on.
    Flax computes the rest: half precision, masks, named axes, an axis other than the last, two dimensions, no scale or
    no bias.
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        dtypes = {jnp.dtype(kind) for kind in (x.dtype, self.dtype or x.dtype, self.param_dtype)}
        if (
            jax.default_backend() != "cpu"
            or average
            or mask is not None
            or dtypes != {jnp.dtype(jnp.float32)}
            or x.ndim < 3
            or self.axis not in (-1, x.ndim - 1)
            or self.axis_name is not None
            or not (self.use_scale and self.use_bias)
        ):
            return super().__call__(x, use_running_average, mask=mask)
        shape = x.shape[-1:]
        start = {"mean": jnp.zeros, "var": jnp.ones}
        running = [self.variable("batch_stats", name, make, shape) for name, make in start.items()]
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", self.bias_init, shape)
        out, *statistics = _batch_norm(self.epsilon, x, scale, bias)
        if not self.is_initializing():
            for old, new in zip(running, statistics, strict=True):
                old.value = self.momentum * old.value + (1 - self.momentum) * lax.stop_gradient(new)
        return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_norm(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    """The normalised `x`, the mean and the biased variance (channels,); the last two pass no gradient on."""
    count = x.size // x.shape[-1]
    mean = _channel_sums(x) / count
    variance = _channel_sums(jnp.square(x - _like(x, mean))) / count
    factor = lax.rsqrt(variance + epsilon) * scale
    return (x - _like(x, mean)) * _like(x, factor) + _like(x, bias), mean, variance


def _batch_norm_forward(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    out, mean, variance = _batch_norm(epsilon, x, scale, bias)
    return (out, mean, variance), (x, scale, mean, variance)


def _batch_norm_backward(epsilon: float, saved: Any, gradients: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of Ioffe & Szegedy 2015, section 3, with the terms of mean and variance put together."""
    (x, scale, mean, variance), gradient = saved, gradients[0]
    count = x.size // x.shape[-1]
    inverse = lax.rsqrt(variance + epsilon)
    centred = x - _like(x, mean)
    bias_gradient = _channel_sums(gradient)
    scale_gradient = _channel_sums(gradient * centred) * inverse
    pull = _like(x, bias_gradient / count) + centred * _like(x, inverse * scale_gradient / count)
    return _like(x, scale * inverse) * (gradient - pull), scale_gradient, bias_gradient


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _like(x: jax.Array, values: jax.Array) -> jax.Array:
    """`values` (channels,) with as many dimensions as `x`."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _channel_sums(x: jax.Array) -> jax.Array:
    """Sums (channels,) over all axes but the last, in two stages."""
    positions = math.prod(x.shape[1:-1])
    row = max(size for size in range(1, min(positions, ROW) + 1) if positions % size == 0)
    parts = x.reshape(x.shape[0], positions // row, row, x.shape[-1]).sum(2)
    return lax.optimization_barrier(parts).sum((0, 1))  # without the barrier, XLA merges the stages
