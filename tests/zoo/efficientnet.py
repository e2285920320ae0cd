"""EfficientNet after Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"."""

import functools

import jax
from flax import nnx

from . import Network, nnx_network, normal


def scaled(width: int, coefficient: float, divisor: int = 4) -> int:
    """A width times the coefficient of the model, rounded to a multiple of `divisor` (section 3.3)."""
    wanted = width * coefficient
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * wanted else rounded + divisor


class MBConv(nnx.Module):
    """Inverted residual with squeeze-and-excitation; training drops whole blocks (drop path).

    The squeeze takes a quarter of the block's input, not of its expansion (Tan and Le 2019, section 4).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, strides: int, expansion: int, drop: float, *, rngs: nnx.Rngs
    ) -> None:
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, rngs=rngs)
        hidden = inputs * expansion
        self.expand = nnx.Sequential(conv(inputs, hidden, (1, 1)), norm(hidden), nnx.swish) if expansion > 1 else None
        window = (kernel, kernel)
        self.depthwise = conv(hidden, hidden, window, strides, feature_group_count=hidden)
        self.norm1 = norm(hidden)
        self.squeeze = nnx.Conv(hidden, max(1, inputs // 4), (1, 1), rngs=rngs)
        self.excite = nnx.Conv(max(1, inputs // 4), hidden, (1, 1), rngs=rngs)
        self.project, self.norm2 = conv(hidden, outputs, (1, 1)), norm(outputs)
        self.drop = nnx.Dropout(drop, broadcast_dims=(1, 2, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x if self.expand is None else self.expand(x)
        y = nnx.swish(self.norm1(self.depthwise(y)))
        weights = self.squeeze(y.mean(axis=(1, 2), keepdims=True))
        y = y * nnx.sigmoid(self.excite(nnx.swish(weights)))
        y = self.norm2(self.project(y))
        return x + self.drop(y) if x.shape == y.shape else y


class EfficientNet(nnx.Module):
    """EfficientNet of four blocks; the chance of dropping a block grows with its depth (Tan and Le 2019, table 1)."""

    def __init__(self, coefficient: float = 1.0, classes: int = 5, *, rngs: nnx.Rngs) -> None:
        width = functools.partial(scaled, coefficient=coefficient)
        blocks = ((8, 8, 3, 1, 1), (8, 12, 3, 2, 4), (12, 12, 5, 1, 4), (12, 16, 5, 2, 4))
        stem, last = width(8), width(32)
        self.stem = nnx.Sequential(
            nnx.Conv(3, stem, (3, 3), use_bias=False, rngs=rngs), nnx.BatchNorm(stem, rngs=rngs), nnx.swish
        )
        self.blocks = nnx.Sequential(
            *(
                MBConv(width(inputs), width(outputs), *form, drop=0.2 * number / len(blocks), rngs=rngs)
                for number, (inputs, outputs, *form) in enumerate(blocks)
            )
        )
        self.last = nnx.Sequential(
            nnx.Conv(width(16), last, (1, 1), use_bias=False, rngs=rngs), nnx.BatchNorm(last, rngs=rngs), nnx.swish
        )
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(last, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.last(self.blocks(self.stem(x)))
        return self.head(self.dropout(x.mean(axis=(1, 2))))


# Shapes in place of arrays, which saves the time of drawing them.
ABSTRACT = nnx.eval_shape(lambda: EfficientNet(rngs=nnx.Rngs(params=0, dropout=1)))

NETWORKS: tuple[Network, ...] = (nnx_network("efficientnet", ABSTRACT, normal(2, 16, 16, 3)),)
