"""Checkpoints that describe themselves. Nothing else knows orbax.

A checkpoint is a folder with the items `variables` (arrays), `meta` (JSON) and, in a training run, `training`
(optimizer state and the sums of the epoch), and with the checksums of their files. The folder is written under another
name and renamed when it is complete.
"""

import gc
import json
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxslim.errors import InputError, first_line
from jaxslim.files import UNFINISHED, check_path, flush, naming
from jaxslim.storage.history import damaged, fault, find, read_meta
from jaxslim.storage.integrity import DamageError, digest, seal
from jaxslim.storage.metadata import arrays, build, check_image_shape, describe

__all__ = ["Loaded", "damaged", "fault", "find", "load", "parent", "read_meta"]
__all__ += ["restore_training", "save", "write"]


class Loaded(NamedTuple):
    """What a checkpoint holds."""

    module: Any
    """The Linen module."""
    variables: Any
    """Its `params`, `batch_stats` and other collections: nested dicts of arrays."""
    meta: dict[str, Any]
    """JSON values: kind (dense, sparse, pruned, fine-tuned), config, metrics, epoch, versions, ..."""


def save(path: str | Path, module: Any, variables: Any, meta: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint to a new folder, whole or not at all.

    Args:
      path: folder to make.
      module: Linen module; its fields are numbers, strings, dtypes or tuples of them.
      variables: nested dicts of arrays, as `module.init` returns them.
      meta: JSON values to keep along; `load` gives them back.

    Returns:
      The absolute path.

    Raises:
      InputError: the folder exists, or the module or variables cannot be described.
      OSError: it cannot be written; nothing is left of it.
    """
    check_path(path)
    path = Path(path).absolute()
    if os.path.lexists(path):
        raise InputError(f"{path} exists already and checkpoints are never overwritten; choose another folder.")
    if path.parent.name == "checkpoints":
        raise InputError(f"{path} lies among a run's own checkpoints; choose another folder.")
    write(path, variables, describe(module, variables, meta))
    return path


def load(path: str | Path, module_type: type | None = None) -> Loaded:
    """Read a checkpoint in a fresh process, with nothing else known.

    Args:
      path: folder of a checkpoint, RUN/latest, RUN/best, or a run, which stands for its latest checkpoint.
      module_type: class of the module, needed where jaxslim does not provide it.

    Raises:
      InputError: there is no checkpoint, it is damaged, or it cannot be read here.
      OSError: a file could not be read.
      RuntimeError: JAX cannot start its backend, or has too little memory.
    """
    while True:
        folder = find(path)
        before = _identity(folder)
        try:
            return _load(folder, module_type)
        except (InputError, FileNotFoundError):
            if _identity(folder) == before:  # else a run in progress has replaced it
                raise


def _identity(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.exists() else None


def _load(path: Path, module_type: type | None) -> Loaded:
    meta = read_meta(path, "variables")
    try:
        module, target = build(meta, module_type), arrays(meta)
    except DamageError as error:
        raise damaged(path, str(error)) from None
    _check_size(path, target)
    check_image_shape(path, meta)
    variables = _restore(path, meta, variables=ocp.args.StandardRestore(target)).variables
    if meta.get("digest", expected := digest(variables)) != expected:
        raise damaged(path, f"its variables have the digest {expected[:12]}, not the one saved")
    return Loaded(module, variables, meta)


def restore_training(path: Path, like: Any) -> Any:
    """What `write` kept as `training`, in the structure, shapes and shardings of `like`."""
    meta = read_meta(path, "training")
    leaves, structure = jax.tree.flatten(like)
    target = {str(number): leaf for number, leaf in enumerate(leaves)}
    restored = _restore(path, meta, training=ocp.args.StandardRestore(target)).training
    return jax.tree.unflatten(structure, [restored[str(number)] for number in range(len(leaves))])


def write(path: Path, variables: Any, meta: Mapping[str, Any], training: Any = None) -> None:
    """Write a checkpoint with its checksums, whole or not at all; one that is there is replaced.

    `meta` is what `describe` gave for the variables, and `training` any pytree of arrays, for `restore_training`.
    """
    json.dumps(meta)  # raises here what orbax would raise after half of the work
    leaves = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(training))}
    more = {"training": ocp.args.StandardSave(leaves)} if training is not None else {}
    items = ocp.args.Composite(variables=ocp.args.StandardSave(variables), meta=ocp.args.JsonSave(dict(meta)), **more)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        with naming(path), _checkpointer() as checkpointer:
            checkpointer.save(temporary, args=items)
        seal(temporary)
        flush(*temporary.rglob("*"), temporary)
        if path.exists():
            os.rename(path, f"{temporary}-before")
        os.rename(temporary, path)
        flush(path.parent)
    except ValueError as error:
        raise _system_error(error, path) or error from None
    finally:
        for rest in path.parent.glob(f"{temporary.name}*"):  # orbax writes to other names first
            shutil.rmtree(rest, ignore_errors=True)


def parent(path: str | Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of the one that it was made from, which lies at `path` and has this `meta`."""
    return {"path": str(path), **{name: meta.get(name) for name in ("kind", "epoch", "metrics")}}


def _checkpointer() -> ocp.Checkpointer:
    """One that does not wait for the other processes of a run: the first alone writes, and each reads for itself."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _restore(path: Path, meta: Mapping[str, Any], **items: Any) -> Any:
    """Read items of a checkpoint whose checksums agree, so that a failure is no damage.

    What the disk, the memory or JAX raises passes through. What remains is another version of orbax, or edited files.
    """
    with _checkpointer() as checkpointer:
        try:
            return checkpointer.restore(path, args=ocp.args.Composite(**items))
        except Exception as error:  # of many unrelated types
            cause = error.__cause__ if type(error) is Exception and error.__cause__ else error  # orbax wraps some
            if isinstance(cause, OSError | MemoryError | jax.errors.JaxRuntimeError):
                raise cause from None
            failure, reason = _system_error(cause, path), first_line(cause)
    # Collect the reads that orbax gave up on now, unheard: Python would print a traceback for each later.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.collect()
    sys.unraisablehook = hook
    if failure:
        raise failure
    advice, versions = "take another checkpoint", meta.get("versions")
    if isinstance(versions, dict) and (writer := versions.get("orbax-checkpoint")) != version("orbax-checkpoint"):
        advice = f"use orbax-checkpoint {writer}, which wrote them, or {advice}"
    raise InputError(f"{path} cannot be read here, though its files are as they were written ({reason:.80}); {advice}.")


def _system_error(error: BaseException, path: Path) -> OSError | None:
    """The operating system's error behind a ValueError of orbax's storage; None if there is none."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path)) if code else None


def _check_size(path: Path, target: Any) -> None:
    """Refuse arrays far larger than their files, before memory is taken for them."""
    claimed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    stored = sum(file.stat().st_size for file in (path / "variables").rglob("*"))
    if claimed > max(2**30, 1000 * stored):  # constant arrays are compressed well
        raise damaged(path, f"its meta claims {claimed:,} bytes of arrays, and its files hold {stored:,}")
