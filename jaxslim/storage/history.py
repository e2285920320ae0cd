"""The checkpoints of a run over time.

A run's folder holds `checkpoints/STEP`. The names RUN/latest and RUN/best stand for two of these: the one of the most
steps, and the one of the best epoch. A checkpoint that a signal left in the middle of an epoch has no metrics.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxslim.errors import InputError
from jaxslim.files import UNFINISHED, set_aside

log = logging.getLogger(__name__)


def steps_saved(run: Path) -> list[int]:
    """Steps that the run in folder `run` has checkpoints of, whole or damaged since, in order."""
    folder = run / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if is_of_run(path)) if folder.is_dir() else []


def is_of_run(path: Path) -> bool:
    """Whether a path is of the form RUN/checkpoints/STEP."""
    return path.parent.name == "checkpoints" and path.name.isdecimal() and path.name == str(int(path.name))


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / str(step)


def selection(path: Path, meta: Mapping[str, Any]) -> float:
    """The accuracy that `best` is chosen by: on images held out of the training set, if any, else on the test set."""
    metrics = meta.get("metrics")
    value = metrics.get("holdout_accuracy", metrics.get("accuracy")) if isinstance(metrics, dict) else None
    if not isinstance(value, int | float):
        raise InputError(
            f"{path} names no accuracy to choose the best by; name a checkpoint by its folder, or move this one away."
        )
    return value


def remove(path: Path) -> None:
    """Delete a checkpoint, which is gone at once for everyone who looks."""
    if path.is_dir():
        rest = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
        os.rename(path, rest)
        shutil.rmtree(rest, ignore_errors=True)


def clean(run: Path) -> None:
    """Delete what a process that was killed has left half written or half deleted."""
    for place in (run, run / "checkpoints"):
        for rest in place.glob(f"{UNFINISHED}*"):
            if rest.is_dir():
                shutil.rmtree(rest, ignore_errors=True)
            else:
                rest.unlink()


def put_aside(path: Path, how: str, instead: Path) -> None:
    """Rename a damaged checkpoint, and log what is wrong with it and what takes its place."""
    log.warning("%s is damaged: %s; going on from %s.", path, how, instead)
    set_aside(path)
