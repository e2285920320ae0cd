"""One step of training and one of evaluation, jitted, with the batch sharded over a mesh of devices."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxslim.config import TrainConfig
from jaxslim.data import augment, normalise
from jaxslim.errors import InputError
from jaxslim.sparsity import l1_subgradient


class TrainState(NamedTuple):
    """All that changes while training."""

    step: jax.Array
    variables: Any
    optimizer: Any


class Sums(NamedTuple):
    """Sums over images; divide by how many there are."""

    loss: jax.Array
    correct: jax.Array


def device_mesh() -> Mesh:
    """All devices of this machine along one axis, `data`."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def learning_rates(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """The stepped rate: times `lr_drop_factor` from the first epoch that starts at or after each share of the run."""
    factors: dict[int, float] = {}
    for drop in config.lr_drops:
        epoch = math.ceil(round(drop * config.epochs, 6))  # 0.55 * 100 is a little above 55
        boundary = epoch * steps_per_epoch
        factors[boundary] = factors.get(boundary, 1.0) * config.lr_drop_factor
    return optax.piecewise_constant_schedule(config.learning_rate, factors)


def optimizer(config: TrainConfig, rate: optax.Schedule, scale_mask: Any) -> optax.GradientTransformation:
    """SGD as the PyTorch reference does it: L1 subgradient, weight decay on everything, momentum, rate."""
    l1 = [l1_subgradient(config.l1, scale_mask)] if config.l1 else []
    return optax.chain(*l1, optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, config.momentum))


def train_step(config: TrainConfig, module: Any, tx: optax.GradientTransformation, mesh: Mesh) -> Callable[..., Any]:
    """Build `step(state, images, labels, chosen, key) -> (state, Sums)`.

    `images` uint8 (n, h, w, c) and `labels` (n,) are the whole training set on the devices, `chosen` (batch,) the
    indices of this step's batch, sharded over the mesh, `key` the seed of its augmentation. The old state is donated.
    BatchNorm sees the statistics of the global batch.
    """

    def loss_of(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, updates = module.apply({"params": params, **stats}, images, train=True, mutable=list(stats))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (updates, Sums(losses.sum(), jnp.sum(logits.argmax(-1) == labels)))

    def step(state: TrainState, images: Any, labels: Any, chosen: Any, key: Any) -> tuple[TrainState, Sums]:
        batch = augment(images[chosen], key, pad=config.pad, flip=config.flip)
        batch = normalise(batch, config.mean, config.std)
        params = state.variables["params"]
        stats = {name: value for name, value in state.variables.items() if name != "params"}
        gradients, (stats, sums) = jax.grad(loss_of, has_aux=True)(params, stats, batch, labels[chosen])
        updates, moments = tx.update(gradients, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        return TrainState(state.step + 1, {"params": params, **stats}, moments), sums

    return jax.jit(step, donate_argnums=0, out_shardings=NamedSharding(mesh, PartitionSpec()))


def evaluate_step(config: TrainConfig, module: Any, mesh: Mesh) -> Callable[..., Sums]:
    """Build `step(variables, images, labels, chosen, counted) -> Sums` over the images where `counted` is true."""

    def step(variables: Any, images: Any, labels: Any, chosen: Any, counted: Any) -> Sums:
        logits = module.apply(variables, normalise(images[chosen], config.mean, config.std))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen])
        hits = (logits.argmax(-1) == labels[chosen]) & counted
        return Sums(jnp.sum(losses * counted), jnp.sum(hits))

    return jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec()))


class Evaluation(NamedTuple):
    """Means over a set of images."""

    loss: float
    accuracy: float


def evaluator(config: TrainConfig, module: Any, mesh: Mesh, images: Any, labels: Any) -> Callable[[Any], Evaluation]:
    """Build `evaluate(variables) -> Evaluation` on a fixed set of images; it compiles once for all variables.

    Args:
      config: for normalisation and `eval_batch_size`.
      module: Linen module.
      mesh: of `device_mesh`.
      images: uint8 (n, h, w, c).
      labels: int (n,).
    """
    step = evaluate_step(config, module, mesh)
    everywhere, split = shardings(mesh)
    count, size = len(labels), math.ceil(min(config.eval_batch_size, len(labels)) / mesh.size) * mesh.size
    images, labels = jax.device_put((images, labels), everywhere)
    numbers = np.arange(math.ceil(count / size) * size).reshape(-1, size)
    batches = [jax.device_put((np.minimum(row, count - 1), row < count), split) for row in numbers]

    def evaluate(variables: Any) -> Evaluation:
        variables = jax.device_put(variables, everywhere)
        sums = [step(variables, images, labels, *batch) for batch in batches]
        total = jax.tree.map(lambda *parts: float(np.sum(jax.device_get(parts))), *sums)
        return Evaluation(total.loss / count, total.correct / count)

    return evaluate


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Copies on every device, and the first axis split over them."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def order(seed: int, epoch: int, count: int, batch_size: int) -> np.ndarray:
    """Indices (steps, batch_size) of an epoch's batches, by the arguments alone; a last short batch is left out."""
    shuffled = np.random.default_rng([seed, epoch]).permutation(count)
    return shuffled[: count // batch_size * batch_size].reshape(-1, batch_size).astype(np.int32)


def check_batches(config: TrainConfig, count: int, mesh: Mesh) -> None:
    """Refuse a batch size that the devices cannot share or that the training set cannot fill."""
    if config.batch_size % mesh.size:
        fit = max(config.batch_size // mesh.size, 1) * mesh.size
        raise InputError(
            f"A batch of {config.batch_size} cannot be split over {mesh.size} devices; use --batch-size {fit}."
        )
    if config.batch_size > count:
        raise InputError(
            f"A batch of {config.batch_size} is larger than the training set of {count}; use a smaller one."
        )
    if (total := config.epochs * (count // config.batch_size)) >= 2**31:
        raise InputError(f"{config.epochs} epochs take {total} steps, more than 2147483647; use fewer epochs.")
