"""What a checkpoint says in JSON about its network and its data, and what is built from that again."""

import contextlib
import dataclasses
import datetime
import math
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.errors import InputError
from jaxslim.models import MODULES
from jaxslim.storage.integrity import digest

FORMAT = 2
"""Format of checkpoints. Version 0.1 wrote format 1, which numbers the checkpoints of a run by epoch."""
MAX_NUMBERS = 2**24
"""Most that an image may hold."""
_PACKAGES = ("jaxslim", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class DescriptionError(Exception):
    """A description that no network can be built from; the message ends the sentence "its meta describes"."""


def describe(module: Any, variables: Any, meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON part of a checkpoint: `meta`, and what it takes to build the module and read the arrays."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_nothing)[0]:
        name = _name(path)
        if not path and _is_nothing(leaf):
            break
        if _is_nothing(leaf) or 0 in getattr(leaf, "shape", ()):
            raise InputError(f"The variables hold nothing at {name}; leave it out.")
        if not (path and hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise InputError("A checkpoint holds nested dicts of arrays; convert the variables to dicts first.")
        if not jnp.issubdtype(leaf.dtype, np.number) and leaf.dtype != bool:
            raise InputError(f"The variables hold an array of {leaf.dtype}; turn it into numbers.")
        read = jax.dtypes.canonicalize_dtype(np.dtype(leaf.dtype).newbyteorder("="))
        if read != leaf.dtype:
            raise InputError(f"JAX would read {name}, of {leaf.dtype}, as {read}; convert it, jax.numpy.asarray does.")
        shapes[name] = [list(leaf.shape), str(leaf.dtype)]
    if not shapes:
        raise InputError("There are no arrays to save; pass the variables as module.init returns them.")
    if len({name.replace("/", ".") for name in shapes}) < len(shapes):
        raise InputError("Two arrays have one name, but for dots that stand for levels; rename one.")
    return {
        **(meta or {}),
        "format": FORMAT,
        "module": {"type": f"{type(module).__module__}.{type(module).__qualname__}", "fields": _fields(module)},
        "variables": shapes,
        "digest": digest(variables),
        "versions": {name: metadata.version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _is_nothing(node: Any) -> bool:
    return node is None or (isinstance(node, dict | list | tuple) and not node)


def _name(path: Any) -> str:
    """Keys of nested dicts, joined; those that a checkpoint could not give back are refused."""
    if not all(isinstance(key, jax.tree_util.DictKey) for key in path):
        raise InputError("A checkpoint holds nested dicts of arrays; convert the variables to dicts first.")
    for key in (key.key for key in path):
        if not isinstance(key, str) or not key.isprintable() or not key or "/" in key:
            raise InputError(f"The variables hold the key {key!r:.60}; use printable strings without slashes.")
    return "/".join(key.key for key in path)


def build(meta: Mapping[str, Any], module_type: type | None = None) -> Any:
    """The module that `meta` describes; `module_type` is its class, needed where jaxslim does not provide it.

    Raises:
      DescriptionError: it describes none.
      InputError: the class is missing, or does not take the fields.
    """
    try:
        name, fields = str(meta["module"]["type"]), dict(meta["module"]["fields"])
    except (KeyError, TypeError, ValueError):
        raise DescriptionError("no module") from None
    make: Callable[..., Any] | None = module_type or MODULES.get(name)
    if not isinstance(make, type | None):
        raise InputError(f"module_type is of type {type(make).__name__}; pass the class of the module.")
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
    """Shape, dtype and a place on the first device for each array that `meta` describes, in nested dicts.

    Raises:
      DescriptionError: it describes none.
    """
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
        raise DescriptionError(f"no arrays ({error})") from None
    return found


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


def check_image_shape(meta: dict[str, Any], path: str | Path) -> None:
    """Refuse an `image_shape` that is none, or of images so large that a batch of them fits nowhere."""
    shape = meta.get("image_shape", [1, 1, 1])
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    if not whole or math.prod(shape) > MAX_NUMBERS:
        raise InputError(
            f"{path} is unusable: its image_shape is {shape!r:.60}, not three whole numbers of at least 1 with a "
            f"product of at most {MAX_NUMBERS}; take another checkpoint."
        )
