"""How long a network takes on this device."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

ROUNDS = 20
"""Calls of each network that are timed."""
_Name = TypeVar("_Name")


class Spread(NamedTuple):
    """Seconds of a call."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""


def latency(apply: Callable[..., Any], variables: Any, *inputs: Any, runs: int = ROUNDS) -> float:
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


def compare(
    runs: Mapping[_Name, Callable[[], object]], rounds: Iterable[object] = range(ROUNDS)
) -> dict[_Name, Spread]:
    """Time calls that take turns, so that slow moments of the machine hit all of them alike.

    Each call is made once before the rounds, which compiles it. A turn is a call that does not count, after which the
    caches hold what it needs and the threads of the call before are at rest, and one that counts.

    Args:
      runs: functions that return once their results are there, by any name.
      rounds: one item for each turn of each function, at least one.

    Returns:
      Median and quartiles of the seconds of each.

    Example:
      >>> found = compare({"one": lambda: None, "two": lambda: None}, range(3))
      >>> sorted(found), found["one"].low <= found["one"].median <= found["one"].high
      (['one', 'two'], True)
    """
    times: dict[_Name, list[float]] = {name: [] for name in runs}
    for call in runs.values():
        call()
    for _ in rounds:
        for name, call in runs.items():
            call()
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: Spread(*map(float, np.quantile(own, (0.5, 0.25, 0.75)))) for name, own in times.items()}
