"""Densely connected networks for CIFAR (Huang et al., CVPR 2017; the form of Liu et al., ICCV 2017)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxslim.errors import InputError, quoted
from jaxslim.models.layers import batch_norm, check_count, check_images, convolution, is_count

BLOCKS = 3


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, whose `growth` channels are put behind those of the input.

    In the bottleneck form a 1x1 convolution comes first.
    """

    growth: int
    bottleneck: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y, number = nn.relu(batch_norm(train, dtype=self.dtype, name="bn1")(x)), 1
        if self.bottleneck:
            y = convolution(4 * self.growth, 1, dtype=self.dtype, name="conv1")(y)
            y, number = nn.relu(batch_norm(train, dtype=self.dtype, name="bn2")(y)), 2
        y = convolution(self.growth, 3, dtype=self.dtype, name=f"conv{number}")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution to `width` channels, and the mean of 2x2 pixels."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="bn1")(x))
        x = convolution(self.width, 1, dtype=self.dtype, name="conv1")(x)
        return nn.avg_pool(x, (2, 2), (2, 2))


class DenseNet(nn.Module):
    """A 3x3 convolution to twice the growth, three blocks of `DenseLayer` with a `Transition` between, a classifier.

    DenseNet-BC is the form with `bottleneck=True` and `compression=0.5`.

    Depth 40 has 1,059,298 parameters for 10 classes, as in the authors' later repository. That counts 1.07 M, since the
    masks of its channel selection are parameters there. The paper's 1.02 M are of a first convolution with 16 channels.

    `apply` takes float images (n, height, width, channels) and `train`, which uses and updates batch statistics. It
    returns logits (n, num_classes) in float32, or in `dtype` if that is more precise.
    """

    depth: int = 40
    """Layers: 3n + 4 for n layers a block, with bottlenecks 6n + 4."""
    growth: int = 12
    """Channels that each layer adds."""
    bottleneck: bool = False
    """Whether a 1x1 convolution to four times the growth comes first in each layer."""
    compression: float = 1.0
    """Share of the channels that a transition keeps."""
    num_classes: int = 10
    dtype: Any = jnp.float32
    """Precision of the computation; parameters are float32."""

    def __post_init__(self) -> None:
        if not is_count(self.depth) or self.depth < 4 + self._each or self.depth % self._each != 4 % self._each:
            fits = "6n + 4 with bottlenecks, for example 100" if self.bottleneck else "3n + 4, for example 40"
            raise InputError(f"depth is {quoted(self.depth)}; it must be {fits}.")
        if not 0 < self.compression <= 1:
            raise InputError(f"compression is {quoted(self.compression)}; it must be a share in (0, 1].")
        check_count("growth", self.growth)
        check_count("num_classes", self.num_classes)
        super().__post_init__()

    @property
    def _each(self) -> int:
        """Layers of the network that one more layer in each block makes."""
        return BLOCKS * (2 if self.bottleneck else 1)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_images(images)
        x = convolution(2 * self.growth, 3, dtype=self.dtype, name="conv1")(images)
        for block in range(1, BLOCKS + 1):
            for layer in range((self.depth - 4) // self._each):
                x = DenseLayer(self.growth, self.bottleneck, self.dtype, name=f"dense{block}_{layer}")(x, train)
            if block < BLOCKS:
                width = max(int(x.shape[-1] * self.compression), 1)
                x = Transition(width, self.dtype, name=f"trans{block}")(x, train)
        x = nn.relu(batch_norm(train, dtype=self.dtype, name="bn")(x))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x.mean((1, 2)))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


VARIANTS = {
    "densenet22": functools.partial(DenseNet, depth=22),
    "densenet40": functools.partial(DenseNet, depth=40),
    "densenet40_bc": functools.partial(DenseNet, depth=40, bottleneck=True, compression=0.5),
}
densenet22, densenet40, densenet40_bc = VARIANTS.values()
