"""Checkpoints that describe themselves; the only file that knows orbax.

A checkpoint is a folder with the items `variables` (arrays), `meta` (JSON) and, in a training run, `training`
(optimizer state and the sums of the epoch), and with the checksums of their files: orbax restores flipped bits
silently. The folder is written under another name and then renamed, checksums included.
"""

import errno
import gc
import json
import math
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxslim.errors import InputError, first_line
from jaxslim.files import UNFINISHED, check_path, flush
from jaxslim.storage.history import is_of_run, remove, selection, step_folder, steps_saved
from jaxslim.storage.integrity import damage, digest, seal
from jaxslim.storage.metadata import FORMAT, DescriptionError, arrays, build, check_image_shape, describe


class Loaded(NamedTuple):
    """What a checkpoint holds."""

    module: Any
    """The Linen module, with its widths."""
    variables: Any
    """Its `params` and `batch_stats`."""
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
    if not isinstance(meta, Mapping | None):
        raise InputError(f"The meta is {meta!r:.60}; pass a dict, for example {{'kind': 'dense'}}.")
    described = describe(module, variables, meta)
    try:
        json.dumps(described)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The meta cannot be written as JSON ({error}); use numbers, strings, lists and dicts."
        ) from None
    write(path, variables, described)
    return path


def load(path: str | Path, module_type: type | None = None) -> Loaded:
    """Read a checkpoint in a fresh process, with nothing else known.

    Args:
      path: folder of a checkpoint, RUN/latest, RUN/best, or a run, which stands for its latest checkpoint.
      module_type: class of the module, needed where jaxslim does not provide it.

    Raises:
      InputError: there is no checkpoint, it is of another kind, or damaged.
    """
    found = find(path)
    while True:
        try:
            return _load(found, module_type)
        except InputError:
            if found.exists() or (again := find(path)) == found:
                raise
            found = again  # a run that is going on has put another in its place


def _load(path: Path, module_type: type | None) -> Loaded:
    _verify(path, "meta", "variables")
    meta = read_meta(path)
    try:
        module, target = build(meta, module_type), arrays(meta)
    except DescriptionError as error:
        raise damaged(path, f"its meta describes {error}") from None
    _check_size(path, target)
    if "image_shape" in meta:
        check_image_shape(meta, path)
        _check_fit(path, module, target, meta["image_shape"])
    variables = _restore(path, variables=ocp.args.StandardRestore(target)).variables
    if meta.get("digest", expected := digest(variables)) != expected:
        raise damaged(path, f"its variables have the digest {expected[:12]}, not the one saved")
    return Loaded(module, variables, meta)


def find(path: str | Path) -> Path:
    """The checkpoint folder that `path` means.

    Raises:
      InputError: there is none.
    """
    check_path(path)
    if not str(path):
        raise InputError("The path of the checkpoint is empty; give a folder that jaxslim.train or jaxslim.prune made.")
    path = Path(path).absolute()
    if is_checkpoint(path) or (is_of_run(path) and path.exists()):
        return path
    for run, wanted in ((path, "latest"), (path.parent, path.name)):
        steps = steps_saved(run)
        if steps and wanted == "latest":
            return step_folder(run, steps[-1])
        if steps and wanted == "best":
            return best(run) or step_folder(run, steps[-1])
    if not path.exists():
        raise InputError(f"There is no checkpoint {path}; check the path.")
    raise InputError(
        f"{path} is not a checkpoint of jaxslim (no meta and variables in it) and not a run that has saved one; "
        "give a folder that jaxslim.train or jaxslim.prune made."
    )


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint folder."""
    meta = _restore(path, meta=ocp.args.JsonRestore()).meta
    if not isinstance(meta, dict) or not {"format", "module", "variables"} <= meta.keys():
        raise InputError(f"{path} is not a checkpoint of jaxslim; give a folder that jaxslim made.")
    if type(meta["format"]) is not int:
        raise damaged(path, f"its format is {meta['format']!r}")
    if meta["format"] > FORMAT:
        raise InputError(f"{path} was written by a newer jaxslim (format {meta['format']}); update jaxslim.")
    return meta


def write(path: Path, variables: Any, meta: Mapping[str, Any], training: Any = None) -> None:
    """Write a checkpoint to a new folder, whole and with its checksums, or not at all; `meta` is of `describe`.

    Raises:
      OSError: it cannot be written.
    """
    leaves = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(training))}
    more = {"training": ocp.args.StandardSave(leaves)} if training is not None else {}
    items = ocp.args.Composite(variables=ocp.args.StandardSave(variables), meta=ocp.args.JsonSave(dict(meta)), **more)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if _free(path) < size(variables, training):
        raise full
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(temporary, args=items)
        seal(temporary)
        flush(*temporary.rglob("*"), temporary)
        remove(path)  # the same step, saved before its epoch was measured
        os.rename(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise error if error.filename else OSError(error.errno, error.strerror, str(path)) from None
    except Exception as error:  # orbax and its storage raise many unrelated types
        if "RESOURCE_EXHAUSTED" in str(error) and _free(path) < 1 << 20:  # files open at once are such a resource too
            raise full from error
        raise OSError(errno.EIO, first_line(error), str(path)) from error
    finally:
        for rest in path.parent.glob(f"{temporary.name}*"):  # orbax writes beside it first
            shutil.rmtree(rest, ignore_errors=True)


def size(variables: Any, training: Any) -> int:
    """Bytes that a checkpoint takes at most, but for its description."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves((variables, training)))


