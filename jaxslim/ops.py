"""Which way convolutions and batch statistics are computed, where XLA's own way is slow on CPUs.

Parameters and results are the same, so networks of your own can use both: `nn.Conv(..., conv_general_dilated=conv)` and
`BatchNorm(...)` in place of Flax's. On other platforms they are what Flax and XLA do; `conv` looks at the platform that
the program is compiled for, the others at JAX's default backend. On CPUs their derivatives are written out, which
leaves reverse mode (`jax.grad`, `jax.vjp`) and no forward mode (`jax.jvp`).

The times are of one 3x3 convolution, or one normalisation with its ReLU, in float32 with batch 64 on 2 cores of an
x86-64 server, where a large matrix product reached 400 GFLOP/s.
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

SMALL_MAP = 4
"""Height and width up to which matrix products are faster, forward and for the gradient of the images.

512 channels in and out: 10 ms each on 4x4 maps against XLA's 13 and 14 ms. On 2x2 maps XLA refuses its fast path, since
the kernel is larger than the image, and takes hundreds of milliseconds against 2 and 4. On 8x8 maps XLA is faster.
"""

TINY_MAP = 2
"""The same for the gradient of the kernel: 3 ms on 2x2 maps, but 12 to 14 ms on 4x4 maps against XLA's 11.6 ms."""

FEW_IMAGES = 8
"""Batches below which one product of patches is faster than one for each position of the kernel, which copies parts of
the kernel: one image of 2x2x512 takes 0.2 ms against 0.4 ms, where 64 take 4.4 ms against 2.2."""

ROW = 128
"""Positions that batch statistics add up first: 32x32x64 takes 0.3 ms in these two stages against 3.7 ms in one."""

_CHANNELS_LAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


@functools.cache
def compiler_options() -> dict[str, str]:
    """What to compile steps with: `jax.jit(step, compiler_options=jaxslim.ops.compiler_options())`.

    On CPUs, XLA's newer library for convolutions (YNNPACK) is left out. With 2 cores, batch 64 and 64 channels in and
    out of a 32x32 map, a 3x3 convolution took 168 ms with it and 100 ms without, its gradients 167 and 184 ms against
    96 and 129 ms; with 128 channels on 16x16, 137, 112 and 210 ms against 117, 111 and 148 ms.

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
    """`lax.conv_general_dilated`, on CPUs as matrix products where these are faster.

    Args:
      images: (n, height, width, channels), or anything that `lax.conv_general_dilated` takes.
      kernel: (height, width, channels, features).
      window_strides: and the others, as `lax.conv_general_dilated` takes them.

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
    taps, patches = (
        functools.partial(form, strides=window_strides, padding=padding, precision=options.get("precision"))
        for form in (_taps, _patches)
    )
    product = taps if len(images) >= FEW_IMAGES else patches
    on_cpu = _bilinear(product, to_images=taps, to_kernel=product if size <= TINY_MAP else plain)
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=plain)


