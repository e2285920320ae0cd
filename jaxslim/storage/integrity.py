"""Checksums of a checkpoint's files and of its arrays: orbax restores flipped bits without a word."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxslim.files import write_whole

CHECKSUMS = "checksums.json"
_MOST = 1 << 26  # bytes of that file


def seal(path: Path) -> None:
    """Write down the checksum of each file of a checkpoint that is written."""
    sums = {name: _checksum(path / name) for name in _files(path)}
    write_whole(path / CHECKSUMS, json.dumps(sums, indent=1) + "\n")


def damage(path: Path, *items: str) -> str | None:
    """What is wrong with the files of a checkpoint, or of some of its items, by their checksums; None if nothing is."""
    if not path.is_dir():
        return "it is no folder"
    if link := next((file for file in path.rglob("*") if file.is_symlink()), None):
        return f"its file {link.relative_to(path).as_posix()} is a symbolic link"
    file = path / CHECKSUMS
    if not file.is_file():
        return f"its {CHECKSUMS} is missing"
    try:
        sums = json.loads(file.read_bytes()) if file.stat().st_size <= _MOST else None
    except (ValueError, RecursionError):
        return f"its {CHECKSUMS} cannot be read"
    if not isinstance(sums, dict):
        return f"its {CHECKSUMS} holds no checksums"
    there = _files(path)
    for name, value in sums.items():
        item, _, inner = name.partition("/")
        if (not items or item in items or not inner) and (name not in there or _checksum(path / name) != value):
            return f"its file {name} is missing or changed"
    if added := next((name for name in there if name not in sums), None):
        return f"its file {added} is not one of its checksums"
    return None


def _files(path: Path) -> list[str]:
    """Names of the files of a checkpoint that have checksums."""
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in names if name != CHECKSUMS)


def _checksum(file: Path) -> int:
    total = 0
    with file.open("rb") as stream:
        while part := stream.read(1 << 24):  # a damaged file may have any size
            total = zlib.crc32(part, total)
    return total


def digest(variables: Any) -> str:
    """SHA-256 over the paths, types, shapes and values of nested dicts of arrays."""
    total = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_flatten_with_path(variables)[0], key=lambda item: str(item[0])):
        array = np.ascontiguousarray(jax.device_get(leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
