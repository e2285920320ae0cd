"""VGG with batch normalisation (Simonyan & Zisserman 2015; the CIFAR form of Liu et al., ICCV 2017, section 4)."""

import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxslim import ops
from jaxslim.errors import InputError, quoted


class VGG(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, 2x2 maximum pooling, global average, one dense layer.

    Initialisation is the reference's: convolutions normal with deviation sqrt(2 / (9 * out)), BatchNorm scales 0.5,
    dense normal with deviation 0.01. Running statistics move by a tenth a step; like all of Flax they take the biased
    variance, where PyTorch takes the unbiased one.

    Args of `apply`: images float (n, height, width, channels); `train` uses and updates batch statistics. Returns
    logits (n, num_classes) in float32, or in `dtype` where that is more precise.
    """

    widths: Sequence[int | str]
    """Channels of each convolution, "M" for each pooling."""
    num_classes: int = 10
    dtype: Any = jnp.float32
    """Precision of the computation; parameters are float32."""

    def __post_init__(self) -> None:
        widths = self.widths
        if isinstance(widths, str) or not isinstance(widths, Collection):
            raise InputError(f'widths is {quoted(widths)}; give channels and "M" for poolings, or use jaxslim.vgg11().')
        for width in widths:
            if width != "M" and not _is_count(width):
                raise InputError(
                    f'widths hold {quoted(width)}; each must be a positive number of channels or "M" for pooling.'
                )
        if not _is_count(self.num_classes):
            raise InputError(f"num_classes is {quoted(self.num_classes)}; it must be an integer of at least 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        if len(shape := getattr(images, "shape", ())) != 4:
            raise InputError(f"The images have shape {shape}; pass an array (n, height, width, channels).")
        x = images
        layer = 0
        for width in self.widths:
            if width == "M":
                if min(x.shape[1:3]) < 2:
                    size, poolings = images.shape[1:3], [*self.widths].count("M")
                    raise InputError(
                        f"{poolings} poolings shrink images of {size[0]}x{size[1]} pixels to nothing; use larger "
                        "images or take an M out of widths."
                    )
                x = max_pool(x)
                continue
            x = nn.Conv(
                int(width),
                (3, 3),
                padding=1,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
                conv_general_dilated=ops.conv,
                name=f"conv{layer}",
            )(x)
            x = ops.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                scale_init=nn.initializers.constant(0.5),
                use_fast_variance=False,
                name=f"bn{layer}",
            )(x)
            x = nn.relu(x)
            layer += 1
        x = x.mean((1, 2))
        x = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), name="classifier")(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def resized(self, variables: Mapping[str, Any]) -> "VGG":
        """The VGG whose parameters have the shapes of `variables`, for example after a cut."""
        layers = itertools.count()

        def kept() -> int:
            return variables["params"][f"conv{next(layers)}"]["kernel"].shape[-1]

        try:
            return self.clone(widths=tuple("M" if width == "M" else kept() for width in self.widths))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"The variables are not of this VGG ({error}); pass all that its init returned."
            ) from error

    def architecture(self) -> str:
        """The widths as tables show them, for example [64, 'M', 128]."""
        return str(["M" if width == "M" else int(width) for width in self.widths])


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 1 <= int(value) < 2**31


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum of 2x2 windows, stride 2, an odd last row or column left out; (n, h, w, c) -> (n, h // 2, w // 2, c).

    Four strided slices give the values of `nn.max_pool`; on CPUs their gradient is over 20 times faster than that of a
    window reduction.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:height:2, :width], x[:, 1:height:2, :width])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


WIDTHS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    "vgg19": (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4),
}
vgg11, vgg13, vgg16, vgg19 = (functools.partial(VGG, widths) for widths in WIDTHS.values())
