"""The JSON part of a checkpoint: what it says of a network and its arrays, and how both are built from it again."""

import contextlib
import dataclasses
import datetime
import json
import math
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.errors import InputError
from jaxslim.models import module_class
from jaxslim.storage.integrity import DamageError, digest

FORMAT = 2
"""Format of checkpoints. Version 0.1 wrote format 1, which numbers the checkpoints of a run by epoch."""
CUT_FORMAT = 3
"""Format of checkpoints of cut networks with their plan and program."""
MAX_IMAGE_SIZE = 2**24
"""Most numbers in an image."""
PACKAGES = ("jaxslim", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe(module: Any, variables: Any, meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe a Linen module and its variables in JSON: `meta`, and what `build` and `arrays` need.

    A field that cannot be written and an array that would not come back as it is raise an InputError.
    """
    shapes: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_empty)[0]:
        if not path and _is_empty(leaf):
            break
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        if not keys or len(keys) < len(path) or not (is_array or _is_empty(leaf)):
            raise InputError("A checkpoint holds nested dicts of arrays; convert the variables to dicts first.")
        name = _name(keys)
        if _is_empty(leaf) or 0 in leaf.shape:
            raise InputError(f"The variables hold nothing at {name}; leave it out.")
        if not jnp.issubdtype(leaf.dtype, np.number) and leaf.dtype != bool:
            raise InputError(f"The variables hold an array of {leaf.dtype}; turn it into numbers.")
        if (read := _dtype_in_jax(leaf.dtype)) != leaf.dtype:
            raise InputError(f"JAX would read {name}, of {leaf.dtype}, as {read}; convert it, jax.numpy.asarray does.")
        shapes[name] = [list(leaf.shape), str(leaf.dtype)]
    if not shapes:
        raise InputError("There are no arrays to save; pass the variables as module.init returns them.")
    if len({name.replace("/", ".") for name in shapes}) < len(shapes):
        raise InputError("Two arrays have one name, but for dots that stand for levels; rename one.")
    described = {"format": FORMAT, "module": parts_of(module), "variables": shapes, **origin(variables)}
    return {**(meta or {}), **described}


def parts_of(module: Any) -> dict[str, Any]:
    """What `build` needs of a Linen module: the name of its class and its fields."""
    return {"type": f"{type(module).__module__}.{type(module).__qualname__}", "fields": _fields(module)}


def origin(variables: Any) -> dict[str, Any]:
    """What a checkpoint says of itself: the digest of its variables, and when and with what it was made."""
    return {
        "digest": digest(variables),
        "versions": {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def read(path: Path) -> dict[str, Any]:
    """Read the JSON part of the checkpoint in the folder `path`; one of another program is an InputError, no damage."""
    try:
        meta = json.loads((path / "meta" / "metadata").read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamageError(f"its meta cannot be read ({error})") from None
    if not isinstance(meta, dict) or not {"format", "module", "variables"} <= meta.keys():
        raise InputError(f"{path} is not a checkpoint of jaxslim; give a folder that jaxslim made.")
    if meta["format"] not in range(1, CUT_FORMAT + 1):
        raise InputError(f"{path} was written by a newer jaxslim (format {meta['format']!r}); update jaxslim.")
    return meta


def build(meta: Mapping[str, Any], module_type: type | None = None) -> Any:
    """Build the module that `meta` describes; `module_type` is its class, needed where jaxslim has none of its name."""
    try:
        name, fields = str(meta["module"]["type"]), dict(meta["module"]["fields"])
    except (KeyError, TypeError, ValueError):
        raise DamageError("its meta describes no module") from None
    make = module_type or module_class(name)
    if make is None:
        raise InputError(
            f"The checkpoint holds a {name}, which is not jaxslim's; pass its class, load(path, module_type=...). The "
            "commands work on jaxslim's own networks."
        )
    try:
        return make(**{field: _decode(value) for field, value in fields.items()})
    except (KeyError, TypeError, InputError) as error:
        reason = str(error).rstrip(".")
        raise InputError(f"The checkpoint's {name} cannot be built from its fields: {reason}.") from error


def arrays(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays that `meta` describes, as nested dicts of shape, dtype and a place on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    found: dict[str, Any] = {}
    try:
        for name, (shape, dtype) in meta["variables"].items():
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"{name} has the shape {shape}")
            *parents, last = name.split("/")
            inner = found
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype), sharding=sharding)
    except (AttributeError, TypeError, ValueError) as error:
        raise DamageError(f"its meta describes no arrays ({error})") from None
    for name, (_, dtype) in meta["variables"].items():
        if (read := _dtype_in_jax(dtype)) != dtype:
            raise InputError(
                f"The checkpoint holds {name} of {dtype}, which JAX reads as {read}; set JAX_ENABLE_X64=1."
            )
    return found


def check_image_shape(path: Path, meta: Mapping[str, Any]) -> None:
    """Refuse an `image_shape` that is none, or of images too large for memory."""
    shape = meta.get("image_shape", [1, 1, 1])
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    if not whole or math.prod(shape) > MAX_IMAGE_SIZE:
        raise InputError(
            f"{path} is unusable: its image_shape is {shape!r:.60}, not three whole numbers of at least 1 with a "
            f"product of at most {MAX_IMAGE_SIZE}; take another checkpoint."
        )


def _dtype_in_jax(dtype: Any) -> np.dtype:
    """The dtype that JAX gives an array of `dtype`; without `jax_enable_x64`, it has 32 bits at most."""
    return jax.dtypes.canonicalize_dtype(np.dtype(dtype).newbyteorder("="))


def _is_empty(node: Any) -> bool:
    return node is None or (isinstance(node, dict | list | tuple) and not node)


def _name(keys: list[Any]) -> str:
    """The keys of nested dicts, joined by slashes; keys that would not come back are refused."""
    for key in keys:
        if not isinstance(key, str) or not key.isprintable() or not key or "/" in key:
            raise InputError(f"The variables hold the key {key!r:.60}; use printable strings without slashes.")
    return "/".join(keys)


def _fields(module: Any) -> dict[str, Any]:
    if isinstance(module, type) or not dataclasses.is_dataclass(module):
        raise InputError(
            f"The module is of type {type(module).__name__}; pass a Linen module, not its class or its variables."
        )
    names = [field.name for field in dataclasses.fields(module) if field.init and field.name not in ("parent", "name")]
    return {name: _encode(name, getattr(module, name)) for name in names}


def _encode(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_encode(name, item) for item in value]
    with contextlib.suppress(TypeError, ValueError):  # not a dtype, or not a whole one
        if jnp.issubdtype(dtype := np.dtype(value), jnp.number):
            return {"dtype": dtype.name}
    raise InputError(
        f"The module's field {name} holds {value!r}, which a checkpoint cannot describe; "
        "use numbers, strings, dtypes and tuples."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return np.dtype(value["dtype"]) if isinstance(value, dict) else value
