"""The machine that an experiment ran on."""

import contextlib
import platform
from importlib import metadata

import jax

from jaxslim.machine import cores


def machine() -> dict[str, str]:
    """Hardware and versions, for the notes of a report."""
    device = jax.devices()[0]
    many = f"{jax.device_count()} x {device.device_kind}"
    hardware = many if device.platform != "cpu" else f"{cores()} {_processor()}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jaxslim", "jax", "flax", "optax"))
    return {"hardware": hardware, "versions": f"{versions}, Python {platform.python_version()}"}


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return f"cores of {line.partition(':')[2].strip()}"
    return "CPU cores"
