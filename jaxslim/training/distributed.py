"""Several processes that train one network together, on `jax.distributed`."""

import contextlib
import os
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxslim.errors import DivergedError, InputError, StoppedError

HEARTBEAT = 60
"""Seconds without a sign of life after which JAX counts a process as lost and ends the others."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe, if any.

    When a process is lost, JAX ends the others within two minutes, with a message that names the lost task.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        yield
        return
    number, index = (os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    port = re.fullmatch(r".+:(\d{1,5})", address)
    if not (port and int(port[1]) < 1 << 16 and number.isdecimal() and index.isdecimal() and int(index) < int(number)):
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}, JAX_NUM_PROCESSES {number!r} and JAX_PROCESS_ID {index!r}; give "
            "the host and port of process 0, the number of processes and the index of this one, from 0 on, for example "
            "localhost:12345, 2 and 0."
        )
    jax.distributed.initialize(
        address,
        int(number),
        int(index),
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=HEARTBEAT,
    )
    try:
        yield
    except (DivergedError, StoppedError):  # which all processes raise at the same step
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Wait until all processes wait for `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def largest(number: int) -> int:
    """The largest of the numbers that all processes give."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
