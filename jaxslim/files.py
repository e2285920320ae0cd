"""Files that appear whole or not at all."""

import os
import uuid
from pathlib import Path

from jaxslim.errors import InputError


def check_path(path: str) -> None:
    """Refuse a path that is not UTF-8 or holds a zero byte: orbax would stop with half of a checkpoint written."""
    if "\0" in path or any("\ud800" <= sign <= "\udfff" for sign in path):
        raise InputError(f"The path {path!r} is not valid UTF-8; choose another name.")


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write `content` to `path`, making its folder; a reader or a crash sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