def _free(path: Path) -> int:
    """Bytes that are free where `path` is to be."""
    return shutil.disk_usage(path.parent).free


def parent(path: str | Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint made from the one at `path` keeps of its `meta`."""
    return {"path": str(path), **{name: meta.get(name) for name in ("kind", "epoch", "metrics")}}


def fault(path: Path, *items: str) -> str | None:
    """What is wrong with a checkpoint, or some of its items: damage, or a place not its own; None if nothing is."""
    if not is_of_run(path):
        return damage(path, *items)
    if path.is_symlink():
        return "it is a symbolic link"
    if found := damage(path, *items):
        return found
    try:
        meta = _read(path, meta=ocp.args.JsonRestore()).meta
    except Exception as error:  # as in `_restore`, whose message asks for the faults of other checkpoints
        return f"its meta cannot be read ({first_line(error)})"
    unit = "epoch" if isinstance(meta, dict) and meta.get("format") == 1 else "step"
    number = meta.get(unit) if isinstance(meta, dict) else None
    return f"it is the checkpoint of {unit} {number}" if isinstance(number, int) and number != int(path.name) else None


def restore_training(path: Path, like: Any) -> Any:
    """What `write` kept as `training`, in the structure, shapes and shardings of `like`."""
    _verify(path, "training")
    leaves, structure = jax.tree.flatten(like)
    target = {str(number): leaf for number, leaf in enumerate(leaves)}
    restored = _restore(path, training=ocp.args.StandardRestore(target)).training
    return jax.tree.unflatten(structure, [restored[str(number)] for number in range(len(leaves))])


def _checkpointer() -> ocp.Checkpointer:
    """One that does not wait for the other processes of a run: the first alone writes, and each reads for itself."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _verify(path: Path, *items: str) -> None:
    """
    Raises:
      InputError: a file of these items is missing or has other content.
    """
    if found := fault(path, *items):
        raise damaged(path, found)


def damaged(path: Path, how: str) -> InputError:
    advice = "take another checkpoint"
    if path.parent.name == "checkpoints":
        run = path.parents[1]
        others = [step for step in steps_saved(run) if step_folder(run, step) != path]
        whole = [step for step in others if not fault(step_folder(run, step))]
        if whole:
            advice = f"take {path.parent / str(whole[-1])}, which is whole; training goes on from there by itself"
        else:
            advice = "no other checkpoint of its run is whole: delete its folder to start over"
    return InputError(f"{path} is damaged: {how}; {advice}.")


def _read(path: Path, **items: Any) -> Any:
    with _checkpointer() as checkpointer:
        return checkpointer.restore(path, args=ocp.args.Composite(**items))


def _restore(path: Path, **items: Any) -> Any:
    try:
        return _read(path, **items)
    except Exception as error:  # orbax and its storage raise many unrelated types for damaged files
        reason = first_line(error)
    _forget_unread_arrays()
    raise damaged(path, f"its {next(iter(items))} cannot be read ({reason})")


def _forget_unread_arrays() -> None:
    """Collect the reads that orbax gave up on now, unheard: Python would print a traceback for each later."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.collect()
    sys.unraisablehook = hook


def is_checkpoint(path: Path) -> bool:
    return (path / "meta").is_dir() and (path / "variables").is_dir()


def best(run: Path) -> Path | None:
    """The checkpoint of a run's best epoch, the latest of equals; None if no epoch has been finished."""
    found = []
    for step in steps_saved(run):
        folder = step_folder(run, step)
        meta = read_meta(folder)
        if "metrics" in meta:
            found.append((selection(folder, meta), step, folder))
    return max(found)[-1] if found else None


def _check_size(path: Path, target: Any) -> None:
    """Refuse arrays far larger than their files, before memory is taken for them."""
    claimed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    held = sum(file.stat().st_size for file in (path / "variables").rglob("*"))
    if claimed > max(2**30, 1000 * held):  # constant arrays are compressed well
        raise damaged(path, f"its meta claims {claimed:,} bytes of arrays, and its files hold {held:,}")


def _check_fit(path: Path, module: Any, variables: Any, image_shape: Any) -> None:
    """Refuse a network that cannot be applied to its arrays and images, all given by shape."""
    try:
        jax.eval_shape(module.apply, variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    except Exception as error:  # whatever Flax and JAX find wrong
        raise damaged(
            path, f"its network, arrays and image shape do not fit each other ({first_line(error)})"
        ) from None
