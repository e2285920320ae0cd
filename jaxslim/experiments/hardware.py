"""The machine that an experiment ran on, and the time that a network takes there."""

import contextlib
import os
import platform
import time
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def machine() -> dict[str, str]:
    """Hardware and versions, for the notes of a report."""
    device = jax.devices()[0]
    many = f"{jax.device_count()} x {device.device_kind}"
    hardware = many if device.platform != "cpu" else f"{cores()} {_processor()}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jaxslim", "jax", "flax", "optax"))
    return {"hardware": hardware, "versions": f"{versions}, Python {platform.python_version()}"}


def cores() -> int:
    """How many cores this process may use; the machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def latency(module: Any, variables: Any, shape: tuple[int, ...], runs: int = 20) -> float:
    """Median seconds of `runs` forward passes of a Linen module on images of `shape` (n, height, width, channels)."""
    apply, images = jax.jit(module.apply), jnp.zeros(shape)
    jax.block_until_ready(apply(variables, images))
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        jax.block_until_ready(apply(variables, images))
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return f"cores of {line.partition(':')[2].strip()}"
    return "CPU cores"
