"""Checkpoints that describe themselves. Nothing else knows orbax.

A checkpoint is a folder with the items `variables` (arrays), `meta` (JSON) and, in a training run, `training`
(optimizer state and the sums of the epoch), of a cut network `plan` and `program`, and with the checksums of their
files. The folder is written under another
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
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.plan import Plan
from jaxslim.errors import InputError, first_line
from jaxslim.files import UNFINISHED, check_path, flush, naming
from jaxslim.models import module_class
from jaxslim.slim.kinds.linen import Narrow
from jaxslim.slim.prune import Pruned
from jaxslim.storage import networks
from jaxslim.storage.exported import read_exported
from jaxslim.storage.history import damaged, fault, find, is_of_run, read_meta
from jaxslim.storage.integrity import DamageError, digest, seal
from jaxslim.storage.metadata import CUT_FORMAT, arrays, build, check_image_shape, describe, origin

__all__ = ["Loaded", "damaged", "fault", "find", "load", "parent", "read_meta"]
__all__ += ["restore_training", "save", "write"]


class Loaded(NamedTuple):
    """What a checkpoint holds."""

    module: Any
    """The Linen module. Of a cut network, the model that was passed or is jaxslim's, cut; or its `Program`, as of an
    exported file."""
    variables: Any
    """Its variables: nested dicts of arrays, or what the model takes."""
    meta: dict[str, Any]
    """JSON values: kind (dense, sparse, pruned, fine-tuned), config, metrics, epoch, versions, ..."""


def save(
    path: str | Path,
    module: Any,
    variables: Any = None,
    meta: Mapping[str, Any] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    graph: ChannelGraph | None = None,
    plan: Plan | None = None,
    **call: Any,
) -> Path:
    """Write a checkpoint to a new folder, whole or not at all.

    A cut network of any kind is stored with its plan, and with its evaluation as a program that runs without the
    network's code, which jaxslim's own networks do not need. An uncut one is too if `inputs` are given. Nothing of the
    code is stored.

    Args:
      path: folder to make.
      module: a Linen module, whose fields are numbers, strings, dtypes or tuples of them; with `inputs`, a model of any
        kind and code; or a cut network: what `prune` returned or its Linen module, or a cut model with `graph` and
        `plan`, such as what `narrow` returned.
      variables: of the module, as its `init` returns them. Of a cut network, its variables as `prune` takes them; left
        out, those of the `Pruned`, or what its module holds now. Where training makes new modules, pass
        `dataclasses.replace(pruned, module=trained)`.
      meta: JSON values to keep along; `load` gives them back.
      inputs: what the network is called with, for the program: a tuple of pytrees of arrays or `ShapeDtypeStruct`s.
        The program takes any batch size if the network's code does.
      graph, plan: of a cut model that is no `Pruned`.
      **call: keyword arguments of the cut model's call in evaluation, as those of `prune`.

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
    content = contents(module, variables, meta, inputs=inputs, graph=graph, plan=plan, **call)
    write(path, content.variables, content.meta, files=content.files)
    return path


class Contents(NamedTuple):
    """What `write` takes."""

    variables: Any
    """Nested dicts of arrays."""
    meta: dict[str, Any]
    files: dict[str, bytes]


def contents(
    module: Any,
    variables: Any,
    meta: Mapping[str, Any] | None,
    *,
    inputs: Sequence[Any] | None = None,
    graph: ChannelGraph | None = None,
    plan: Plan | None = None,
    **call: Any,
) -> Contents:
    """What a checkpoint holds of a network; the arguments are those of `save`."""
    is_cut = isinstance(module, Pruned | Narrow) or graph is not None or plan is not None
    if not is_cut and (inputs is None or module_class(networks.name_of(module))):
        return Contents(variables, describe(module, variables, meta), {})
    arrays, described, files = networks.parts(module, variables, graph, plan, inputs, call)
    return Contents(arrays, {**(meta or {}), **described, "format": CUT_FORMAT, **origin(arrays)}, files)


