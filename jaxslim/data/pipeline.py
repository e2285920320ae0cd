"""Batches of a stream, decoded by grain ahead of their use, in processes or threads. Nothing here imports JAX."""

import atexit
import contextlib
import gc
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any
from weakref import WeakSet

import numpy as np

from jaxslim.data import worker
from jaxslim.data.streams import Asked, Part, Streamed
from jaxslim.errors import InputError
from jaxslim.machine import cores

CHUNK_BYTES = 2**20
"""Images that go from one process to another at once take about so much."""
AHEAD = 6
"""Chunks that a worker decodes ahead of the training, at most."""
SMALL = 2**12
"""Bytes below which arrays are not shared but sent through a pipe, in one piece: nobody waits for a killed worker."""
MOST_THREADS, MOST_WORKERS = 16, 8
PROFILING = "grain_enable_multiprocess_worker_profiling"
TERMINATED = re.compile(r"terminated unexpectedly with exit code -(\d+)")
"""What grain says of a worker that a signal ended."""


def stream(
    images: Streamed, asked: Callable[[int], Asked], start: int, count: int, workers: int | None
) -> Generator[Part]:
    """Decode the batches `start`, `start + 1`, ... in order, ahead of their use.

    Args:
      images: what is decoded.
      asked: what a batch holds, by its number; it travels to the workers, and decides everything that is random.
      start: number of the first batch.
      count: how many batches.
      workers: processes; 0 decodes in threads of this one, None takes half of the cores, but at most 8.

    Raises:
      InputError: a worker was killed.
    """
    found = _stream(images, asked, start, count, workers)
    _RUNNING.add(found)
    return found


_RUNNING: WeakSet[Generator[Part]] = WeakSet()


@atexit.register
def _end() -> None:
    """End the workers of streams that nobody has closed, while Python can still do so."""
    for found in list(_RUNNING):
        found.close()


def _stream(
    images: Streamed, asked: Callable[[int], Asked], start: int, count: int, workers: int | None
) -> Generator[Part]:
    import grain
    from absl import flags

    if PROFILING in flags.FLAGS:
        flags.FLAGS[PROFILING].present = True  # grain asks for it, and fails where no app of absl has read its flags
    number = len(asked(start).numbers) if count else 0
    size = number * math.prod(images.shape[1:])
    each = max(1, min(number, math.ceil(size / CHUNK_BYTES)))
    workers = default_workers() if workers is None else workers
    workers = min(workers, count * each, _shared_memory() * each // max(1, AHEAD * size))
    chunks: Any = grain.MapDataset.source(_Chunks(images, asked, start, count, each))
    if workers:
        chunks = chunks.repeat()  # at the end of its chunks, a worker takes half a second to close, and leaves some
    threads = 0 if workers else min(cores(), MOST_THREADS)
    read = chunks.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        options = grain.experimental.DatasetOptions(min_shm_size=SMALL)
        read = grain.experimental.WithOptionsIterDataset(read, options)
        processes = grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        read = read.mp_prefetch(processes, worker_init_fn=worker.watch)
    found, failure = iter(read), ""
    try:
        yield from _joined(found, count, each, workers)
    except RuntimeError as error:
        if not (killed := TERMINATED.search(str(error))):
            raise
        failure = _killed(int(killed[1]))
    finally:
        with contextlib.suppress(Exception), worker.lean():
            found.get_state()  # makes grain know of all its processes, which it then ends
        if hasattr(found, "close"):
            found.close()
    if failure:
        gc.collect()  # what is in the frames of the failure holds shared memory
        raise InputError(failure)


class _Chunks:
    """The batches of a stream in `each` chunks of images, by number, for grain."""

    def __init__(self, images: Streamed, asked: Callable[[int], Asked], start: int, count: int, each: int) -> None:
        self._images, self._asked, self._start, self._count, self._each = images, asked, start, count, each

    def __len__(self) -> int:
        return self._count * self._each

    def __getitem__(self, number: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch, place = divmod(int(number), self._each)
        numbers, seeds = self._asked(self._start + batch)
        part = np.array_split(np.arange(len(numbers)), self._each)[place]
        rngs = [None if seeds is None else np.random.default_rng(seeds[row].tolist()) for row in part]
        read = [self._images.read(int(numbers[row]), rng) for row, rng in zip(part, rngs, strict=True)]
        images, rows, faults = zip(*read, strict=True)
        return np.stack(images), np.array(rows), np.array(faults)


def _joined(found: Iterator[Any], count: int, each: int, workers: int) -> Iterator[Part]:
    """Batches of `each` chunks. Each chunk is copied at once, since what a worker shares is little."""

    def own() -> tuple[np.ndarray, ...]:
        return tuple(map(np.array, next(found)))

    with worker.lean():
        ready = [own() for _ in range(workers)]  # by the first chunk of each, all processes run
    for _ in range(count):
        parts = [ready.pop(0) if ready else own() for _ in range(each)]
        yield Part(*map(np.concatenate, zip(*parts, strict=True)))


def _killed(number: int) -> str:
    name = signal.Signals(number).name
    if name == "SIGBUS":
        return "The memory that processes share is full; make /dev/shm larger, or use fewer --workers."
    if name == "SIGKILL":
        killed = "A process that decodes images was killed, as systems do when the memory runs out"
        return f"{killed}; use fewer --workers."
    return f"A process that decodes images was ended by {name}; --workers 0 decodes in the training process itself."


def _shared_memory() -> int:
    """Bytes that are free for what processes share; containers often have little, and writing more kills a process."""
    with contextlib.suppress(OSError, AttributeError):
        free = os.statvfs("/dev/shm")
        return free.f_bavail * free.f_frsize
    return sys.maxsize


def default_workers() -> int:
    """Half of the cores, since training needs some itself, but at most 8."""
    return min(MOST_WORKERS, max(1, cores() // 2))
