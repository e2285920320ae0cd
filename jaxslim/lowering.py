"""Which way a convolution is computed, where XLA's own choice is slow; parameters and results are the same.

Use it in networks of your own: `nn.Conv(..., conv_general_dilated=lowering.conv)`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

SMALL_MAP = 4
"""Height and width up to which XLA's CPU convolution is slower than a matrix product.

With 512 channels in and out, batch 64 and 2 cores, forward and gradients of a 3x3 convolution took 2.8 s on a 2x2 map
(where XLA refuses its fast path, since the kernel is larger than the image) against 0.03 s, and 0.27 s on a 4x4 map
against 0.12 s; on 8x8 maps the two are alike and on larger ones XLA is faster.
"""


@functools.cache
def compiler_options() -> dict[str, str]:
    """What to compile steps with: `jax.jit(step, compiler_options=jaxslim.lowering.compiler_options())`.

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
    """`lax.conv_general_dilated`, on CPUs as im2col and a matrix product where the map is small.

    Args:
      images: (n, height, width, channels), or anything that `lax.conv_general_dilated` takes.
      kernel: (height, width, channels, features).
      window_strides: and the others, as `lax.conv_general_dilated` takes them.

    Returns:
      (n, height, width, features).
    """
    channels_last = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    if (
        jax.default_backend() == "cpu"
        and dimension_numbers == channels_last
        and feature_group_count == 1
        and {*(lhs_dilation or ()), *(rhs_dilation or ())} <= {1}
        and max(images.shape[1:3]) <= SMALL_MAP
        and math.prod(kernel.shape[:2]) > 1
    ):
        return _im2col(images, kernel, window_strides, padding, options.get("precision"))
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **options,
    )


def _im2col(images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, precision: Any) -> jax.Array:
    height, width, channels, features = kernel.shape
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], (height, width), strides, padding)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    last_row, last_column = (size - window for size, window in zip(padded.shape[1:3], (height, width), strict=True))
    patches = [
        padded[:, row : row + last_row + 1 : strides[0], column : column + last_column + 1 : strides[1]]
        for row in range(height)
        for column in range(width)
    ]
    flat = kernel.reshape(height * width * channels, features)
    return jnp.matmul(jnp.concatenate(patches, axis=-1), flat, precision=precision)
