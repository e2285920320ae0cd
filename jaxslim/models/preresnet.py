"""Pre-activation residual networks for CIFAR (He et al., ECCV 2016; the bottleneck form of Liu et al., ICCV 2017)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxslim.errors import InputError, quoted
from jaxslim.models.layers import batch_norm, check_count, check_images, convolution, is_count

EXPANSION = 4
"""How many times as wide as its 3x3 convolution a block's output is."""
STEM = 16


class PreBottleneck(nn.Module):
    """BatchNorm and ReLU in front of each of a 1x1, a 3x3 and a 1x1 convolution, whose result is added to the input.

    The first block of a stage projects its raw input to the new shape by a 1x1 convolution.
    """

    width: int
    strides: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(batch_norm, train, dtype=self.dtype)
        conv = functools.partial(convolution, dtype=self.dtype)
        outputs = EXPANSION * self.width
        y = conv(self.width, 1, name="conv1")(nn.relu(norm(name="bn1")(x)))
        y = conv(self.width, 3, self.strides, name="conv2")(nn.relu(norm(name="bn2")(y)))
        y = conv(outputs, 1, name="conv3")(nn.relu(norm(name="bn3")(y)))
        if self.strides > 1 or x.shape[-1] != outputs:
            x = conv(outputs, 1, self.strides, name="projection")(x)
        return x + y


class PreResNet(nn.Module):
    """A 3x3 convolution, three stages of `PreBottleneck` at full, half and quarter resolution, BatchNorm, classifier.

    Depth 164 has 1,703,258 parameters for 10 classes: the 1.70 M of the paper. The authors' later repository counts
    1.71 M for the same network, since the masks of its channel selection are parameters there.

    `apply` takes float images (n, height, width, channels) and `train`, which uses and updates batch statistics. It
    returns logits (n, num_classes) in float32, or in `dtype` if that is more precise.
    """

    depth: int = 164
    """Layers: 9n + 2 for n blocks a stage."""
    widths: Sequence[int] = (16, 32, 64)
    """Channels of the 3x3 convolutions of each stage."""
    num_classes: int = 10
    dtype: Any = jnp.float32
    """Precision of the computation; parameters are float32."""

    def __post_init__(self) -> None:
        if not is_count(self.depth) or self.depth < 11 or self.depth % 9 != 2:
            raise InputError(f"depth is {quoted(self.depth)}; it must be 9n + 2, for example 20, 56 or 164.")
        check_count("num_classes", self.num_classes)
        for width in self.widths:
            check_count("A width in widths", width)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_images(images)
        x = convolution(STEM, 3, dtype=self.dtype, name="conv1")(images)
        for stage, width in enumerate(self.widths, 1):
            for block in range((self.depth - 2) // 9):
                strides = 2 if stage > 1 and block == 0 else 1
                x = PreBottleneck(width, strides, self.dtype, name=f"layer{stage}_{block}")(x, train)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="bn")(x))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x.mean((1, 2)))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


VARIANTS = {f"preresnet{depth}": functools.partial(PreResNet, depth=depth) for depth in (20, 56, 110, 164)}
preresnet20, preresnet56, preresnet110, preresnet164 = VARIANTS.values()
VARIANTS["resnet164"] = resnet164 = preresnet164
