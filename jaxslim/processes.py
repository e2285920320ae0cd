"""Several processes that train one network together: joining them, and what only the first does."""

import os

import jax
from jax.experimental import multihost_utils

from jaxslim.errors import InputError

HEARTBEAT = 60
"""Seconds after which JAX counts a silent process as lost and ends the others."""


def join() -> None:
    """Join the processes that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe, if they are set.

    Raises:
      InputError: only some of them are set, or they are no numbers.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        return
    try:
        number, index = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    except (KeyError, ValueError):
        number, index = 0, 0
    if not 0 <= index < number:
        raise InputError(
            "JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers too, the second "
            "below the first, for example 2 and 0."
        )
    jax.distributed.initialize(address, number, index, heartbeat_timeout_seconds=HEARTBEAT)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
