"""Loss and accuracy on a fixed set of images."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxslim.data import Dataset, augmenter, hold_out, normalise
from jaxslim.data.order import order
from jaxslim.training.config import TrainConfig
from jaxslim.training.feed import Batch, check_batches, device_mesh, feed, place, sample, shardings
from jaxslim.training.optimizer import losses


class Evaluation(NamedTuple):
    """Means over a set of images."""

    loss: float
    accuracy: float
    predicted: np.ndarray | None = None
    """int (n,): the class of the largest logit of each image; None unless asked for."""


def evaluator(
    config: TrainConfig, module: Any, mesh: Mesh, images: Any, labels: Any, *, predictions: bool = False
) -> Callable[..., Evaluation]:
    """Build `evaluate(variables) -> Evaluation` on uint8 images (n, h, w, c) and labels (n,).

    It compiles once for all variables. `evaluate(variables, check)` calls `check()` before each batch, which may raise.
    With `predictions`, the result has the class of each image too, and not the means alone.
    """
    step = evaluate_step(config, module, mesh, predictions)
    everywhere, split = shardings(mesh)
    count, size = len(labels), math.ceil(min(config.tested_at_once, len(labels)) / mesh.size) * mesh.size
    source = feed(mesh, images, labels)
    numbers = np.arange(math.ceil(count / size) * size, dtype=np.int32).reshape(-1, size)
    rows, counted = np.minimum(numbers, count - 1), [place(row < count, split) for row in numbers]

    def evaluate(variables: Any, check: Callable[[], None] = lambda: None) -> Evaluation:
        variables = place(variables, everywhere)
        sums = []
        for batch, which in zip(source.pick(rows), counted, strict=True):
            check()
            sums.append(step(variables, batch, which))
            jax.block_until_ready(sums[-2:-1])  # else all are queued before the first check means anything
        *totals, predicted = (jax.device_get(parts) for parts in zip(*sums, strict=True))
        loss, correct, seen = (float(np.sum(total)) for total in totals)
        found = (np.concatenate(predicted)[:count],) if predictions else ()
        return Evaluation(loss / max(seen, 1), correct / max(seen, 1), *found)

    return evaluate


def evaluate_step(
    config: TrainConfig, module: Any, mesh: Mesh, predictions: bool = False
) -> Callable[..., tuple[jax.Array, ...]]:
    """Build `step(variables, batch, counted) -> (loss, correct, seen, predicted)`.

    These are sums over a step's images where `counted` is true and the label is one, their number, and with
    `predictions` the class of each image of the step.
    """
    loss = losses(config)

    def step(variables: Any, batch: Batch, counted: Any) -> tuple[jax.Array, ...]:
        images, labels = batch.step(None if batch.rows is None else batch.rows[0])
        logits = module.apply(variables, normalise(images, config.mean, config.std))
        counted, predicted = counted & (labels >= 0), logits.argmax(-1)
        values = jnp.where(counted, loss(logits, jnp.maximum(labels, 0)), 0)
        sums = values.sum(), jnp.sum((predicted == labels) & counted), counted.sum()
        return *sums, predicted if predictions else jnp.zeros(0, int)

    return jax.jit(step, out_shardings=shardings(mesh)[0])


def training_batches(config: TrainConfig, images: Dataset, count: int) -> list[tuple[jax.Array, jax.Array]]:
    """The first `count` batches of a shuffled epoch, augmented and normalised as in training; fewer if it has fewer.

    Each is (images, labels). What the configuration holds out of the training set is left out.
    """
    if config.holdout:
        images, *_ = hold_out(images, config.holdout, config.seed)
    pixels, mesh = images.train_images, device_mesh()
    check_batches(config.batch_size, 1, len(pixels), mesh)
    augment = augmenter(config.augment, pad=config.pad)
    make = jax.jit(lambda batch, key: normalise(augment(batch, key), config.mean, config.std))
    chosen = order(config.seed, 0, len(pixels), config.batch_size)[:count]
    keys = jax.random.split(jax.random.key(config.seed), len(chosen))
    taken = sample(pixels, images.train_labels, chosen)
    return [(make(batch, key), jnp.asarray(labels)) for (batch, labels), key in zip(taken, keys, strict=True)]
