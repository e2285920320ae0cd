"""One tower for two inputs, in Linen."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from . import Network, linen, normal, tokens


class ImageTower(nn.Module):
    """Convolutions, then one dense layer of sigmoids."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, images: Any, train: bool) -> Any:
        x = images
        for width in (self.width, 2 * self.width):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.sigmoid(nn.Dense(32)(x))


class SameOrNot(nn.Module):
    """Koch et al. (2015), Siamese Neural Networks for One-shot Image Recognition: a weighted distance of two images."""

    width: int = 8
    dropout: float = 0.2

    @nn.compact
    def __call__(self, left: Any, right: Any, train: bool = False) -> Any:
        tower = ImageTower(self.width, self.dropout)
        return nn.Dense(1)(jnp.abs(tower(left, train) - tower(right, train)))


class SentenceTower(nn.Module):
    """Words, one layer of attention, and their mean."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, text: Any, train: bool) -> Any:
        x = nn.Embed(32, self.width)(text) * math.sqrt(self.width)
        y = nn.MultiHeadDotProductAttention(4, dropout_rate=self.dropout, deterministic=not train)(x)
        x = nn.LayerNorm()(x + y)
        x = nn.LayerNorm()(x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(x))))
        return jnp.mean(x, axis=1)


class SentenceSimilarity(nn.Module):
    """Reimers and Gurevych (2019), Sentence-BERT: the cosine between two sentences (section 3)."""

    width: int = 24
    dropout: float = 0.1

    @nn.compact
    def __call__(self, left: Any, right: Any, train: bool = False) -> Any:
        tower = SentenceTower(self.width, self.dropout)
        return cosine(tower(left, train), tower(right, train))


class SimSiam(nn.Module):
    """Chen and He (2020), Exploring Simple Siamese Representation Learning: a predictor and a stopped gradient."""

    width: int = 16
    projected: int = 32
    hidden: int = 12

    @nn.compact
    def __call__(self, left: Any, right: Any, train: bool = False) -> Any:
        encoder = [nn.Conv(self.width, (3, 3), strides=(2, 2)), nn.BatchNorm(use_running_average=not train)]
        projector = [nn.Dense(self.projected), nn.BatchNorm(use_running_average=not train), nn.Dense(self.projected)]
        predictor = [nn.Dense(self.hidden), nn.BatchNorm(use_running_average=not train), nn.Dense(self.projected)]

        def project(images: Any) -> Any:
            x = jnp.mean(nn.relu(encoder[1](encoder[0](images))), axis=(1, 2))
            return projector[2](nn.relu(projector[1](projector[0](x))))

        def predict(x: Any) -> Any:
            return predictor[2](nn.relu(predictor[1](predictor[0](x))))

        left, right = project(left), project(right)
        first = cosine(predict(left), lax.stop_gradient(right))
        return -(first + cosine(predict(right), lax.stop_gradient(left))) / 2


def cosine(left: Any, right: Any) -> Any:
    """The cosine between the rows of two matrices."""
    lengths = jnp.linalg.norm(left, axis=-1) * jnp.linalg.norm(right, axis=-1)
    return jnp.sum(left * right, axis=-1) / jnp.maximum(lengths, 1e-8)


_IMAGES = normal(2, 8, 8, 1), normal(2, 8, 8, 1, seed=2)
_TEXTS = tokens(32, 2, 6), tokens(32, 2, 5, seed=2)
_VIEWS = normal(4, 8, 8, 3), normal(4, 8, 8, 3, seed=2)
NETWORKS: tuple[Network, ...] = (
    linen("siamese_distance", SameOrNot(), *_IMAGES, train={"train": True}),
    linen("siamese_cosine", SentenceSimilarity(), *_TEXTS, train={"train": True}),
    linen("simsiam", SimSiam(), *_VIEWS, train={"train": True}),
)
