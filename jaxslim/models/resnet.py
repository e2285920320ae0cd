"""Residual networks as torchvision has them (He et al., CVPR 2016), for ImageNet and for CIFAR."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxslim.errors import InputError
from jaxslim.models.layers import batch_norm, check_count, check_images, convolution

EXPANSION = 4
"""How many times as wide as its 3x3 convolution the output of a bottleneck block is."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or a 3x3 between two 1x1 ones (`bottleneck`), added to the input and then activated.

    BatchNorm follows each convolution, and strides are those of the first 3x3 one. Where the shape changes, the input
    is projected by a 1x1 convolution with BatchNorm.
    """

    width: int
    strides: int
    bottleneck: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(batch_norm, train, dtype=self.dtype, scale=1.0)
        conv = functools.partial(convolution, dtype=self.dtype)
        outputs = EXPANSION * self.width if self.bottleneck else self.width
        if self.bottleneck:
            y = nn.relu(norm(name="bn1")(conv(self.width, 1, name="conv1")(x)))
            y = nn.relu(norm(name="bn2")(conv(self.width, 3, self.strides, name="conv2")(y)))
            y = norm(name="bn3")(conv(outputs, 1, name="conv3")(y))
        else:
            y = nn.relu(norm(name="bn1")(conv(self.width, 3, self.strides, name="conv1")(x)))
            y = norm(name="bn2")(conv(outputs, 3, name="conv2")(y))
        if self.strides > 1 or x.shape[-1] != outputs:
            x = norm(name="projection_bn")(conv(outputs, 1, self.strides, name="projection")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A stem, stages of `ResidualBlock` that each halve the resolution of the one before, a classifier.

    `apply` takes float images (n, height, width, channels) and `train`, which uses and updates batch statistics. It
    returns logits (n, num_classes) in float32, or in `dtype` if that is more precise.
    """

    blocks: Sequence[int]
    """Blocks of each stage."""
    bottleneck: bool = False
    """Whether the blocks have three convolutions, as from ResNet-50 on."""
    width: int = 64
    """Channels of the stem and of the first stage's 3x3 convolutions; each stage doubles it."""
    small_images: bool = False
    """Whether the stem is a 3x3 convolution, as is usual for CIFAR, in place of ImageNet's 7x7 one with pooling."""
    num_classes: int = 1000
    dtype: Any = jnp.float32
    """Precision of the computation; parameters are float32."""

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, Sequence) or isinstance(self.blocks, str) or not self.blocks:
            raise InputError(
                f"blocks is {self.blocks!r:.60}; give the number of blocks of each stage, such as 2,2,2,2."
            )
        for blocks in self.blocks:
            check_count("A stage's number in blocks", blocks)
        check_count("width", self.width)
        check_count("num_classes", self.num_classes)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_images(images)
        window, strides = (3, 1) if self.small_images else (7, 2)
        x = convolution(self.width, window, strides, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="bn1", scale=1.0)(x))
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks, 1):
            for block in range(blocks):
                width, strides = self.width * 2 ** (stage - 1), 2 if stage > 1 and block == 0 else 1
                name = f"layer{stage}_{block}"
                x = ResidualBlock(width, strides, self.bottleneck, self.dtype, name=name)(x, train)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x.mean((1, 2)))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


VARIANTS = {
    "resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": functools.partial(ResNet, blocks=(3, 4, 23, 3), bottleneck=True),
    "resnet152": functools.partial(ResNet, blocks=(3, 8, 36, 3), bottleneck=True),
    "resnet18_cifar": functools.partial(ResNet, blocks=(2, 2, 2, 2), small_images=True, num_classes=10),
}
resnet18, resnet34, resnet50, resnet101, resnet152, resnet18_cifar = VARIANTS.values()
