"""Files that appear whole or not at all, and where the cached ones lie."""

import contextlib
import errno
import fcntl
import os
import platform
import uuid
from collections.abc import Iterator
from pathlib import Path

from jaxslim.errors import InputError

UNFINISHED = ".unfinished-"
"""How the names of files and folders start that are being written or deleted."""


def cache_folder() -> Path:
    """Where jaxslim keeps what it can make again: `$XDG_CACHE_HOME/jaxslim`, else `~/.cache/jaxslim`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "jaxslim"


def check_path(path: str | Path) -> None:
    """Refuse what is no path, is not UTF-8 or holds a zero byte: orbax would stop with half of a checkpoint written."""
    if not isinstance(path, str | Path):
        raise InputError(f"The path is of type {type(path).__name__}; pass a str or a Path.")
    path = str(path)
    if "\0" in path or any("\ud800" <= sign <= "\udfff" for sign in path):
        raise InputError(f"The path {path!r} is not valid UTF-8; choose another name.")


def flush(*paths: Path) -> None:
    """Have the disk take the content of files and the entries of folders, so that they outlive a loss of power."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot
                raise
        finally:
            os.close(number)


def nearest(path: Path) -> Path:
    """The path itself, or the first of its parents that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def check_out(out: Path) -> None:
    """Refuse an `--out` that cannot become a folder or be written to, before the work.

    Raises:
      InputError: a file is in its place, or it may not be written to.
    """
    there = nearest(out)
    if not there.is_dir():
        raise InputError(f"{out} cannot be a folder, since a file is in its place; choose another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} cannot be written to; choose another --out.")


def set_aside(path: Path) -> Path:
    """Rename what is damaged to a name of its own that ends in `.damaged`, and give that."""
    return path.rename(path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.damaged"))


LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, option: str = "--workdir") -> Iterator[None]:
    """Make `folder`, which `option` names, and keep other processes out; the lock ends with this process in any case.

    Raises:
      InputError: another process is in there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            raise InputError(f"{folder} is in use by {owner}; wait for it, or choose another {option}.") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which then replaces `path` in one step; a reader or a crash sees the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write `content` to `path`, making its folder, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
