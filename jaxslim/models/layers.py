"""Layers that the networks share: a convolution and a BatchNorm with PyTorch's conventions, and the check of images."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxslim import ops
from jaxslim.errors import InputError, quoted


def convolution(features: int, window: int, strides: int = 1, *, dtype: Any, name: str) -> nn.Conv:
    """A convolution without bias, padded by half its window, with He's initialisation by the outputs (fan-out)."""
    return nn.Conv(
        features,
        (window, window),
        strides,
        padding=window // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=ops.conv,
        name=name,
    )


def batch_norm(train: bool, *, dtype: Any, name: str, scale: float = 0.5) -> ops.BatchNorm:
    """BatchNorm whose running statistics move by a tenth a step; its scales start at `scale`, 0.5 in slimming."""
    return ops.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        scale_init=nn.initializers.constant(scale),
        use_fast_variance=False,
        name=name,
    )


def check_images(images: jax.Array) -> tuple[int, ...]:
    """The shape (n, height, width, channels) of a batch of images; an InputError for an array of other dimensions."""
    shape: tuple[int, ...] = getattr(images, "shape", ())
    if len(shape) != 4:
        raise InputError(f"The images have shape {shape}; pass an array (n, height, width, channels).")
    return shape


def check_count(name: str, value: Any) -> None:
    """Refuse a field that counts something and is no whole number of at least 1."""
    if not is_count(value):
        raise InputError(f"{name} is {quoted(value)}; it must be an integer of at least 1.")


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1 that fits into 32 bits."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 1 <= int(value) < 2**31