def _bilinear(forward: Any, *, to_images: Any, to_kernel: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """One function that is linear in both arguments, in three ways: forward, and for the gradient of each argument."""

    def backward(arguments: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, kernel = arguments
        (images_gradient,) = jax.linear_transpose(lambda x: to_images(x, kernel), images)(gradient)
        (kernel_gradient,) = jax.linear_transpose(lambda w: to_kernel(images, w), kernel)(gradient)
        return images_gradient, kernel_gradient

    function = jax.custom_vjp(lambda images, kernel: forward(images, kernel))
    function.defvjp(lambda *arguments: (forward(*arguments), arguments), backward)
    return function


def _taps(images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, precision: Any) -> jax.Array:
    """A matrix product for each position of the kernel, of only the pixels that it meets: no work for zeros padded."""
    n, *size, channels = images.shape
    height, width, _, features = kernel.shape
    rows = [_met(size[0], height, at, strides[0], padding[0]) for at in range(height)]
    columns = [_met(size[1], width, at, strides[1], padding[1]) for at in range(width)]
    exact = jnp.promote_types(images.dtype, jnp.float32)  # in which half precision is added up
    parts = []
    for row, (first_row, end_row, around_rows) in enumerate(rows):
        for column, (first_column, end_column, around_columns) in enumerate(columns):
            pixels = lax.slice(
                images, (0, first_row, first_column, 0), (n, end_row, end_column, channels), (1, *strides, 1)
            )
            tap = lax.slice(kernel, (row, column, 0, 0), (row + 1, column + 1, channels, features))
            contracted = (((3,), (0,)), ((), ()))
            part = lax.dot_general(
                pixels, tap.reshape(channels, features), contracted, precision=precision, preferred_element_type=exact
            )
            around = ((0, 0, 0), (*around_rows, 0), (*around_columns, 0), (0, 0, 0))
            parts.append(lax.pad(part, np.zeros((), part.dtype), around))
    return functools.reduce(operator.add, parts).astype(images.dtype)


def _met(size: int, window: int, at: int, stride: int, padding: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
    """Along one axis: first and end of the pixels that position `at` of the kernel meets, and for how many outputs
    before and after these it meets padding."""
    outputs = (size + sum(padding) - window) // stride + 1
    offset = at - padding[0]
    first = min(max(0, -(offset // stride)), outputs)
    end = max(first, min(outputs, (size - 1 - offset) // stride + 1))
    start = first * stride + offset
    return *((start, start + (end - first - 1) * stride + 1) if first < end else (0, 0)), (first, outputs - end)


def _patches(images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, precision: Any) -> jax.Array:
    """One matrix product of all patches of the image side by side (im2col)."""
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
    """`nn.BatchNorm`, with training on CPUs that adds up in two stages and takes its gradient in one pass.

    With its ReLU, forward and gradients of 32x32x64 took 6.5 ms against 33 ms, of 16x16x128 1.9 against 15 ms, of
    8x8x256 1.0 against 8.7 ms. The variance is that of `use_fast_variance=False` in any case, and no gradient goes
    through the running statistics. What it is not made for (half precision, masks, named axes, another axis than the
    last, two dimensions, no scale or bias) is left to Flax.
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
        running = (
            self.variable("batch_stats", "mean", jnp.zeros, shape),
            self.variable("batch_stats", "var", jnp.ones, shape),
        )
        scale, bias = self.param("scale", self.scale_init, shape), self.param("bias", self.bias_init, shape)
        out, *statistics = _batch_norm(self.epsilon, x, scale, bias)
        if not self.is_initializing():
            for old, new in zip(running, statistics, strict=True):
                old.value = self.momentum * old.value + (1 - self.momentum) * lax.stop_gradient(new)
        return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_norm(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    """The normalised `x`, and mean and biased variance (channels,), through which no gradient goes."""
    count = x.size // x.shape[-1]
    mean = _channel_sums(x) / count
    variance = _channel_sums(jnp.square(x - _like(x, mean))) / count
    factor = lax.rsqrt(variance + epsilon) * scale
    return (x - _like(x, mean)) * _like(x, factor) + _like(x, bias), mean, variance


def _batch_norm_forward(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
    out, mean, variance = _batch_norm(epsilon, x, scale, bias)
    return (out, mean, variance), (x, scale, mean, variance)


def _batch_norm_backward(epsilon: float, saved: Any, gradients: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ioffe & Szegedy 2015, section 3, with the terms of mean and variance brought together."""
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
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _channel_sums(x: jax.Array) -> jax.Array:
    """Sums (channels,) over all axes but the last."""
    positions = math.prod(x.shape[1:-1])
    row = max(size for size in range(1, min(positions, ROW) + 1) if positions % size == 0)
    parts = x.reshape(x.shape[0], positions // row, row, x.shape[-1]).sum(2)
    return lax.optimization_barrier(parts).sum((0, 1))  # without the barrier XLA makes one stage of the two
