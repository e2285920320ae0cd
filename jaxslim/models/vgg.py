"""VGG with batch normalisation (Simonyan & Zisserman 2015; the CIFAR form of Liu et al., ICCV 2017, section 4)."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxslim.errors import InputError, quoted
from jaxslim.models.layers import batch_norm, check_count, check_images, convolution, is_count


class VGG(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, 2x2 maximum pooling, global average, one dense layer.

    The initial parameters are the reference's: convolutions normal with deviation sqrt(2 / (9 * out)), BatchNorm scales
    0.5, the dense layer normal with deviation 0.01. Running statistics move by a tenth per step. They hold the biased
    variance, as everywhere in Flax; PyTorch's hold the unbiased one.

    `apply` takes float images (n, height, width, channels) and `train`, which uses and updates batch statistics. It
    returns logits (n, num_classes) in float32, or in `dtype` if that is more precise.
    """

    widths: Sequence[int | str]
    """Channels of each convolution, "M" for each pooling."""
    num_classes: int = 10
    dtype: Any = jnp.float32
    """Precision of the computation; parameters are float32."""

    def __post_init__(self) -> None:
        check_widths(self.widths)
        check_count("num_classes", self.num_classes)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = convolutions(images, self.widths, train, self.dtype)
        initial = nn.initializers.normal(0.01)
        x = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=initial, name="classifier")(x.mean((1, 2)))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def resized(self, variables: Mapping[str, Any]) -> "VGG":
        """The VGG whose parameters have the shapes of `variables`, for example after a cut."""
        return self.clone(widths=widths_of(self.widths, variables))

    def architecture(self) -> str:
        """The widths as tables show them, for example [64, 'M', 128]."""
        return str(["M" if width == "M" else int(width) for width in self.widths])


def check_widths(widths: Sequence[int | str]) -> None:
    """Refuse widths that are neither counts of channels nor "M"."""
    if wrong := [width for width in widths if width != "M" and not is_count(width)]:
        advice = 'each must be a positive number of channels or "M" for pooling.'
        raise InputError(f"widths hold {quoted(wrong[0])}; {advice}")


def convolutions(images: jax.Array, widths: Sequence[int | str], train: bool, dtype: Any) -> jax.Array:
    """The layers of a VGG in front of its classifier, as submodules `conv0`, `bn0`, ... of the module that calls."""
    shape = check_images(images)
    if min(shape[1:3]) < 2 ** (poolings := [*widths].count("M")):
        small = f"{poolings} poolings shrink images of {shape[1]}x{shape[2]} pixels to nothing"
        raise InputError(f"{small}; use larger images, or widths with fewer M.")
    x, layer = images, 0
    for width in widths:
        if width == "M":
            x = max_pool(x)
            continue
        x = convolution(int(width), 3, dtype=dtype, name=f"conv{layer}")(x)
        x = nn.relu(batch_norm(train, dtype=dtype, name=f"bn{layer}")(x))
        layer += 1
    return x


def widths_of(widths: Sequence[int | str], variables: Mapping[str, Any]) -> tuple[int | str, ...]:
    """`widths` with the channels that the convolutions of `variables` have."""
    params = variables["params"]
    channels = (params[f"conv{layer}"]["kernel"].shape[-1] for layer in itertools.count())
    return tuple("M" if width == "M" else next(channels) for width in widths)


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum of 2x2 windows with stride 2: (n, h, w, c) -> (n, h // 2, w // 2, c).

    It drops an odd last row or column, as `nn.max_pool` does. Its gradient is over 20 times faster on CPUs, because it
    takes four strided slices in place of a window reduction. Tied pixels share the gradient.
    """
    return _larger_of_pairs(_larger_of_pairs(x, 1), 2)


def _larger_of_pairs(x: jax.Array, axis: int) -> jax.Array:
    even = x.shape[axis] // 2 * 2
    first, second = (lax.slice_in_dim(x, start, even, stride=2, axis=axis) for start in (0, 1))
    return jnp.maximum(first, second)


WIDTHS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    "vgg19": (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4),
}
vgg11, vgg13, vgg16, vgg19 = (functools.partial(VGG, widths) for widths in WIDTHS.values())
