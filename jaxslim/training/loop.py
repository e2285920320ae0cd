"""The training loop, top to bottom."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxslim import data
from jaxslim.ops.memory import in_place
from jaxslim.slim.criteria.scales import scale_values
from jaxslim.slim.distillation import distillation
from jaxslim.training import feed
from jaxslim.training.config import TrainConfig
from jaxslim.training.evaluation import Evaluation, evaluator
from jaxslim.training.network import Teacher, build, load, pulled, teacher, trained
from jaxslim.training.optimizer import learning_rates, losses, moving_average, optimizer
from jaxslim.training.own import register
from jaxslim.training.run import Run, Trained
from jaxslim.training.shrinking import Shrinking

SMALL_SCALE = 1e-2
"""BatchNorm scales below this count as switched off."""


class Sums(NamedTuple):
    """Sums over the images of an epoch so far."""

    loss: Any
    correct: Any
    finite: Any
    """Steps before the first loss that was not finite."""


class TrainState(NamedTuple):
    """All that changes while training, and all that a checkpoint needs to go on."""

    step: Any
    """Steps taken since the start of the run."""
    variables: Any
    optimizer: Any
    sums: Sums
    average: Any = None
    """Moving average of the variables, with `ema`."""

    @property
    def learned(self) -> Any:
        """The variables that are tested, saved and cut."""
        return self.variables if self.average is None else self.average


def train(config: TrainConfig) -> Trained:
    """Train what `config` says, or go on where its run stopped; a finished run is left as it is.

    A loss that is not finite raises a DivergedError. SIGTERM and SIGINT save the state and raise a StoppedError.
    """
    with Run(config) as run:
        if run.is_finished():
            return run.result()
        if not config.init_from:  # a checkpoint names code too, which nobody typed
            register(config.model)
        source = trained(config.init_from) if config.init_from else None
        images, held_out = load(config), None
        if config.holdout:
            images, *held_out = data.hold_out(images, config.holdout, config.seed)
        mesh = feed.device_mesh()
        feed.check_batches(config.batch_size, config.epochs, len(images.train_labels), mesh)
        cropped = isinstance(images.train_images, data.Streamed) and "resized-crop" in config.augment
        seen = images.train_images, images.train_labels, config.batch_size, config.seed
        batches = feed.feed(mesh, *seen, epochs=config.epochs, crop=cropped)
        run.callback(batches.close)
        on_device = tuple(name for name in config.augment if not (cropped and name == "resized-crop"))

        shape, classes = images.train_images.shape[1:], len(images.class_names)
        newest = run.newest() if config.progressive else None  # perhaps smaller than the source
        gone = newest.meta.get("channels_cut", 0) if newest else 0
        shrinking = Shrinking(config, source, shape, classes, gone) if config.progressive else None
        module, variables = build(config, newest or source, images)
        rate, guide = learning_rates(config, batches.steps_per_epoch), teacher(config, images)

        def tools(module: Any, variables: Any) -> tuple[Any, ...]:
            """Optimizer, step, evaluations and pulled scales of a network; a cut makes new ones."""
            mask, graph = pulled(config, module, variables, shape)
            tx = optimizer(config, rate, mask, graph, config.epochs * batches.steps_per_epoch)
            test = evaluator(config, module, mesh, images.test_images, images.test_labels)
            choose = evaluator(config, module, mesh, *held_out) if held_out else None
            return (
                tx,
                train_step(dataclasses.replace(config, augment=on_device), module, tx, mesh, guide),
                test,
                choose,
                mask,
            )

        tx, step, test, choose, scales = tools(module, variables)
        everywhere, _ = feed.shardings(mesh)
        taught_by = feed.place(guide.variables, everywhere) if guide else None
        nothing = Sums(np.float32(0), np.int32(0), np.int32(0))
        fresh = jax.tree.map(jnp.asarray, nothing)
        average = jax.tree.map(lambda leaf: leaf.copy(), variables) if config.ema else None  # steps take buffers over
        state = TrainState(jnp.int32(0), variables, jax.jit(tx.init)(variables["params"]), fresh, average)
        key = jax.jit(lambda: jax.random.key(config.seed + 1), out_shardings=everywhere)()
        state = feed.place(run.begin(module, source, images, state, batches.steps_per_epoch), everywhere)
        del variables, average, source, newest  # or their arrays would lie beside the state to the end
        for epoch in run.epochs():
            rest = state.variables, state.optimizer
            if shrinking and (smaller := shrinking.cut(epoch, module, state.learned, rest)):
                module, learned, (raw, moments) = smaller
                _, step, test, choose, scales = tools(module, learned)
                state = state._replace(variables=raw if config.ema else learned, optimizer=moments)
                state = feed.place(state._replace(average=learned if config.ema else None), everywhere)
                run.resize(module, state.variables, shrinking.gone)
            for batch in batches.batches(epoch, skip=run.steps_into(epoch)):
                state = step(state, batch, key, taught_by)
                run.check(state, steps=batch.steps)
            tested = test(state.learned, functools.partial(run.check, state))
            row = measure(config, epoch, state, tested, rate, choose, scales)
            if shrinking:
                row["to_cut"] = shrinking.to_cut(config.epochs)
            if not all(map(math.isfinite, row.values())):
                run.diverge(row, int(state.sums.finite))
            state = state._replace(sums=feed.place(nothing, everywhere))
            run.record(row, state)
    return run.result()


def train_step(
    config: TrainConfig,
    module: Any,
    tx: optax.GradientTransformation,
    mesh: Any,
    guide: Teacher | None = None,
) -> Callable[..., Any]:
    """Build `step(state, batch, key) -> state`, which takes the steps of one `Batch` in one call.

    `key` and the number of the step fix augmentation and dropout. The old state is donated. BatchNorm sees the
    statistics of the global batch. With a teacher, `guide`, it is `step(state, batch, key, variables)` with those of
    the teacher, which sees the same augmented images, in evaluation.
    """
    loss = losses(config)
    augment = data.augmenter(config.augment, pad=config.pad)

    def loss_of(params: Any, stats: Any, images: Any, labels: Any, taught: Any, key: Any) -> tuple[jax.Array, Any]:
        collections = {"params": params, **stats}
        logits, stats = module.apply(collections, images, train=True, mutable=list(stats), rngs={"dropout": key})
        values = loss(logits, labels)
        if taught is not None:
            soft = distillation(logits, taught, config.distill_temperature)
            values = (1 - config.distill_weight) * values + config.distill_weight * soft
        return values.mean(), (stats, values.sum(), jnp.sum(logits.argmax(-1) == labels))

    def one(state: TrainState, batch: feed.Batch, chosen: Any, key: Any, known: Any) -> TrainState:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        pixels, labels = batch.step(chosen)
        augmented = augment(pixels, augment_key)
        taught = guide.logits(known, augmented) if guide else None
        images = data.normalise(augmented, config.mean, config.std)
        params = state.variables["params"]
        stats = {name: value for name, value in state.variables.items() if name != "params"}
        gradients, (stats, total, correct) = jax.grad(loss_of, has_aux=True)(
            params, stats, images, labels, taught, dropout_key
        )
        updates, moments = tx.update(gradients, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        loss_sum = state.sums.loss + total
        sums = Sums(loss_sum, state.sums.correct + correct, state.sums.finite + jnp.isfinite(loss_sum))
        variables = {"params": params, **stats}
        average = moving_average(state.average, variables, config.ema, state.step) if config.ema else None
        return TrainState(state.step + 1, variables, moments, sums, average)

    def step(state: TrainState, batch: feed.Batch, key: Any, known: Any = None) -> TrainState:
        if batch.steps == 1:
            return one(state, batch, None if batch.rows is None else batch.rows[0], key, known)
        return lax.scan(lambda state, chosen: (one(state, batch, chosen, key, known), None), state, batch.rows)[0]

    everywhere, _ = feed.shardings(mesh)
    options = in_place() if mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(step, donate_argnums=0, out_shardings=everywhere, compiler_options=options)


def measure(
    config: TrainConfig, epoch: int, state: TrainState, tested: Evaluation, rate: optax.Schedule, choose: Any, mask: Any
) -> dict[str, Any]:
    """The row of metrics.jsonl that an epoch leaves; accuracies are shares, losses are means of an image.

    `mask` is true for the scales that L1 pulls on.
    """
    sums, scales, steps = jax.device_get(state.sums), scale_values(state.learned, mask), int(state.step)
    seen = steps // epoch * config.batch_size
    return {
        "epoch": epoch,
        "step": steps,
        "loss": float(sums.loss) / seen,
        "train_accuracy": int(sums.correct) / seen,
        "learning_rate": float(rate(steps - steps // epoch)),
        **({"l1": float(scales.sum()), "small_scales": float((scales < SMALL_SCALE).mean())} if scales.size else {}),
        "test_loss": tested.loss,
        "accuracy": tested.accuracy,
        **({"holdout_accuracy": choose(state.learned).accuracy} if choose else {}),
    }
