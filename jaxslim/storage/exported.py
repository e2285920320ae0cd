"""Exported networks: one file with the program, its arrays and what there is to say of them.

The file is an uncompressed zip archive of `meta.json`, `program.bin` (what `jax.export` serializes: StableHLO) and
`arrays/NUMBER`, the bytes of each array in C order.
"""

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxslim.errors import InputError, first_line
from jaxslim.files import write_whole
from jaxslim.storage.integrity import DamageError, digest
from jaxslim.storage.metadata import origin
from jaxslim.storage.programs import Program, key_impl, raw, wrapped
from jaxslim.storage.trees import build, layout_of

FORMAT = 1
"""Format of exported networks."""
_META, _PROGRAM, _ARRAYS = "meta.json", "program.bin", "arrays"


def write_exported(
    path: Path, program: bytes, described: Mapping[str, Any], variables: Any, meta: Mapping[str, Any]
) -> None:
    """Write an exported network to a file, whole or not at all.

    Args:
      path: of the file.
      program, described: what `programs.export` gave.
      variables: that the program takes: dicts, lists and tuples of arrays.
      meta: JSON values to keep along.
    """
    leaves = jax.tree.leaves(variables)
    arrays = [np.asarray(raw(leaf)) for leaf in leaves]
    stored = {
        "exported": FORMAT,
        "program": dict(described),
        "layout": layout_of(variables),
        "arrays": [[list(array.shape), array.dtype.name] for array in arrays],
        "keys": [key_impl(leaf) for leaf in leaves],
        **origin(_content(program, arrays)),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_META, json.dumps({**meta, **stored}, indent=1))
        archive.writestr(_PROGRAM, program)
        for number, array in enumerate(arrays):
            archive.writestr(f"{_ARRAYS}/{number}", np.ascontiguousarray(array).tobytes())
    write_whole(path, content.getvalue())


def read_exported(path: Path) -> tuple[Program, Any, dict[str, Any]]:
    """The program of an exported network, its variables and its meta.

    Raises:
      InputError: the file is of another kind, damaged, or of a newer JAX.
      OSError: it could not be read.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(4) == b"PK\3\4":
                raise InputError(f"{path} is damaged: its end is missing; copy or export it again.")
        onnx = "; onnxruntime runs ONNX files" if path.suffix == ".onnx" else ""
        raise InputError(
            f"{path} is neither a checkpoint nor a network that jaxslim exported{onnx}; give a folder that jaxslim "
            "train or prune made, or a file of jaxslim export."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except InputError:
        raise
    except (zipfile.BadZipFile, DamageError, LookupError, TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}; copy or export it again.") from None


def _read(path: Path, archive: zipfile.ZipFile) -> tuple[Program, Any, dict[str, Any]]:
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()) or _META not in sizes:
        raise InputError(f"{path} is no file of jaxslim export, but another zip archive; give one of jaxslim export.")
    meta = json.loads(archive.read(_META))
    if not isinstance(meta, dict) or "exported" not in meta:
        raise DamageError("its meta describes no exported network")
    if meta["exported"] != FORMAT:
        raise InputError(f"{path} was written by a newer jaxslim (format {meta['exported']!r:.20}); update jaxslim.")
    arrays = []
    for number, (shape, dtype) in enumerate(meta["arrays"]):
        kind = np.dtype(dtype)
        content = archive.read(f"{_ARRAYS}/{number}")
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * kind.itemsize != len(content):
            raise DamageError(f"its array {number} has not the size that its meta says")
        arrays.append(np.frombuffer(content, kind).reshape(shape))
    program = archive.read(_PROGRAM)
    if meta["digest"] != digest(_content(program, arrays)):
        raise DamageError("its program or its arrays are not those that were saved")
    leaves = [wrapped(jax.numpy.asarray(array), impl) for array, impl in zip(arrays, meta["keys"], strict=True)]
    variables = build(meta["layout"], leaves)
    return Program(program, meta["program"], meta["layout"], variables), variables, meta


def _content(program: bytes, arrays: Sequence[Any]) -> dict[str, Any]:
    """What the digest is of."""
    numbered = {str(number): array for number, array in enumerate(arrays)}
    return {"program": np.frombuffer(program, np.uint8), **numbered}
