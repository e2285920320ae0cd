"""Checksums of a checkpoint's files and a digest of its arrays, since orbax restores flipped bits silently."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxslim.files import naming, write_whole

CHECKSUMS = "checksums.json"
MAX_CHECKSUM_BYTES = 1 << 26
"""Largest checksum file that is read."""


class DamageError(Exception):
    """What is wrong with a checkpoint's content; the message completes "PATH is damaged: "."""


def seal(path: Path) -> None:
    """Write the checksum of each file of a complete checkpoint."""
    sums = {name: _checksum(path / name) for name in _files(path, _entries(path))}
    write_whole(path / CHECKSUMS, json.dumps(sums, indent=1) + "\n")


def damage(path: Path, *items: str) -> str | None:
    """What differs between the files of a checkpoint and their checksums, or None.

    Given `items`, folders in it, only their files and those beside them are compared. A file that cannot be read is no
    damage and raises an OSError.
    """
    if not path.is_dir():
        return "it is no folder"
    entries = list(_entries(path))
    if link := next((entry for entry in entries if entry.is_symlink()), None):
        return f"its file {link.relative_to(path).as_posix()} is a symbolic link"
    file = path / CHECKSUMS
    if not file.is_file():
        return f"its {CHECKSUMS} is missing"
    try:
        sums = json.loads(file.read_bytes()) if file.stat().st_size <= MAX_CHECKSUM_BYTES else None
    except (ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict):
        return f"its {CHECKSUMS} holds no checksums"
    names = _files(path, entries)
    for name, value in sums.items():
        item, *inner = name.split("/")
        wanted = not items or not inner or item in items
        if wanted and (name not in names or _checksum(path / name) != value):
            return f"its file {name} is missing or changed"
    if added := next((name for name in names if name not in sums), None):
        return f"its file {added} is not one of its checksums"
    return None


def _entries(path: Path) -> Iterator[Path]:
    """Everything below a folder; a folder that cannot be read raises an OSError."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for folder, folders, files in os.walk(path, onerror=fail):
        yield from (Path(folder, name) for name in (*folders, *files))


def _files(path: Path, entries: Iterator[Path] | list[Path]) -> list[str]:
    """Names of the files that have checksums."""
    sealed = (entry for entry in entries if entry.is_file() and entry != path / CHECKSUMS)
    return sorted(entry.relative_to(path).as_posix() for entry in sealed)


def _checksum(file: Path) -> int:
    """CRC-32 of a file of any size."""
    total = 0
    with naming(file), file.open("rb") as stream:
        while part := stream.read(1 << 24):
            total = zlib.crc32(part, total)
    return total


def digest(variables: Any) -> str:
    """SHA-256 of the paths, dtypes, shapes and values of nested dicts of arrays."""
    total = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_flatten_with_path(variables)[0], key=lambda item: str(item[0])):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.ascontiguousarray(jax.device_get(jax.random.key_data(leaf) if is_key else leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
