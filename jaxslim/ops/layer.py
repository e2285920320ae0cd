"""One convolution as the primitive of JAX describes it, with the axes in the order that all forms here use."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

CHANNELS_LAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
Pairs = tuple[tuple[int, int], tuple[int, int]]


class Shape(NamedTuple):
    """What is known of an array. A batch may be a symbol, or None where several devices divide it."""

    shape: tuple[Any, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of images (n, height, width, channels) and a kernel (height, width, channels a group, features)."""

    window: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Pairs = ((0, 0), (0, 0))
    """Rows or columns of zeros before and after; where negative, of the images that are left out."""
    spread: tuple[int, int] = (1, 1)
    """Each pixel stands this far from the next, with zeros between (`lhs_dilation`), as where images are enlarged."""
    dilation: tuple[int, int] = (1, 1)
    """The same for the kernel (`rhs_dilation`)."""
    groups: int = 1

    @property
    def is_dense(self) -> bool:
        """Whether neither images nor kernel are dilated and all channels go into all features."""
        return self.spread == self.dilation == (1, 1) and self.groups == 1

    def size(self, images: Sequence[Any]) -> tuple[Any, Any]:
        """Height and width of the outputs, from those of the images."""
        rows, columns = (
            ((n - 1) * spread + 1 + sum(pad) - (window - 1) * dilation - 1) // stride + 1
            for n, spread, pad, window, dilation, stride in zip(
                images, self.spread, self.padding, self.window, self.dilation, self.strides, strict=True
            )
        )
        return rows, columns

    def plain(self, images: jax.Array, kernel: jax.Array) -> jax.Array:
        """XLA's convolution. Negative padding is cut off beforehand, since XLA's results are wrong there on CPUs."""
        inside = self
        if min(itertools.chain(*self.padding)) < 0 and self.spread == (1, 1):
            crop = [(min(low, 0), min(high, 0), 0) for low, high in self.padding]
            images = lax.pad(images, np.zeros((), images.dtype), [(0, 0, 0), *crop, (0, 0, 0)])
            rows, columns = ((max(low, 0), max(high, 0)) for low, high in self.padding)
            inside = dataclasses.replace(self, padding=(rows, columns))
        return lax.conv_general_dilated(
            images,
            kernel,
            inside.strides,
            inside.padding,
            inside.spread,
            inside.dilation,
            CHANNELS_LAST,
            inside.groups,
        )

    def plain_gradient(self, images: jax.Array, gradient: jax.Array) -> jax.Array:
        """The gradient of the kernel as XLA's convolution; nothing is spread or grouped.

        JAX's own transposition would add it up over the devices of a `shard_map` once more.
        """
        reach = (
            (window - 1) * dilation + (n - 1) * stride + 1
            for window, dilation, n, stride in zip(
                self.window, self.dilation, gradient.shape[1:3], self.strides, strict=True
            )
        )
        padding = [
            (low, end - low - n) for end, (low, _), n in zip(reach, self.padding, images.shape[1:3], strict=True)
        ]
        return lax.conv_general_dilated(
            images,
            gradient,
            self.dilation,
            padding,
            rhs_dilation=self.strides,
            dimension_numbers=lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1)),
        )

    def widened(self, images: jax.Array, kernel: jax.Array) -> jax.Array:
        """XLA's convolution with more columns of outputs than the images have, of which the last are dropped.

        XLA for JAX 0.10 has a library that is slow for few channels and does not take such convolutions.
        """
        rows, (low, high) = self.padding
        columns = self.size(images.shape[1:3])[1]
        more = images.shape[2] + 1 - columns
        return dataclasses.replace(self, padding=(rows, (low, high + more))).plain(images, kernel)[:, :, :columns]
