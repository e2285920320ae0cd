"""Files that appear whole or not at all, locked folders, and the cache folder."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from jaxslim.errors import InputError

UNFINISHED = ".unfinished-"
"""Prefix of files and folders that are being written or deleted."""

LOCK = ".lock"
"""Name of the file by which a process claims a folder."""


def cache_folder() -> Path:
    """The folder for what jaxslim can make again: `$XDG_CACHE_HOME/jaxslim`, else `~/.cache/jaxslim`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "jaxslim"


def check_path(path: str | Path) -> None:
    """Refuse a path that orbax would write half a checkpoint to, and an empty one, which would mean this folder."""
    text = str(path)
    if not text or "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise InputError(f"The path {text!r} is {'not valid UTF-8' if text else 'empty'}; choose another name.")


def nearest(path: Path) -> Path:
    """The path itself, or the nearest of its parents that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def check_out(out: Path) -> None:
    """Refuse, before the work, an `--out` that cannot become a folder or be written to."""
    there = nearest(out)
    if not there.is_dir():
        raise InputError(f"{out} cannot be a folder, since a file is in its place; choose another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} cannot be written to; choose another --out.")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError name `path` if it names no file, as that of a read or a write, or one that users do not know."""
    try:
        yield
    except OSError as error:
        is_clear = error.filename and UNFINISHED not in str(error.filename)
        raise error if is_clear else OSError(error.errno, error.strerror, str(path)) from None


def flush(*paths: Path) -> None:
    """Wait until the content of files and the entries of folders are on the disk, to outlast a loss of power."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            with naming(path):
                os.fsync(number)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot flush
                raise
        finally:
            os.close(number)


def set_aside(path: Path) -> Path:
    """Rename something damaged to a new name that ends in `.damaged`, and return the new path."""
    return path.rename(path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.damaged"))


@contextlib.contextmanager
def locked(folder: Path, option: str = "--workdir") -> Iterator[None]:
    """Make a folder and keep other processes out of it; a folder that stays empty disappears again.

    The lock ends with this process in any case. If another process holds it, an InputError names `option`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    while not lock.is_locked:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            message = f"{folder} is in use by another process; wait for it, or choose another {option}."
            raise InputError(message) from None
        except FileNotFoundError:  # the process before has just removed its empty folder
            continue
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder is not empty, or gone
            if [*folder.iterdir()] == [folder / LOCK]:
                (folder / LOCK).unlink()  # before the release, so that the next process makes a new one
                for place in made:
                    place.rmdir()
        lock.release()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which then replaces `path` in one step; readers and crashes see the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        with naming(path):
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
