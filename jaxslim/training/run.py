"""The folder of one training run: whose it is, what it has saved, how it shows that it moves, and how it stops."""

import contextlib
import dataclasses
import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxslim import __version__, models
from jaxslim.errors import DivergedError, InputError, StoppedError
from jaxslim.files import LOCK, UNFINISHED, check_path, flush, locked, set_aside, write_whole
from jaxslim.ops.memory import keep_memory
from jaxslim.storage import checkpoint, history
from jaxslim.training.config import TrainConfig, from_json
from jaxslim.training.distributed import is_first, largest, wait
from jaxslim.training.progress import Progress
from jaxslim.training.saver import Saver, check_room, is_large
from jaxslim.training.signals import stop_requests

log = logging.getLogger(__name__)

MAY_DIFFER = ("name", "workdir", "data_dir", "tensorboard", "compilation_cache", "save_every")
"""Fields that may differ when a run is continued."""


class Trained(NamedTuple):
    """What a finished run leaves."""

    folder: Path
    metrics: dict[str, Any]
    """Of the last epoch."""
    best: dict[str, Any]
    """Of the epoch of `best`."""


class Run(contextlib.ExitStack):
    """One run in its folder, for one training loop.

    Entering locks the folder. `begin` restores the state, `epochs` counts what is left, `check` follows each call of a
    step, `record` ends an epoch. Only the first process writes and prints.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self._config, self.folder = config, Path(config.folder).absolute()
        check_folder(self.folder, config)

    def __enter__(self) -> "Run":
        super().__enter__()
        if is_first():
            self.enter_context(locked(self.folder))
            check_folder(self.folder, self._config)  # again: another may have been at work here until now
        return self

    def is_finished(self) -> bool:
        """Whether all epochs are done, and the last checkpoint is whole."""
        steps = history.steps_saved(self.folder)
        if not steps or history.fault(last := history.step_folder(self.folder, steps[-1])):
            return False
        if done := history.read_meta(last).get("epoch") == self._config.epochs:
            self._say(f"{self.folder} has all its {self._config.epochs} epochs.")
        return done

    def newest(self) -> Any:
        """The newest checkpoint, whose network may be smaller than at the start of the run; None in a new run."""
        saved = history.newest(self.folder)
        return checkpoint.load(saved[0]) if saved else None

    def begin(self, module: Any, source: Any, images: Any, state: Any, steps_per_epoch: int) -> Any:
        """The state to go on from: that of the newest checkpoint, or `state` in a new run, made from `source`."""
        config = self._config
        self._module, self._steps_per_epoch, self._epoch = module, steps_per_epoch, 0
        self._lineage = {
            "kind": _kind(config, source),
            "config": dataclasses.asdict(config),
            "parent": source
            and {**checkpoint.parent(str(config.init_from), source.meta), "plan": source.meta.get("plan")},
            "class_names": list(images.class_names),
            "image_shape": list(images.train_images.shape[1:]),
        }
        check_room(self.folder, state.learned, _training(state))
        saved = history.newest(self.folder) if is_first() else None
        wait("for the first process to choose the checkpoint")
        saved = saved if is_first() else history.newest(self.folder)
        if saved:
            state = self._restore(*saved, state)
            self._lineage |= {name: saved[1][name] for name in ("channels_cut",) if name in saved[1]}
        self._start = int(state.step)
        self._events = self.enter_context(_tensorboard(self.folder)) if config.tensorboard and is_first() else None
        if is_first():
            written = {"version": __version__, **dataclasses.asdict(config)}
            write_whole(self.folder / "config.json", json.dumps(written, indent=2) + "\n")
            keep_rows(self.folder / "metrics.jsonl", self._epoch)
        self._saver = self.enter_context(contextlib.closing(Saver(self.folder)))
        self._say(f"{config.name}: {_summary(module, images)}")
        if left := len(images.train_labels) - steps_per_epoch * config.batch_size:
            self._say(f"{config.name}: {left} training images are left out of each epoch, others each time")
        if saved:
            where = "in the middle of" if self._start > self._epoch * steps_per_epoch else "at"
            self._say(f"{config.name}: continuing {where} epoch {self._epoch + 1}")
        self._progress = self.enter_context(
            Progress(config.name, config.epochs, self._start, steps_per_epoch, config.batch_size)
        )
        self._stop = self.enter_context(stop_requests(largest))
        self._running: deque[Any] = deque()
        self._ahead = 2
        if is_large(state):
            self._ahead = 0
            keep_memory(False)
        return state

    def resize(self, module: Any, variables: Any, gone: int) -> None:
        """Go on with a cut network that has lost `gone` channels by now."""
        self._module, self._lineage["channels_cut"] = module, gone
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
        self._say(f"{self._config.name}: cut to {size:,} parameters")

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from 1 on."""
        while self._epoch < self._config.epochs:
            self._started = time.perf_counter()
            yield self._epoch + 1
        self._saver.close()
        wait("for the last checkpoint")

    def steps_into(self, epoch: int) -> int:
        """Steps of `epoch` that were taken before the run went on here."""
        return max(self._start - (epoch - 1) * self._steps_per_epoch, 0)

    def check(self, state: Any, steps: int = 0) -> None:
        """Show that `steps` more are done; if a signal came, save `state` and raise a StoppedError."""
        self._running.append(state.step + 0)  # a copy: the next step takes the buffers of the state over
        while len(self._running) > self._ahead:  # what is shown has happened, and a stop waits for few calls
            jax.block_until_ready(self._running.popleft())
        self._progress.advance(steps)
        try:
            self._stop()
        except StoppedError as stop:
            self._save(state, {})
            stop.saved = self._saver.wait()
            wait("for the state to be saved")
            raise

    def record(self, row: dict[str, Any], state: Any) -> None:
        """End an epoch: write its row, its checkpoint if one is due, and its line."""
        taken = self._steps_per_epoch - self.steps_into(row["epoch"])
        self._epoch = row["epoch"]
        if is_first():
            with (file := self.folder / "metrics.jsonl").open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            flush(file)  # the row has to outlast its checkpoint
        if self._epoch % self._config.save_every == 0 or self._epoch == self._config.epochs:
            self._save(state, {"metrics": row})
        if self._events:
            for name, value in row.items():
                self._events.add_scalar(name, value, self._epoch)
        if is_first():
            seconds = time.perf_counter() - self._started
            self._progress.finish_epoch(row, taken * self._config.batch_size / seconds)

    def diverge(self, row: dict[str, Any], finite: int) -> NoReturn:
        """Raise a DivergedError; `finite` steps of the epoch of `row` had a finite loss."""
        self._saver.wait()
        wait("for the checkpoint before")
        first = row["step"] - self._steps_per_epoch + min(finite + 1, self._steps_per_epoch)
        standing = "No checkpoint was saved."
        if saved := history.steps_saved(self.folder):
            standing = f"The checkpoint of step {saved[-1]} stays; give the new run another --name or --workdir."
        raise DivergedError(
            f"The training diverged in epoch {row['epoch']}, step {first}, at learning rate {row['learning_rate']:g}; "
            f"lower --learning-rate. {standing}"
        )

    def result(self) -> Trained:
        """What the finished run leaves."""
        config, folders = self._config, [history.find(self.folder / name) for name in ("best", "latest")]
        best, latest = (history.read_meta(folder).get("metrics") for folder in folders)
        if not (isinstance(best, dict) and isinstance(latest, dict)):
            raise history.damaged(folders[1], "its meta tells no metrics")
        self._say(
            f"{config.name}: accuracy {latest['accuracy']:.2%} after epoch {config.epochs}; best "
            f"{best['accuracy']:.2%} after epoch {best['epoch']}, chosen on {config.chosen_on}. "
            f"Checkpoint: {folders[1]}"
        )
        return Trained(self.folder, latest, best)

    def _save(self, state: Any, more: dict[str, Any]) -> None:
        step = int(state.step)
        meta = {**self._lineage, "epoch": self._epoch, "step": step, **more}
        image = jax.ShapeDtypeStruct((1, *self._lineage["image_shape"]), np.float32)
        variables, meta, files = checkpoint.contents(self._module, state.learned, meta, inputs=(image,))
        self._saver.save(step, variables, _training(state), meta, files)

    def _restore(self, path: Path, meta: dict[str, Any], state: Any) -> Any:
        step, epoch = meta.get("step"), meta.get("epoch")
        if not (isinstance(step, int) and isinstance(epoch, int)):
            raise history.damaged(path, "its meta tells no step of a training run")
        if not 0 <= step - epoch * self._steps_per_epoch <= self._steps_per_epoch:
            raise history.damaged(path, f"its meta tells step {step} after epoch {epoch}")
        optimizer, sums, *raw = checkpoint.restore_training(path, _training(state))
        learned = checkpoint.load(path, type(self._module)).variables
        self._epoch = epoch
        if not raw:
            return state._replace(step=np.int32(step), variables=learned, optimizer=optimizer, sums=sums)
        return type(state)(np.int32(step), raw[0], optimizer, sums, learned)

    def _say(self, line: str) -> None:
        if is_first():
            print(line, flush=True)


