"""Writing the checkpoints of a run in the background, and going on from the newest whole one."""

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from jaxslim.errors import InputError
from jaxslim.files import nearest
from jaxslim.storage import history
from jaxslim.storage.checkpoint import best, damaged, fault, read_meta, size, write
from jaxslim.training.distributed import is_first

log = logging.getLogger(__name__)


def newest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run and its meta; None if nothing was saved.

    Damaged ones are moved aside, to a name that ends in `.damaged`, with a line in the log.

    Raises:
      InputError: all are damaged, or an epoch's names no accuracy to choose the best by; nothing is moved.
    """
    faults: dict[Path, str] = {}
    found = None
    for step in reversed(history.steps_saved(run)):
        path = history.step_folder(run, step)
        if what := fault(path):
            faults[path] = what
            continue
        meta = read_meta(path)
        if "metrics" in meta:
            history.selection(path, meta)  # as every save will ask
        found = found or (path, meta)
    for path, what in faults.items():
        if found is None:
            raise damaged(path, what)
        history.put_aside(path, what, found[0])
    return found


def check_room(run: Path, variables: Any, training: Any) -> None:
    """Refuse to start a run whose first checkpoint would not fit on the disk.

    Raises:
      InputError: there is less room than a checkpoint takes.
    """
    needed = size(variables, training)
    there = nearest(run)
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(
            f"{there} has {free / 1e6:,.1f} MB free and a checkpoint takes {needed / 1e6:,.1f} MB; make room, or "
            "choose another --workdir."
        )


class Saver:
    """Saves the checkpoints of a run in the background, in the first process, and keeps the latest two and the best.

    A checkpoint that cannot be written, on a full disk for example, is reported in the log; the run goes on, and
    `close` raises if that checkpoint was the last.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._failure: OSError | None = None
        if is_first():
            history.clean(run)

    def save(self, step: int, variables: Any, training: Any, meta: Mapping[str, Any]) -> None:
        """Wait for the checkpoint before, and start writing that of `step`; `meta` is of `describe`."""
        self.wait()
        if is_first():
            on_host = jax.device_get((variables, training))  # the next step takes the buffers over
            self._pending = self._thread.submit(self._write, history.step_folder(self._run, step), on_host, meta)

    def wait(self) -> bool:
        """Wait until everything is written, and tell whether the last of it could be."""
        pending, self._pending, self._failure = self._pending, None, None
        try:
            if pending:
                pending.result()
        except OSError as error:
            self._failure = error
            log.warning("A checkpoint could not be saved: %s. The ones before it stay.", error)
        return self._failure is None

    def close(self) -> None:
        """Wait until everything is written, and end.

        Raises:
          OSError: the last checkpoint could not be written.
        """
        self.wait()
        self._thread.shutdown()
        if self._failure:
            raise self._failure

    def _write(self, path: Path, state: tuple[Any, Any], meta: Mapping[str, Any]) -> None:
        variables, training = state
        write(path, variables, meta, training)
        epochs: list[Path] = []
        others: list[Path] = []
        for step in history.steps_saved(self._run):
            older = history.step_folder(self._run, step)
            if older != path and (what := fault(older)):
                history.put_aside(older, what, path)
            else:
                (epochs if "metrics" in read_meta(older) else others).append(older)
        for older in {*epochs, *others} - {path, *epochs[-2:], best(self._run)}:
            history.remove(older)
