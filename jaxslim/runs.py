"""The checkpoints of a run over time: saving them, keeping some, and going on from the newest that is whole."""

import logging
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from jaxslim.checkpoint import best, damaged, epoch_folder, fault, finished, read_meta, selection, size, write
from jaxslim.errors import InputError
from jaxslim.files import UNFINISHED, nearest, set_aside
from jaxslim.processes import is_first

log = logging.getLogger(__name__)

INTERRUPTED = "interrupted"
_NEXT = "interrupted-next"  # whole, and about to take the place of the one before


def has_saved(run: Path) -> bool:
    """Whether there is a checkpoint of a run, whole or damaged."""
    return bool(finished(run)) or any((run / name).exists() for name in (INTERRUPTED, _NEXT))


def newest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run and its meta, an interrupted epoch's included; None if nothing was saved.

    Damaged ones are moved aside, to a name that ends in `.damaged`, with a line in the log.

    Raises:
      InputError: all are damaged, or one names no accuracy to choose the best by; nothing is moved.
    """
    _replace_interrupted(run)
    epochs = finished(run)
    candidates = [epoch_folder(run, epoch) for epoch in reversed(epochs)]
    if (partial := run / INTERRUPTED).exists():
        candidates.insert(0, partial)
    faults: dict[Path, str] = {}
    point = None
    for path in candidates:
        if found := fault(path):
            faults[path] = found
            continue
        meta = read_meta(path)
        if path == partial and epochs and _epoch(meta) <= epochs[-1]:
            continue  # of an epoch that has been finished since
        if path != partial:
            selection(path, meta)  # as every save will ask
        point = point or (path, meta)
    for path, found in faults.items():
        if point is None:
            raise damaged(path, found)
        _set_aside(path, found, point[0])
    return point


def check_room(run: Path, variables: Any, optimizer: Any) -> None:
    """Refuse to start a run whose first checkpoint would not fit on the disk.

    Raises:
      InputError: there is less room than a checkpoint takes.
    """
    needed = size(variables, optimizer)
    there = nearest(run)
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(
            f"{there} has {free / 1e6:,.1f} MB free and a checkpoint takes {needed / 1e6:,.1f} MB; make room, or "
            "choose another --workdir."
        )


class Saver:
    """Saves the checkpoints of a run in the background and keeps the latest two and the best; in the first process.

    One that cannot be written, on a full disk for example, is reported in the log; the run goes on, and `close` raises
    if it was the last.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._failure: OSError | None = None
        for place in (run, run / "checkpoints") if is_first() else ():
            for rest in place.glob(f"{UNFINISHED}*"):  # of a process that was killed
                if rest.is_dir():
                    shutil.rmtree(rest, ignore_errors=True)
                else:
                    rest.unlink()

    def save(self, epoch: int, variables: Any, optimizer: Any, meta: Mapping[str, Any]) -> None:
        """Start writing the checkpoint of `epoch`; `meta` is of `describe`. Waits for the one before it."""
        self._start(epoch_folder(self._run, epoch), variables, optimizer, meta)

    def save_interrupted(self, variables: Any, optimizer: Any, meta: Mapping[str, Any]) -> None:
        """Start writing the state in the middle of an epoch, in place of an earlier one."""
        self._start(self._run / INTERRUPTED, variables, optimizer, meta)

    def close(self) -> None:
        """Wait until everything is written, and end.

        Raises:
          OSError: the last checkpoint could not be written.
        """
        self.wait()
        self._thread.shutdown()
        if self._failure:
            raise self._failure

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

    def _start(self, path: Path, variables: Any, optimizer: Any, meta: Mapping[str, Any]) -> None:
        self.wait()
        if not is_first():
            return
        on_host = jax.device_get((variables, optimizer))  # the next step takes the buffers over
        self._pending = self._thread.submit(self._write, path, on_host, meta)

    def _write(self, path: Path, state: tuple[Any, Any], meta: Mapping[str, Any]) -> None:
        variables, optimizer = state
        if path.name == INTERRUPTED:
            _replace_interrupted(self._run)
            write(path.with_name(_NEXT), variables, meta, optimizer)
            _replace_interrupted(self._run)
            return
        write(path, variables, meta, optimizer)
        _remove(self._run / INTERRUPTED)
        epochs = []
        for epoch in finished(self._run):
            older = epoch_folder(self._run, epoch)
            if older != path and (found := fault(older)):
                _set_aside(older, found, path)
            else:
                epochs.append(epoch)
        for epoch in set(epochs) - {*epochs[-2:], best(self._run, epochs)}:
            _remove(epoch_folder(self._run, epoch))


def _epoch(meta: Mapping[str, Any]) -> float:
    epoch = meta.get("epoch")
    return epoch if isinstance(epoch, int) else math.inf  # which going on from there will refuse


def _replace_interrupted(run: Path) -> None:
    """Give the next one the place of the one before, which stays until then."""
    if (run / _NEXT).exists():
        _remove(run / INTERRUPTED)
        os.rename(run / _NEXT, run / INTERRUPTED)


def _set_aside(path: Path, how: str, instead: Path) -> None:
    log.warning("%s is damaged: %s; going on from %s.", path, how, instead)
    set_aside(path)


def _remove(path: Path) -> None:
    """Delete a checkpoint, which is gone at once for everyone who looks."""
    if path.is_dir():
        rest = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
        os.rename(path, rest)
        shutil.rmtree(rest, ignore_errors=True)
