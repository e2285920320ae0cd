"""Memory that a process frees and needs again at once."""

import ctypes
import sys

# Of glibc's mallopt: one arena, no blocks mapped apart, nothing given back. A program of JAX takes all its memory for
# intermediate results at once, on any thread. By default glibc gives blocks of that size back to the system after each
# call, and each page comes back as a fault: 130,000 of them, 250 ms of two cores, in one training step of VGG-19 with
# batch 64. Other arenas than the first cannot hold such blocks.
_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def keep_memory() -> None:
    """Let this process keep the memory that it frees, if the C library is glibc and no other threads run yet."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda setting, value: None)
        for setting, value in _SETTINGS.values():
            mallopt(setting, value)
