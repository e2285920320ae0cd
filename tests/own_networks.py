"""Networks as users write them, for `--model own_networks:NAME`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class Linen(nn.Module):
    """A Linen module with a switch of another name, a field that JSON does not know, and dropout."""

    num_classes: int
    width: int = 8
    norm: Any = nn.BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, training: bool) -> jax.Array:
        x = images
        for number in (1, 2):
            x = nn.Conv(number * self.width, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(self.norm(use_running_average=not training, momentum=0.9, dtype=self.dtype)(x))
        x = nn.Dropout(0.1, deterministic=not training)(x.mean((1, 2)))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)


class NNX(nnx.Module):
    """The same in NNX, with a list and a random stream of its own."""

    def __init__(self, num_classes: int, width: int = 8, *, rngs: nnx.Rngs) -> None:
        sizes = [(1, width), (width, 2 * width)]
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), use_bias=False, rngs=rngs) for a, b in sizes])
        self.norms = nnx.List([nnx.BatchNorm(b, momentum=0.9, rngs=rngs) for _, b in sizes])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(2 * width, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(self.dropout(x.mean((1, 2))))


def build(num_classes: int, rngs: nnx.Rngs, *, width: int = 8) -> NNX:
    """A function in place of a class."""
    return NNX(num_classes, width, rngs=rngs)


class NoTrain(nn.Module):
    """It takes no `train`."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes)(images.mean((1, 2)))


class Segmentation(nn.Module):
    """Its outputs are no logits of images."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes)(images)


class Pair(nn.Module):
    """Its outputs are two."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        x = nn.Dense(self.num_classes)(images.mean((1, 2)))
        return x, x


class NoScales(nn.Module):
    """It has no vector that L1 could pull on."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(8)(images.mean((1, 2)))))


class Five(nn.Module):
    """It always tells five classes apart."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(5)(images.mean((1, 2)))


class Failing(nn.Module):
    """Its code is wrong."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return images @ images.no_such_attribute  # type: ignore[attr-defined, no-any-return]


def needs_width(num_classes: int, width: int) -> Linen:
    """It takes an argument that has no default."""
    return Linen(num_classes, width)


def list_of_layers(num_classes: int) -> list[int]:
    """It builds no module."""
    return [num_classes]


NUMBER = 3


class Probabilities(NoTrain):
    """It ends in a softmax."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        return nn.softmax(nn.Dense(self.num_classes)(images.mean((1, 2))))


class Heads(NoTrain):
    """It has a second head in training."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Any:
        x = images.mean((1, 2))
        first, second = nn.Dense(self.num_classes)(x), nn.Dense(self.num_classes)(x)
        return (first, second) if train else first


class Wider(NoTrain):
    """It gives more in training."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        out = nn.Dense(2 * self.num_classes)(images.mean((1, 2)))
        return out if train else out[:, : self.num_classes]


class Mapped(NoTrain):
    """Its BatchNorm takes the mean over the devices of `pmap`."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, axis_name="batch")(nn.Conv(4, (3, 3))(images))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Grouped(NoTrain):
    """GroupNorm in place of BatchNorm, and parameters of bfloat16."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.GroupNorm(4)(nn.Conv(16, (3, 3), param_dtype=jnp.bfloat16)(images)))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


INSTANCE = Linen(3)
