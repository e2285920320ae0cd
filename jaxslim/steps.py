"""One step of training and one of evaluation, jitted, with the batch sharded over a mesh of devices."""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxslim.config import TrainConfig
from jaxslim.data import Dataset, augment, hold_out, normalise
from jaxslim.errors import InputError
from jaxslim.lowering import compiler_options
from jaxslim.sparsity import l1_proximal, l1_subgradient

log = logging.getLogger(__name__)

TOGETHER = 128
"""Most training steps in one call on accelerators. A signal that asks a run to stop waits for the call to end."""


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
    """All devices, of all processes, along one axis, `data`."""
    devices = jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def learning_rates(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """The rate of each step. A stepped one falls by `lr_drop_factor` from the first epoch that starts at or after each
    of the shares `lr_drops` of the run."""
    total = config.epochs * steps_per_epoch
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, total)
    if config.schedule == "one-cycle":
        return optax.cosine_onecycle_schedule(total, config.learning_rate)
    factors: dict[int, float] = {}
    for drop in config.lr_drops:
        epoch = math.ceil(round(drop * config.epochs, 6))  # 0.55 * 100 is a little above 55
        boundary = epoch * steps_per_epoch
        factors[boundary] = factors.get(boundary, 1.0) * config.lr_drop_factor
    return optax.piecewise_constant_schedule(config.learning_rate, factors)


def optimizer(config: TrainConfig, rate: optax.Schedule, scale_mask: Any) -> optax.GradientTransformation:
    """SGD as the PyTorch reference does it: L1 subgradient, weight decay on everything, momentum, rate.

    With `l1_method` proximal the L1 pull comes after all that; without `decay_scales` the decay spares the scales.
    """
    first, last = [], []
    if config.l1 and config.l1_method == "proximal":
        last = [l1_proximal(config.l1 / (1 - config.momentum), rate, scale_mask)]
    elif config.l1:
        first = [l1_subgradient(config.l1, scale_mask)]
    decayed = None if config.decay_scales else jax.tree.map(lambda is_scale: not is_scale, scale_mask)
    decay = optax.add_decayed_weights(config.weight_decay, decayed)
    return optax.chain(*first, decay, optax.sgd(rate, config.momentum), *last)


def train_step(config: TrainConfig, module: Any, tx: optax.GradientTransformation, mesh: Mesh) -> Callable[..., Any]:
    """Build `step(state, images, labels, order, key) -> (state, Sums)`, which takes one step or many in one call.

    `images` uint8 (n, h, w, c), `labels` (n,) and `order` (steps, batch), the indices of each step's batch, are as
    `feed` yields them; `key` and the number of the step fix the augmentation. The sums are (steps,). The old state is
    donated. BatchNorm sees the statistics of the global batch.
    """

    def loss_of(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, updates = module.apply({"params": params, **stats}, images, train=True, mutable=list(stats))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (updates, Sums(losses.sum(), jnp.sum(logits.argmax(-1) == labels)))

    def one(state: TrainState, images: Any, labels: Any, chosen: Any, key: Any) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(key, state.step)
        batch = augment(images[chosen], key, pad=config.pad, flip=config.flip)
        batch = normalise(batch, config.mean, config.std)
        params = state.variables["params"]
        stats = {name: value for name, value in state.variables.items() if name != "params"}
        gradients, (stats, sums) = jax.grad(loss_of, has_aux=True)(params, stats, batch, labels[chosen])
        updates, moments = tx.update(gradients, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        return TrainState(state.step + 1, {"params": params, **stats}, moments), sums

    def step(state: TrainState, images: Any, labels: Any, order: Any, key: Any) -> tuple[TrainState, Sums]:
        if len(order) == 1:
            state, sums = one(state, images, labels, order[0], key)
            return state, Sums(*(value[None] for value in sums))
        return lax.scan(lambda state, chosen: one(state, images, labels, chosen, key), state, order)

    everywhere, _ = shardings(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=everywhere, compiler_options=compiler_options())


def evaluate_step(config: TrainConfig, module: Any, mesh: Mesh) -> Callable[..., Sums]:
    """Build `step(variables, images, labels, order, counted) -> Sums` over the images where `counted` is true.

    Images, labels and `order` (1, batch) are as `feed` yields them, `counted` is (batch,).
    """

    def step(variables: Any, images: Any, labels: Any, order: Any, counted: Any) -> Sums:
        chosen = order[0]
        logits = module.apply(variables, normalise(images[chosen], config.mean, config.std))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen])
        hits = (logits.argmax(-1) == labels[chosen]) & counted
        return Sums(jnp.sum(losses * counted), jnp.sum(hits))

    return jax.jit(step, out_shardings=shardings(mesh)[0], compiler_options=compiler_options())


class Evaluation(NamedTuple):
    """Means over a set of images."""

    loss: float
    accuracy: float


