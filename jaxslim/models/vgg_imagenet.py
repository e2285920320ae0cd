"""VGG with batch normalisation for ImageNet, as torchvision has it (Simonyan & Zisserman 2015, table 1)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxslim.models.layers import batch_norm, check_count
from jaxslim.models.vgg import WIDTHS, check_widths, convolutions, widths_of

GRID = 7
"""Height and width of the map that the dense layers read."""


class ImageNetVGG(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, poolings, a map of 7x7, and three dense layers with dropout between.

    The convolutions have no bias, which BatchNorm would subtract again. They are initialised as in `VGG`, so BatchNorm
    scales start at 0.5. `vgg_a` is the network of Liu et al., ICCV 2017, section 4: eleven layers, no dropout, and
    BatchNorm behind the hidden dense layers too, whose neurons are cut like channels.

    `apply` takes float images (n, height, width, channels) and `train`, which uses and updates batch statistics and
    needs a key of the name `dropout`. It returns logits (n, num_classes) in float32, or in `dtype` if that is more
    precise.
    """

    widths: Sequence[int | str]
    """Channels of each convolution, "M" for each pooling."""
    hidden: Sequence[int] = (4096, 4096)
    """Widths of the dense layers in front of the classifier."""
    num_classes: int = 1000
    dropout: float = 0.5
    """Share of each hidden layer that training drops."""
    dense_norm: bool = False
    """Whether BatchNorm follows the hidden dense layers, which then have no bias."""
    dtype: Any = jnp.float32
    """Precision of the computation; parameters are float32."""

    def __post_init__(self) -> None:
        check_widths(self.widths)
        for name, value in (
            ("num_classes", self.num_classes),
            *(("A width in hidden", width) for width in self.hidden),
        ):
            check_count(name, value)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = adaptive_pool(convolutions(images, self.widths, train, self.dtype))
        for layer, width in enumerate((*self.hidden, self.num_classes)):
            x = nn.DenseGeneral(
                width,
                axis=(1, 2, 3) if layer == 0 else -1,  # no reshape, so only channels can be cut and no pixels
                use_bias=not (self.dense_norm and layer < len(self.hidden)),
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.01),
                name=f"dense{layer}" if layer < len(self.hidden) else "classifier",
            )(x)
            if layer < len(self.hidden):
                x = batch_norm(train, dtype=self.dtype, name=f"dense_bn{layer}")(x) if self.dense_norm else x
                x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def resized(self, variables: Mapping[str, Any]) -> "ImageNetVGG":
        """The network whose parameters have the shapes of `variables`, for example after a cut."""
        dense = (variables["params"][f"dense{layer}"]["kernel"] for layer in range(len(self.hidden)))
        hidden = tuple(kernel.shape[-1] for kernel in dense)
        return self.clone(widths=widths_of(self.widths, variables), hidden=hidden)


def adaptive_pool(x: jax.Array) -> jax.Array:
    """Means over a grid of 7x7 windows that cover the map: (n, h, w, c) -> (n, 7, 7, c).

    Windows overlap or repeat where the map does not divide by 7, as those of PyTorch's adaptive average pooling do.
    """
    if x.shape[1:3] == (GRID, GRID):
        return x
    rows, columns = (jnp.asarray(_windows(size), x.dtype) for size in x.shape[1:3])
    return jnp.einsum("ih,jw,nhwc->nijc", rows, columns, x)


def _windows(size: int) -> np.ndarray:
    """What each of the 7 means takes of each pixel along an axis: (7, size)."""
    number, pixel = np.arange(GRID)[:, None], np.arange(size)
    inside = (pixel >= number * size // GRID) & (pixel < -(-(number + 1) * size // GRID))
    return inside / inside.sum(1, keepdims=True)


VARIANTS = {f"{name}_bn": functools.partial(ImageNetVGG, widths=(*widths, "M")) for name, widths in WIDTHS.items()}
vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = VARIANTS.values()
VARIANTS["vgg_a"] = vgg_a = functools.partial(ImageNetVGG, widths=(*WIDTHS["vgg11"], "M"), dropout=0.0, dense_norm=True)
