"""Memory that a process frees and needs again at once."""

import ctypes

# Of glibc's mallopt. A program of JAX takes all its memory for intermediate results at once, on any thread. By default
# glibc gives blocks of that size back to the system after each call, and each page comes back as a fault: 130,000 of
# them, 250 ms of two cores, in one training step of VGG-19 with batch 64. Only one arena can hold such blocks.
_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_TRIM_THRESHOLD": (-1, 2**30), "M_MMAP_THRESHOLD": (-3, 2**30)}


def keep_memory() -> None:
    """Let this process keep up to 1 GiB that it frees. It must not run threads yet; nothing happens without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if hasattr(ctypes, "CDLL") else None
    for setting, value in _SETTINGS.values():
        if mallopt is not None:
            mallopt(setting, value)
