"""How long a network takes on this device."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def latency(apply: Callable[..., Any], variables: Any, *inputs: Any, runs: int = 20) -> float:
    """Median seconds of one call of the compiled network, of `runs` calls after two that do not count.

    Args:
      apply: `apply(variables, *inputs)`.
      variables: pytree of arrays.
      *inputs: pytrees of arrays.
      runs: calls that are timed, each until its outputs are there.
    """
    call = jax.jit(apply)
    times = []
    for _ in range(runs + 2):
        started = time.perf_counter()
        jax.block_until_ready(call(variables, *inputs))
        times.append(time.perf_counter() - started)
    return float(np.median(times[2:]))
