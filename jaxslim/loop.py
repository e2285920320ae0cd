"""The training loop, top to bottom."""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim import checkpoint, data, models, runs, steps
from jaxslim.config import TrainConfig, check_widths
from jaxslim.description import describe
from jaxslim.errors import DivergedError, InputError, StoppedError
from jaxslim.files import LOCK, UNFINISHED, check_path, flush, locked, set_aside, write_whole
from jaxslim.processes import FILE, is_first, largest, wait
from jaxslim.progress import Progress
from jaxslim.sparsity import bn_scale_mask, scale_values
from jaxslim.stopping import stop_requests

log = logging.getLogger(__name__)

_PLACES = ("name", "workdir", "data_dir", "tensorboard", "compilation_cache", "save_every")
"""Fields that may differ when a run is continued."""


class Trained(NamedTuple):
    """What a finished run leaves."""

    folder: Path
    metrics: dict[str, Any]
    """Of the last epoch."""
    best: dict[str, Any]
    """Of the epoch of `best`."""


def train(config: TrainConfig) -> Trained:
    """Train what `config` says, or go on where its run stopped; a finished run is left as it is.

    Raises:
      InputError: the configuration, data, starting checkpoint or folder cannot be used.
      DivergedError: the loss is not finite any more; earlier checkpoints stay.
      StoppedError: SIGTERM or SIGINT came; the state is saved, in the middle of an epoch too.
    """
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"The config is of type {type(config).__name__}; pass a TrainConfig, such as load_config(path) gives."
        )
    folder = Path(config.folder).absolute()
    check_folder(folder, config)
    if _is_finished(folder, config.epochs):
        if is_first():
            print(f"{folder} has all its {config.epochs} epochs.", flush=True)
        return _result(folder)

    board = _tensorboard() if config.tensorboard else None
    source = checkpoint.load(config.init_from) if config.init_from else None
    images = data.load(config.dataset, data_dir=config.data_dir, image_size=config.image_size, channels=config.channels)
    held_out = None
    if config.holdout:
        images, *held_out = data.hold_out(images, config.holdout, config.seed)
    mesh = steps.device_mesh()
    steps.check_batches(config, len(images.train_labels), mesh)
    module, variables = _network(config, source, len(images.class_names))

    everywhere, _ = steps.shardings(mesh)
    steps_per_epoch = len(images.train_labels) // config.batch_size
    rate = steps.learning_rates(config, steps_per_epoch)
    tx = steps.optimizer(config, rate, bn_scale_mask(variables))
    state = steps.TrainState(jnp.zeros((), jnp.int32), variables, jax.jit(tx.init)(variables["params"]))
    batches = steps.feed(mesh, images.train_images, images.train_labels)
    step = steps.train_step(config, module, tx, mesh)
    test = steps.evaluator(config, module, mesh, images.test_images, images.test_labels)
    choose = steps.evaluator(config, module, mesh, *held_out) if held_out else None

    lineage: dict[str, Any] = {
        "kind": _kind(config),
        "config": dataclasses.asdict(config),
        "parent": _parent(config, source),
    }
    lineage |= {"class_names": list(images.class_names), "image_shape": list(images.train_images.shape[1:])}

    augment_key = jax.jit(lambda: jax.random.key(config.seed + 1), out_shardings=everywhere)()
    with contextlib.ExitStack() as stack:
        runs.check_room(folder, state.variables, state.optimizer)
        if is_first():
            stack.enter_context(locked(folder))
            check_folder(folder, config)  # again: another may have been at work here until now
            point = runs.newest(folder)
        wait("for the first process to choose the checkpoint")
        if not is_first():
            point = runs.newest(folder)
        state, epochs_done, totals = _resumed(state, point, type(module), steps_per_epoch)
        state = steps.place(state, everywhere)
        reached = point[1].get("metrics") if point else None
        last_finite = reached.get("loss", math.nan) if isinstance(reached, dict) else math.nan
        metrics_file = folder / "metrics.jsonl"
        if is_first():
            claim(folder, config)
            keep_rows(metrics_file, epochs_done)
        saver = stack.enter_context(contextlib.closing(runs.Saver(folder)))
        writer = stack.enter_context(board(str(folder / "tensorboard"))) if board and is_first() else None
        progress = stack.enter_context(Progress(config.name, config.epochs, epochs_done, steps_per_epoch))
        check = stack.enter_context(stop_requests(largest))
        for epoch in range(epochs_done + 1, config.epochs + 1):
            started = time.perf_counter()
            order = steps.order(config.seed, epoch, len(images.train_labels), config.batch_size)
            before = sum(len(sums.loss) for sums in totals)  # steps that were taken before an interruption
            progress.advance(before)
            try:
                for call in batches(order[before:]):
                    state, sums = step(state, *call, augment_key)
                    totals.append(sums)
                    jax.block_until_ready(totals[max(len(totals) - 3, 0)])  # so that the progress shown has happened
                    progress.advance(len(sums.loss))
                    check()
                losses, hits = (np.concatenate(jax.device_get(column)) for column in zip(*totals, strict=True))
                seconds = time.perf_counter() - started
                tested = test(state.variables, check)
                chosen_by = {"holdout_accuracy": choose(state.variables, check).accuracy} if choose else {}
            except StoppedError as stop:
                sums = {name: np.concatenate(jax.device_get(column)).tolist() for name, column in _columns(totals)}
                meta = describe(module, state.variables, {**lineage, "epoch": epoch, "sums": sums})
                saver.save_interrupted(state.variables, state.optimizer, meta)
                stop.saved = saver.wait()
                wait("for the state to be saved")
                raise
            seen, totals = order.size, []
            loss, correct, finite = float(losses.sum()), float(hits.sum()), losses[np.isfinite(losses)]
            current_rate = float(rate((epoch - 1) * steps_per_epoch))
            last_finite = float(finite[-1]) / config.batch_size if finite.size else last_finite
            scales = scale_values(state.variables)
            l1 = float(scales.sum())
            if not (math.isfinite(loss) and math.isfinite(l1) and math.isfinite(tested.loss)):
                saver.wait()
                wait("for the checkpoint before")
                bad = [*np.flatnonzero(~np.isfinite(losses)), len(losses) - 1]  # or what the last one led to
                at = (epoch - 1) * steps_per_epoch + int(bad[0]) + 1
                raise DivergedError(
                    f"The training diverged in epoch {epoch}, step {at}, at learning rate {current_rate:g} "
                    f"(last finite loss {last_finite:.4f}); lower --learning-rate. {_standing(folder)}"
                )
            row = {
                "epoch": epoch,
                "step": epoch * steps_per_epoch,
                "loss": loss / seen,
                "train_accuracy": correct / seen,
                "learning_rate": current_rate,
                "l1": l1,
                "small_scales": float((scales < 1e-2).mean()),
                "accuracy": tested.accuracy,
                **chosen_by,
            }
            if is_first():
                with metrics_file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                flush(metrics_file)  # the row has to outlast its checkpoint
            if epoch % config.save_every == 0 or epoch == config.epochs:
                meta = describe(module, state.variables, {**lineage, "metrics": row, "epoch": epoch})
                saver.save(epoch, state.variables, state.optimizer, meta)
            if writer:
                for name, value in row.items():
                    writer.add_scalar(name, value, epoch)
            if is_first():
                progress.finish_epoch(row, (seen - before * config.batch_size) / seconds)
        saver.close()
        wait("for the last checkpoint")
    result = _result(folder)
    if not is_first():
        return result
    print(
        f"{config.name}: accuracy {result.metrics['accuracy']:.2%} after epoch {config.epochs}; best "
        f"{result.best['accuracy']:.2%} after epoch {result.best['epoch']}, chosen on {config.chosen_on}. "
        f"Checkpoint: {folder}/checkpoints/{config.epochs}",
        flush=True,
    )
    return result