def check_folder(folder: Path, config: TrainConfig) -> None:
    """Refuse a folder that holds another configuration's run, a run of an earlier version, or other files."""
    check_path(str(folder))
    file = folder / "config.json"
    if not file.exists():
        if folder.exists() and (
            not folder.is_dir() or any(not path.name.startswith((LOCK, UNFINISHED)) for path in folder.iterdir())
        ):
            raise InputError(f"{folder} holds other files and no run; choose another --workdir.")
        return
    if (checkpoints := folder / "checkpoints").exists() and not checkpoints.is_dir():
        raise InputError(f"{checkpoints} is a file and no folder; choose another --workdir.")
    if not file.is_file():
        raise InputError(f"{file} is no file; choose another --workdir.")
    try:
        there = dict(json.loads(file.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is not readable ({error}); choose another --workdir.") from None
    if not history.steps_saved(folder) and not (folder / "interrupted").exists():
        return  # a run that saved nothing has nothing to lose
    if (version := str(there.pop("version", "0.1.0"))).startswith("0.1."):
        raise InputError(
            f"{folder} holds a run of jaxslim {version}, which this version cannot continue, though its checkpoints "
            "load; choose another --workdir, or fine-tune that run with --init-from."
        )
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    there = json.loads(json.dumps(dataclasses.asdict(from_json(there, file))))
    differ = [name for name in mine if name not in MAY_DIFFER and there.get(name) != mine[name]]
    if differ:
        what = ", ".join(f"{name} {there.get(name)} there, {mine[name]} here" for name in differ[:3])
        what += f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise InputError(f"{folder} holds another run ({what}); choose another --workdir or --name, or delete it.")


def _training(state: Any) -> tuple[Any, ...]:
    """What a checkpoint keeps beside the variables that it is for."""
    return (state.optimizer, state.sums) if state.average is None else (state.optimizer, state.sums, state.variables)


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


def _kind(config: TrainConfig, source: Any) -> str:
    if config.progressive:
        return "pruned"
    return "fine-tuned" if source else "sparse" if config.sparse else "dense"


def _summary(module: Any, images: Any) -> str:
    """One line of what a run trains on."""
    kind = jax.devices()[0].device_kind
    size = "x".join(map(str, images.train_images.shape[1:]))
    return (
        f"{len(images.train_labels):,} training and {len(images.test_labels):,} test images of {images.name}, {size}, "
        f"{len(images.class_names)} classes; {models.kind(module)} on {jax.device_count()} x {kind}"
    )


def _tensorboard(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs tensorboardX: pip install tensorboardX.") from None
    return SummaryWriter(str(folder / "tensorboard"))
