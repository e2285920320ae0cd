"""Memory that a process frees and needs again at once."""

import ctypes
import functools
import sys

import jax

# Of glibc's mallopt: one arena, no blocks mapped apart, nothing given back. A program of JAX takes all its memory for
# intermediate results at once, on any thread. By default glibc gives blocks of that size back to the system after each
# call, and each page comes back as a fault: 130,000 of them, 250 ms of two cores, in one training step of VGG-19 with
# batch 64. Other arenas than the first cannot hold such blocks.
_KEEP = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
# A hole that such a block leaves in the arena is soon too small for the next by some bytes, so that the arena grows by
# another block. For blocks of a gigabyte that costs more than the faults do.
_GIVE_BACK = {"M_MMAP_MAX": (-4, 65536), "M_MMAP_THRESHOLD": (-3, 1 << 25), "M_TRIM_THRESHOLD": (-1, 1 << 27)}


_IN_PLACE: dict[str, str | bool] = {
    "xla_cpu_copy_insertion_use_region_analysis": True,
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}


@functools.cache
def in_place() -> dict[str, str | bool] | None:
    """Options of XLA with which a training step on a CPU updates parameters in place, and holds least at a time.

    Without them, XLA first copies each kernel that is to be updated, since the backward pass may still read it. None
    where this version of XLA has other options.
    """
    try:
        jax.jit(lambda: 0, compiler_options=_IN_PLACE).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _IN_PLACE


def keep_memory(keep: bool = True) -> None:
    """Let this process keep the memory that it frees, if the C library is glibc and no other threads run yet.

    With `keep=False` it gives large blocks back again.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda setting, value: None)
        for setting, value in (_KEEP if keep else _GIVE_BACK).values():
            mallopt(setting, value)


def give_back() -> None:
    """Give memory that this process has freed, in small blocks too, back to the system, if the C library is glibc."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