def _is_finished(folder: Path, epochs: int) -> bool:
    done = checkpoint.finished(folder)
    return bool(done) and done[-1] >= epochs and not checkpoint.fault(checkpoint.epoch_folder(folder, done[-1]))


def _resumed(
    state: steps.TrainState, point: Any, module_type: type, steps_per_epoch: int
) -> tuple[Any, int, list[Any]]:
    """The state at a checkpoint of `runs.newest`, the epochs that it has behind it, and the sums of one begun since."""
    if point is None:
        return state, 0, []
    path, meta = point
    try:
        sums = meta.get("sums")
        epochs = int(meta["epoch"]) - bool(sums)
        begun = [steps.Sums(jnp.float32(sums["loss"]), jnp.int32(sums["correct"]))] if sums else []
    except (KeyError, TypeError, ValueError, OverflowError):
        epochs = -1
    if epochs < 0:
        raise checkpoint.damaged(path, "its meta tells no epoch of a training run")
    taken = epochs * steps_per_epoch + sum(len(part.loss) for part in begun)
    moments = checkpoint.restore_optimizer(path, state.optimizer)
    variables = checkpoint.load(path, module_type).variables
    return steps.TrainState(jnp.asarray(taken, jnp.int32), variables, moments), epochs, begun


def _columns(totals: list[steps.Sums]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    return zip(steps.Sums._fields, zip(*totals, strict=True), strict=True)


def check_folder(folder: Path, config: TrainConfig) -> None:
    """Refuse a folder that holds something other than this run.

    Raises:
      InputError: another configuration's run, or other files.
    """
    check_path(str(folder))
    file = folder / "config.json"
    if not file.exists():
        if folder.exists() and (
            not folder.is_dir() or any(not path.name.startswith((LOCK, FILE, UNFINISHED)) for path in folder.iterdir())
        ):
            raise InputError(f"{folder} holds other files and no run; choose another --workdir.")
        return
    if (checkpoints := folder / "checkpoints").exists() and not checkpoints.is_dir():
        raise InputError(f"{checkpoints} is a file and no folder; choose another --workdir.")
    if not file.is_file():
        raise InputError(f"{file} is no file; choose another --workdir.")
    try:
        there = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not readable ({error}); choose another --workdir.") from None
    if not isinstance(there, dict):
        raise InputError(f"{file} holds no configuration; choose another --workdir.")
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    there = json.loads(json.dumps(dataclasses.asdict(TrainConfig()))) | there  # a field may be younger than the run
    differ = [name for name in mine if name not in _PLACES and there.get(name) != mine[name]]
    if differ and runs.has_saved(folder):  # a run that saved nothing has nothing to lose
        what = ", ".join(f"{name} {there.get(name)} there, {mine[name]} here" for name in differ[:3])
        what += f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise InputError(f"{folder} holds another run ({what}); choose another --workdir or --name, or delete it.")


def claim(folder: Path, config: TrainConfig) -> None:
    """Write down whose run the folder is."""
    write_whole(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def keep_rows(file: Path, epochs: int) -> None:
    """Drop the rows of epochs whose checkpoint was lost, which will be trained again.

    A file that lacks rows of epochs before is damaged: it is kept under a name that ends in `.damaged`.
    """
    rows: dict[int, bytes] = {}
    for line in file.read_bytes().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            rows.setdefault(int(json.loads(line)["epoch"]), line)
    if file.exists() and (lost := [str(epoch) for epoch in range(1, epochs + 1) if epoch not in rows]):
        log.warning("%s lacks the rows of epoch %s; it is kept as %s.", file, ", ".join(lost), set_aside(file).name)
    write_whole(file, b"".join(rows[epoch] + b"\n" for epoch in sorted(rows) if 1 <= epoch <= epochs))


def _network(config: TrainConfig, source: checkpoint.Loaded | None, num_classes: int) -> tuple[Any, Any]:
    dtype = jnp.dtype(config.dtype)
    if source is not None:
        if source.module.num_classes != num_classes:
            raise InputError(
                f"{config.init_from} tells {source.module.num_classes} classes apart and {config.dataset} has "
                f"{num_classes}; start from a checkpoint of the same data set."
            )
        *_, channels = source.meta.get("image_shape", [config.channels])
        if channels != config.channels:
            raise InputError(
                f"{config.init_from} sees {channels} channels and the configuration has {config.channels}; "
                f"use --channels {channels}, with as many numbers in --mean and --std."
            )
        check_widths(source.module.widths, config.image_size)
        return source.module.clone(dtype=dtype), source.variables
    widths = config.widths or models.WIDTHS[config.model]
    check_widths(widths, config.image_size)
    module = models.VGG(widths, num_classes, dtype)
    image = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    return module, jax.jit(module.init)(jax.random.key(config.seed), image)


def _kind(config: TrainConfig) -> str:
    if config.init_from:
        return "fine-tuned"
    return "sparse" if config.l1 else "dense"


def _parent(config: TrainConfig, source: checkpoint.Loaded | None) -> dict[str, Any] | None:
    if source is None:
        return None
    return checkpoint.parent(str(config.init_from), source.meta) | {"plan": source.meta.get("plan")}


def _standing(folder: Path) -> str:
    done = checkpoint.finished(folder)
    if not done:
        return "No checkpoint was saved."
    return f"The checkpoint of epoch {done[-1]} stays the latest; give the new run another --name or --workdir."


def _result(folder: Path) -> Trained:
    best, latest = (checkpoint.read_meta(checkpoint.find(folder / name))["metrics"] for name in ("best", "latest"))
    return Trained(folder, latest, best)


def _tensorboard() -> Any:
    """The class that writes TensorBoard files."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError('--tensorboard needs tensorboardX: pip install "jaxslim[tensorboard]".') from None
    return SummaryWriter
