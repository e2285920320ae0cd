"""Residual networks after He et al., "Deep Residual Learning for Image Recognition" (2015), and two descendants."""

import functools
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from . import Network, linen, nnx_network, normal


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, activated after the sum (He et al. 2015, figure 5 left)."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        residual = x
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(norm()(y))
        y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
        y = norm()(y)
        if residual.shape != y.shape:
            residual = nn.Conv(self.features, (1, 1), self.strides, use_bias=False, name="projection")(residual)
            residual = norm(name="projection_norm")(residual)
        return nn.relu(residual + y)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, the last four times as wide (He et al. 2015, figure 5 right)."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        residual = x
        y = nn.Conv(self.features, (1, 1), use_bias=False)(x)
        y = nn.relu(norm()(y))
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(y)
        y = nn.relu(norm()(y))
        y = nn.Conv(4 * self.features, (1, 1), use_bias=False)(y)
        y = norm()(y)
        if residual.shape != y.shape:
            residual = nn.Conv(4 * self.features, (1, 1), self.strides, use_bias=False, name="projection")(residual)
            residual = norm(name="projection_norm")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, mean over the image, classifier (He et al. 2015, table 1).

    The stem is that of ImageNet (7x7 and max-pooling) where `pool` is set, that of CIFAR (3x3) elsewhere.
    """

    block: Any
    stages: tuple[int, ...]
    features: int
    pool: bool
    classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        if self.pool:
            x = nn.Conv(self.features, (7, 7), 2, padding=[(3, 3), (3, 3)], use_bias=False)(x)
        else:
            x = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        if self.pool:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.stages):
            for number in range(blocks):
                strides = 2 if stage > 0 and number == 0 else 1
                x = self.block(self.features * 2**stage, strides)(x, train)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))


class SqueezeExcitation(nnx.Module):
    """Channels weighted by a small network of their means (Hu et al. 2018, "Squeeze-and-Excitation Networks")."""

    def __init__(self, width: int, reduction: int, *, rngs: nnx.Rngs) -> None:
        self.squeeze = nnx.Linear(width, width // reduction, rngs=rngs)
        self.excite = nnx.Linear(width // reduction, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        weights = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(x.mean(axis=(1, 2))))))
        return x * weights[:, None, None, :]


class NextBlock(nnx.Module):
    """A bottleneck with a grouped 3x3 convolution and, where asked for, a squeeze-and-excitation before the sum.

    Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks", figure 3c.
    """

    def __init__(
        self, inputs: int, width: int, outputs: int, strides: int, groups: int, reduction: int | None, *, rngs: nnx.Rngs
    ) -> None:
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, rngs=rngs)
        self.conv1, self.norm1 = conv(inputs, width, (1, 1)), norm(width)
        self.conv2 = conv(width, width, (3, 3), strides, feature_group_count=groups)
        self.norm2 = norm(width)
        self.conv3, self.norm3 = conv(width, outputs, (1, 1)), norm(outputs)
        self.excitation = None if reduction is None else SqueezeExcitation(outputs, reduction, rngs=rngs)
        same = strides == 1 and inputs == outputs
        self.projection = None if same else nnx.Sequential(conv(inputs, outputs, (1, 1), strides), norm(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.excitation is not None:
            y = self.excitation(y)
        if self.projection is not None:
            x = self.projection(x)
        return nnx.relu(x + y)


class ResNeXt(nnx.Module):
    """ResNeXt of two stages (Xie et al. 2017); SE-ResNeXt with a `reduction`, SE-ResNet with one group (Hu et al.)."""

    def __init__(self, groups: int, reduction: int | None, classes: int = 5, *, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.blocks = nnx.Sequential(
            NextBlock(16, 16, 24, 1, groups, reduction, rngs=rngs),
            NextBlock(24, 16, 24, 1, groups, reduction, rngs=rngs),
            NextBlock(24, 24, 32, 2, groups, reduction, rngs=rngs),
        )
        self.head = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.blocks(nnx.relu(self.norm(self.stem(x))))
        return self.head(x.mean(axis=(1, 2)))


def abstract(groups: int, reduction: int | None) -> ResNeXt:
    """The network with shapes in place of arrays, which saves the time of drawing them."""
    return nnx.eval_shape(lambda: ResNeXt(groups, reduction, rngs=nnx.Rngs(params=0)))


EVAL, TRAIN = {"train": False}, {"train": True}
IMAGES = normal(2, 16, 16, 3)

NETWORKS: tuple[Network, ...] = (
    linen("resnet_basic", ResNet(BasicBlock, (2, 1), 8, pool=False), IMAGES, call=EVAL, train=TRAIN),
    linen("resnet_bottleneck", ResNet(Bottleneck, (2, 1), 8, pool=True), IMAGES, call=EVAL, train=TRAIN),
    nnx_network("resnext", abstract(4, None), IMAGES),
    nnx_network("se_resnet", abstract(1, 4), IMAGES),
    nnx_network("se_resnext", abstract(4, 8), IMAGES),
)
