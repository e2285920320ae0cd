"""Writing the checkpoints of a run in the background."""

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from jaxslim.errors import InputError
from jaxslim.files import nearest
from jaxslim.ops.memory import give_back
from jaxslim.storage.checkpoint import write
from jaxslim.storage.history import accuracies_saved, accuracy, clean, remove, step_folder, steps_kept
from jaxslim.training.distributed import is_first

log = logging.getLogger(__name__)


def check_room(run: Path, variables: Any, training: Any) -> None:
    """Refuse to start a run whose first checkpoint would not fit on the disk."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves((variables, training)))
    there = nearest(run)
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(
            f"{there} has {free / 1e6:,.1f} MB free and a checkpoint takes {needed / 1e6:,.1f} MB; make room, or "
            "choose another --workdir."
        )


LARGE = 2**28
"""Bytes of a network and its optimizer above which memory counts for more than waiting, on a CPU: one step runs at a
time, and a checkpoint is written before training goes on. Beside a running step, its arrays would be kept twice, and
copied by orbax once more."""


def is_large(state: Any) -> bool:
    """Whether arrays that a CPU holds take more than `LARGE` bytes."""
    return jax.default_backend() == "cpu" and sum(leaf.nbytes for leaf in jax.tree.leaves(state)) > LARGE


class Saver:
    """Saves the checkpoints of a run in the background, in the first process, and deletes those that are not kept.

    A checkpoint that cannot be written, on a full disk for example, is logged; the run goes on, and `close` raises if
    that checkpoint was the last. `jaxslim.storage.history.steps_kept` says which are kept.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._failure: OSError | None = None
        if is_first():
            clean(run)
            self._accuracies = accuracies_saved(run)

    def save(self, step: int, variables: Any, training: Any, meta: Mapping[str, Any], files: Any = None) -> None:
        """Wait for the checkpoint before, and start writing that of `step`; `write` takes the other arguments."""
        self.wait()
        if not is_first():
            return
        arrays = variables, training
        if is_large(arrays) and jax.process_count() == 1:
            self._pending = Future()
            try:
                self._write(step, arrays, meta, files)
                self._pending.set_result(None)
            except OSError as error:
                self._pending.set_exception(error)
            give_back()  # what orbax took, as much as the arrays
            return
        on_host = jax.device_get(arrays)  # the next step takes the buffers over
        self._pending = self._thread.submit(self._write, step, on_host, meta, files)

    def wait(self) -> bool:
        """Wait until everything is written; whether the last checkpoint could be."""
        pending, self._pending, self._failure = self._pending, None, None
        try:
            if pending:
                pending.result()
        except OSError as error:
            self._failure = error
            log.warning("A checkpoint could not be saved: %s. The ones before it stay.", error)
        return self._failure is None

    def close(self) -> None:
        """Wait until everything is written, and end; raise the OSError of the last checkpoint if it had one."""
        self.wait()
        self._thread.shutdown()
        if self._failure:
            raise self._failure

    def _write(self, step: int, arrays: tuple[Any, Any], meta: Mapping[str, Any], files: Any) -> None:
        variables, training = arrays
        write(step_folder(self._run, step), variables, meta, training, files, in_turn=is_large(arrays))
        self._accuracies[step] = accuracy(meta)
        for older in self._accuracies.keys() - steps_kept(self._accuracies):
            remove(step_folder(self._run, older))
            del self._accuracies[older]
