"""The checkpoints of a run: finding them, choosing among them, and telling whole ones from damaged ones.

A run's folder holds `checkpoints/STEP`. RUN/latest stands for the one of the most steps, and RUN/best for the one of
the best epoch. A checkpoint that a signal left in the middle of an epoch has no metrics, and is never the best.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxslim.errors import InputError
from jaxslim.files import UNFINISHED, check_path, set_aside
from jaxslim.storage import metadata
from jaxslim.storage.integrity import DamageError, damage

log = logging.getLogger(__name__)


def find(path: str | Path) -> Path:
    """The folder of the checkpoint that `path` means: itself, RUN/latest, RUN/best, or the latest of a run."""
    check_path(path)
    path = Path(path).absolute()
    if is_checkpoint(path) or (is_of_run(path) and path.exists()):
        return path
    for run, name in ((path, "latest"), (path.parent, path.name)):
        if name in ("latest", "best") and (steps := steps_saved(run)):
            best = best_step(accuracies_saved(run)) if name == "best" else None
            return step_folder(run, steps[-1] if best is None else best)
    if not path.exists():
        raise InputError(f"There is no checkpoint {path}; check the path.")
    raise InputError(
        f"{path} is not a checkpoint of jaxslim (no meta and variables in it) and not a run that has saved one; "
        "give a folder that jaxslim train or jaxslim prune made."
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds the items of a checkpoint, whole or damaged."""
    return (path / "meta").is_dir() and (path / "variables").is_dir()


def is_of_run(path: Path) -> bool:
    """Whether a path has the form RUN/checkpoints/STEP."""
    return path.parent.name == "checkpoints" and path.name.isdecimal() and path.name == str(int(path.name))


def steps_saved(run: Path) -> list[int]:
    """Steps of a run's checkpoints, whole or damaged, in order."""
    folder = run / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if is_of_run(path)) if folder.is_dir() else []


def step_folder(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / "checkpoints" / str(step)


def accuracies_saved(run: Path) -> dict[int, float | None]:
    """The accuracy of each of a run's checkpoints, as `accuracy` gives it."""
    found = {}
    for step in steps_saved(run):
        folder = step_folder(run, step)
        try:
            found[step] = accuracy(read_meta(folder))
        except (InputError, FileNotFoundError):
            if folder.exists():  # else a run in progress has just deleted it
                raise
    return found


def accuracy(meta: Mapping[str, Any]) -> float | None:
    """The accuracy on held-out training images if there are any, else on the test set.

    None amid an epoch, and while a run that cuts its network has channels left to cut.
    """
    metrics = meta.get("metrics")
    if not isinstance(metrics, dict) or metrics.get("to_cut"):
        return None
    value = metrics.get("holdout_accuracy", metrics.get("accuracy"))
    return value if isinstance(value, int | float) else None


def best_step(accuracies: Mapping[int, float | None]) -> int | None:
    """The step of the highest accuracy, the latest of equals; None if there is no accuracy."""
    return max(((value, step) for step, value in accuracies.items() if value is not None), default=(0, None))[1]


def steps_kept(accuracies: Mapping[int, float | None]) -> set[int]:
    """Steps whose checkpoints a run keeps: the latest, those of the last two finished epochs, and the best."""
    epochs = sorted(step for step, value in accuracies.items() if value is not None)
    best = best_step(accuracies)
    return {max(accuracies), *epochs[-2:], *([] if best is None else [best])}


def newest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run, with its meta; None if nothing was saved.

    Damaged ones are renamed, to a name that ends in `.damaged`, and logged, unless all are: that is an InputError.
    """
    faults: dict[Path, str] = {}
    found = None
    for step in reversed(steps_saved(run)):
        path = step_folder(run, step)
        try:
            meta = _examine(path)
            found = found or (path, meta)
        except DamageError as error:
            faults[path] = str(error)
    for path, what in faults.items():
        if found is None:
            raise damaged(path, what)
        log.warning("%s is damaged: %s; going on from %s.", path, what, found[0])
        set_aside(path)
    return found


def read_meta(path: Path, *items: str) -> dict[str, Any]:
    """Check the meta of a checkpoint and its `items` (variables, training) for damage, and return the meta."""
    try:
        return _examine(path, "meta", *items)
    except DamageError as error:
        raise damaged(path, str(error)) from None


def fault(path: Path, *items: str) -> str | None:
    """Describe what is wrong with a checkpoint, or some of its items; None if it is sound."""
    try:
        _examine(path, *items)
    except DamageError as error:
        return str(error)
    return None


def damaged(path: Path, what: str) -> InputError:
    """The error for a damaged checkpoint; it names another that is whole, if its run has one."""
    advice = "take another checkpoint"
    if path.parent.name == "checkpoints":
        advice = "no other checkpoint of its run is whole: delete its folder to start over"
        others = (path.parent / str(step) for step in reversed(steps_saved(path.parents[1])))
        if whole := next((other for other in others if other != path and not fault(other)), None):
            advice = f"take {whole}, which is whole; training goes on from there by itself"
    return InputError(f"{path} is damaged: {what}; {advice}.")


def _examine(path: Path, *items: str) -> dict[str, Any]:
    """Read the meta of a checkpoint; raise a DamageError if a file of `items` is damaged, or its step differs."""
    if is_of_run(path) and path.is_symlink():
        raise DamageError("it is a symbolic link")
    if what := damage(path, *items):
        raise DamageError(what)
    meta = metadata.read(path)
    unit = "epoch" if meta["format"] == 1 else "step"
    if is_of_run(path) and meta.get(unit, int(path.name)) != int(path.name):
        raise DamageError(f"it is the checkpoint of {unit} {meta[unit]}")
    return meta


def remove(path: Path) -> None:
    """Delete a checkpoint; all readers miss it at once."""
    rest = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    os.rename(path, rest)
    shutil.rmtree(rest, ignore_errors=True)


def clean(run: Path) -> None:
    """Delete what a killed process left half written or half deleted."""
    for rest in (*run.glob(f"{UNFINISHED}*"), *run.glob(f"checkpoints/{UNFINISHED}*")):
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink()