def evaluator(config: TrainConfig, module: Any, mesh: Mesh, images: Any, labels: Any) -> Callable[..., Evaluation]:
    """Build `evaluate(variables) -> Evaluation` on a fixed set of images; it compiles once for all variables.

    `evaluate(variables, check)` calls `check()` before each batch, which may raise.

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
    batches = feed(mesh, images, labels)
    numbers = np.arange(math.ceil(count / size) * size, dtype=np.int32).reshape(-1, 1, size)
    rows = [(np.minimum(row, count - 1), place(row[0] < count, split)) for row in numbers]

    def evaluate(variables: Any, check: Callable[[], None] = lambda: None) -> Evaluation:
        variables = place(variables, everywhere)
        sums = []
        for row, counted in rows:
            check()
            sums += [step(variables, *call, counted) for call in batches(row)]
            jax.block_until_ready(sums[-2:-1])  # else all are queued before the first check means anything
        total = jax.tree.map(lambda *parts: float(np.sum(jax.device_get(parts))), *sums)
        return Evaluation(total.loss / count, total.correct / count)

    return evaluate


def feed(mesh: Mesh, images: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], Iterator[tuple[Any, Any, Any]]]:
    """Put a data set where steps reach it, and build `calls(order)`, which yields what each call of a step takes.

    The whole set is copied to every device once, as it is, and steps pick from it. One that would take more than a
    quarter of the memory that is free there stays on the host, and each batch is sent when its turn comes; the numbers
    are the same. On accelerators one call takes `TOGETHER` steps or fewer, so that the host has no part in them; on
    CPUs one step, since XLA runs the gradient of a convolution 30 to 60 times slower in a loop there.

    Args:
      mesh: of `device_mesh`.
      images: uint8 (n, h, w, c).
      labels: int (n,).

    Returns:
      A function of indices (steps, batch), which yields images, labels and indices into them, all on the devices.
    """
    everywhere, _ = shardings(mesh)
    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    size, free = images.nbytes + labels.nbytes, _free_memory(mesh)
    if size > free / 4:
        log.info(
            "The %s images (%.2f GB) are too large for the device (%.2f GB free); batches come from the host.",
            *(len(labels), size / 1e9, free / 1e9),
        )

        def from_host(order: np.ndarray) -> Iterator[tuple[Any, Any, Any]]:
            positions = place(np.arange(order.shape[1], dtype=np.int32)[None], split)
            for row in order:
                yield *place((images[row], labels[row]), everywhere), positions

        return from_host

    on_device = place((images, labels), everywhere)
    looped = _looped(mesh)

    def from_device(order: np.ndarray) -> Iterator[tuple[Any, Any, Any]]:
        for rows in _parts(order) if looped else order[:, None]:
            yield *on_device, place(rows, split)

    return from_device


def _parts(order: np.ndarray) -> list[np.ndarray]:
    """Rows of `order` for one call each: of equal number, which compiles once, where a number up to twice as many as
    needed divides them."""
    least = math.ceil(len(order) / TOGETHER)
    number = next((parts for parts in range(least, 2 * least) if parts and len(order) % parts == 0), least)
    return np.array_split(order, number) if number else []


def _looped(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform != "cpu"


def _free_memory(mesh: Mesh) -> float:
    """Bytes, of the device with the least; infinite where devices do not tell, as CPUs do not."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    return min(row["bytes_limit"] - row.get("bytes_in_use", 0) if "bytes_limit" in row else math.inf for row in stats)


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Copies on every device, and the first axis split over them."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """`tree` on the devices of `sharding`; those of other processes hold what these put there, which is the same."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree)


def order(seed: int, epoch: int, count: int, batch_size: int) -> np.ndarray:
    """Indices (steps, batch_size) of an epoch's batches, by the arguments alone; a last short batch is left out."""
    shuffled = np.random.default_rng([seed, epoch]).permutation(count)
    return shuffled[: count // batch_size * batch_size].reshape(-1, batch_size).astype(np.int32)


def training_batches(config: TrainConfig, images: Dataset, count: int) -> list[jax.Array]:
    """The first `count` batches of a shuffled epoch, augmented and normalised as in training; fewer if it has fewer.

    What the configuration holds out of the training set is left out.

    Raises:
      InputError: the training set has no whole batch.
    """
    if config.holdout:
        images, *_ = hold_out(images, config.holdout, config.seed)
    pixels = images.train_images
    chosen = order(config.seed, 0, len(pixels), config.batch_size)[:count]
    if not len(chosen):
        raise InputError(
            f"A batch of {config.batch_size} is larger than the training set of {len(pixels)}; use a smaller one."
        )
    keys = jax.random.split(jax.random.key(config.seed), len(chosen))

    @jax.jit
    def make(batch: Any, key: Any) -> jax.Array:
        return normalise(augment(batch, key, pad=config.pad, flip=config.flip), config.mean, config.std)

    return [make(pixels[row], key) for row, key in zip(chosen, keys, strict=True)]


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