def load(path: str | Path, module_type: type | None = None, *, module: Any = None, variables: Any = None) -> Loaded:
    """Read a checkpoint in a fresh process, with nothing else known. Nothing that it names is imported.

    Args:
      path: folder of a checkpoint, RUN/latest, RUN/best, or a run, which stands for its latest checkpoint; or a file
        that `export` wrote as StableHLO.
      module_type: class of a Linen module, needed where jaxslim does not provide it.
      module: the full model, with any weights. If it was cut, the cut model takes its place, as `prune` returns it.
        Without `module`, a `Program` does, unless the model is a Linen module of jaxslim's own, or of code that
        `jaxslim train --model` or another command with that option was told of in this process.
      variables: arrays in the structure that a function takes, where dicts, lists and tuples are not enough; or the
        `eqx.nn.State` of an Equinox module.

    Raises:
      InputError: there is no checkpoint, it is damaged, it is of another network, or it cannot be read here.
      OSError: a file could not be read.
      RuntimeError: JAX cannot start its backend, or has too little memory.
    """
    if Path(path).is_file() and not is_of_run(Path(path).absolute()):
        return Loaded(*read_exported(Path(path).absolute()))
    while True:
        folder = find(path)
        before = _identity(folder)
        try:
            return _load(folder, module_type, module, variables)
        except (InputError, FileNotFoundError):
            if _identity(folder) == before:  # else a run in progress has replaced it
                raise


def _identity(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.exists() else None


def _load(path: Path, module_type: type | None, model: Any, given: Any) -> Loaded:
    meta = read_meta(path, "variables", "plan", "program")
    is_cut = meta["format"] == CUT_FORMAT
    try:
        module = model if is_cut or model is not None else build(meta, module_type)
        target = arrays(meta)
    except DamageError as error:
        raise damaged(path, str(error)) from None
    _check_size(path, target)
    check_image_shape(path, meta)
    variables = _restore(path, meta, variables=ocp.args.StandardRestore(target)).variables
    if meta.get("digest", expected := digest(variables)) != expected:
        raise damaged(path, f"its variables have the digest {expected[:12]}, not the one saved")
    if is_cut:
        try:
            module, variables = networks.opened(path, meta, variables, model, given)
        except DamageError as error:
            raise damaged(path, str(error)) from None
    return Loaded(module, variables, meta)


def restore_training(path: Path, like: Any) -> Any:
    """What `write` kept as `training`, in the structure, shapes and shardings of `like`."""
    meta = read_meta(path, "training")
    leaves, structure = jax.tree.flatten(like)
    target = {str(number): leaf for number, leaf in enumerate(leaves)}
    restored = _restore(path, meta, training=ocp.args.StandardRestore(target)).training
    return jax.tree.unflatten(structure, [restored[str(number)] for number in range(len(leaves))])


def write(
    path: Path,
    variables: Any,
    meta: Mapping[str, Any],
    training: Any = None,
    files: Mapping[str, bytes] | None = None,
    *,
    in_turn: bool = False,
) -> None:
    """Write a checkpoint with its checksums, whole or not at all; one that is there is replaced.

    `meta` is what `describe` gave for the variables, `training` any pytree of arrays, for `restore_training`, and
    `files` maps names, ITEM/FILE, to contents. With `in_turn`, `training` is written after the variables, since orbax
    copies all that it writes at once.
    """
    json.dumps(meta)  # raises here what orbax would raise after half of the work
    leaves = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(training))}
    more = {"training": ocp.args.StandardSave(leaves)} if training is not None else {}
    items = {"variables": ocp.args.StandardSave(variables), "meta": ocp.args.JsonSave(dict(meta))}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        with naming(path), _checkpointer() as checkpointer:
            checkpointer.save(temporary, args=ocp.args.Composite(**items, **({} if in_turn else more)))
            for item, later in more.items() if in_turn else ():
                checkpointer.save(beside := Path(f"{temporary}-{item}"), args=ocp.args.Composite(**{item: later}))
                os.rename(beside / item, temporary / item)
            for name, content in (files or {}).items():
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_bytes(content)
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
