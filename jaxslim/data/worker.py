"""What a process that decodes images runs first, in place of the user's script; it stays small and ends in time."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import connection, spawn
from typing import Any

GRACE = 60
"""Seconds that a worker outlives a SIGTERM by, since its parent, which may have got one too, finishes a step first."""
PREFIX = "grain-process-prefetch"
"""How grain names its processes."""


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """Have the processes that grain starts in this context run this module first, and not the user's script.

    A script that trains at its top level would start to train again in each worker.
    """
    before = spawn.get_preparation_data

    def prepare(name: str) -> dict[str, Any]:
        data: dict[str, Any] = before(name)
        if name.startswith(PREFIX):
            data.pop("init_main_from_path", None)
            data["init_main_from_name"] = __name__
        return data

    spawn.get_preparation_data = prepare
    try:
        yield
    finally:
        spawn.get_preparation_data = before


def start() -> None:
    """Keep JAX out, which grain would load and which takes 140 MB, and leave Ctrl-C to the parent."""
    from absl import logging

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _outlive)
    logging.set_verbosity(logging.FATAL)  # grain misses JAX's profiler
    for name in ("jax", "orbax"):
        sys.modules[name] = None  # type: ignore[assignment]


def watch(*_: int) -> None:
    """End this process when its parent has ended, in whatever way."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _outlive(*_: Any) -> None:
    timer = threading.Timer(GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__mp_main__":
    start()
