"""Batches of images on a mesh of devices."""

import logging
import math
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxslim.data.order import Order, Rows, order
from jaxslim.data.pipeline import stream
from jaxslim.data.streams import Part, Streamed
from jaxslim.errors import InputError

log = logging.getLogger(__name__)

STEPS_PER_CALL = 128
"""Most training steps in one call on accelerators. A signal that asks a run to stop waits for the call to end."""


class Batch(NamedTuple):
    """What one call of a step takes, all of it on the devices."""

    images: Any
    """uint8 (n, height, width, channels): the whole set; without `rows`, the images of one step, split over the
    devices."""
    labels: Any
    """int (n,); -1 for an image that does not count."""
    rows: Any = None
    """int32 (steps, batch): which images each step takes. The batch axis is split over the devices."""

    @property
    def steps(self) -> int:
        """How many steps it is for."""
        return 1 if self.rows is None else len(self.rows)

    def step(self, rows: Any = None) -> tuple[Any, Any]:
        """Images and labels of the step that takes `rows`."""
        return (self.images, self.labels) if rows is None else (self.images[rows], self.labels[rows])


class Feed(Protocol):
    """Where training batches come from."""

    steps_per_epoch: int

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 1 on) after the first `skip` steps; the same ones for the same arguments."""

    def pick(self, rows: np.ndarray) -> Iterator[Batch]:
        """The images at the indices `rows` (steps, batch), one step a batch."""

    def close(self) -> None:
        """End what works for it."""


def feed(
    mesh: Mesh,
    images: Any,
    labels: np.ndarray,
    batch_size: int = 1,
    seed: int = 0,
    *,
    epochs: int = 1,
    crop: bool = False,
) -> Feed:
    """The feed for images in memory, or for a `Streamed`.

    Of a stream, `epochs` says where reading ahead ends, and `crop` asks for random-resized crops.
    """
    if isinstance(images, Streamed):
        return Streaming(mesh, images, labels, batch_size, seed, epochs, crop)
    return InMemory(mesh, images, labels, batch_size, seed)


class InMemory:
    """Batches of a set of images that lies in host memory.

    The whole set is copied to every device once, as it is, and steps pick from it. A set that would take more than a
    quarter of the memory that is free there stays on the host, and each batch is sent when its turn comes; the numbers
    are the same. On accelerators one call takes up to `STEPS_PER_CALL` steps, which keeps the host out of the way. On
    CPUs a call takes one step: XLA runs the gradient of a convolution 30 to 60 times slower in a loop there.

    Images are uint8 (n, h, w, c) and labels int (n,); a step takes `batch_size` images, over all devices together.
    """

    def __init__(self, mesh: Mesh, images: np.ndarray, labels: np.ndarray, batch_size: int = 1, seed: int = 0) -> None:
        self.steps_per_epoch = len(labels) // batch_size
        self._mesh, self._set, self._batch_size, self._seed = mesh, (images, labels), batch_size, seed
        self._everywhere, self._split = shardings(mesh)
        size, free = images.nbytes + labels.nbytes, _free_memory(mesh)
        self._on_host = size > free / 4
        if self._on_host:
            log.info(
                "The %s images (%.2f GB) are too large for the device (%.2f GB free); batches come from the host.",
                *(len(labels), size / 1e9, free / 1e9),
            )
        else:
            self._set = place(self._set, self._everywhere)

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """See `Feed`."""
        rows = order(self._seed, epoch, len(self._set[1]), self._batch_size)[skip:]
        return self._of(rows, _calls(rows) if _looped(self._mesh) else rows[:, None])

    def pick(self, rows: np.ndarray) -> Iterator[Batch]:
        """See `Feed`."""
        return self._of(rows, rows[:, None])

    def _of(self, rows: np.ndarray, calls: Iterable[np.ndarray]) -> Iterator[Batch]:
        """The images at the indices `rows` (steps, batch), in these calls if the set lies on the devices."""
        images, labels = self._set
        if self._on_host:
            for row in rows:
                yield Batch(*place((images[row], labels[row]), self._split))
        else:
            split = NamedSharding(self._mesh, PartitionSpec(None, "data"))
            for part in calls:
                yield Batch(images, labels, place(part, split))

    def close(self) -> None:
        """See `Feed`."""


class Streaming:
    """Batches of pictures that are decoded when their turn comes.

    Which pictures a batch holds, and how they are cropped, depends on the seed, the epoch and the step alone. So the
    step in a checkpoint is all that it takes to go on. Each process decodes what its own devices see. Training decodes
    in worker processes, which go on from epoch to epoch; `pick` decodes in threads.
    """

    def __init__(
        self, mesh: Mesh, images: Streamed, labels: np.ndarray, batch_size: int, seed: int, epochs: int, crop: bool
    ) -> None:
        self.steps_per_epoch = len(labels) // batch_size
        self._images, self._labels, self._batch_size, self._seed, self._crop = images, labels, batch_size, seed, crop
        self._steps = epochs * self.steps_per_epoch
        _, self._split = shardings(mesh)
        self._running: tuple[int, Iterator[Part]] = 0, iter(())
        self._told: set[str] = set()

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """See `Feed`."""
        first = (epoch - 1) * self.steps_per_epoch + skip
        expected, parts = self._running
        if first != expected or not first:
            self.close()
            mine = _share(self._split, self._batch_size)
            asked = Order(self._seed, len(self._labels), self._batch_size, mine, self._crop)
            parts = stream(self._images, asked, first, self._steps - first, self._images.workers)
        for number in range(first, epoch * self.steps_per_epoch):
            part = next(parts)
            self._running = number + 1, parts
            check(part, self._told)
            yield self._placed(part.images, self._labels[part.numbers], self._batch_size)

    def pick(self, rows: np.ndarray) -> Iterator[Batch]:
        """See `Feed`. A broken picture that is to be skipped has the label -1."""
        mine = _share(self._split, rows.shape[1])
        for row, part in zip(rows, stream(self._images, Rows(rows[:, mine]), 0, len(rows), 0), strict=True):
            check(part, self._told)
            labels = np.where(part.numbers == row[mine], self._labels[part.numbers], -1)
            yield self._placed(part.images, labels.astype(self._labels.dtype), rows.shape[1])

    def close(self) -> None:
        """End the workers."""
        _, parts = self._running
        if isinstance(parts, Generator):
            parts.close()
        self._running = 0, iter(())

    def _placed(self, images: np.ndarray, labels: np.ndarray, size: int) -> Batch:
        def put(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_process_local_data(self._split, array, (size, *array.shape[1:]))

        return Batch(put(images), put(labels))


def sample(images: Any, labels: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels at the indices `rows` (steps, batch), on the host, step by step, as training sees them."""
    if isinstance(images, Streamed):
        told: set[str] = set()
        for part in stream(images, Rows(rows), 0, len(rows), 0):
            check(part, told)
            yield part.images, labels[part.numbers]
    else:
        for row in rows:
            yield images[row], labels[row]


def check(part: Part, told: set[str]) -> None:
    """Raise an InputError if a picture could not be read, and warn of those left out that were not `told` before."""
    if failed := part.faults[part.numbers < 0].tolist():
        raise InputError(failed[0])
    for fault in dict.fromkeys(filter(None, part.faults.tolist())):
        if fault not in told:
            told.add(fault)
            log.warning("Left out: %s", fault)


def _share(split: NamedSharding, size: int) -> np.ndarray:
    """Which places of a batch lie on the devices of this process, in order."""
    slices = split.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in slices]))


def check_batches(batch_size: int, epochs: int, count: int, mesh: Mesh) -> None:
    """Refuse a batch size that the devices cannot share or that the training set of `count` images cannot fill."""
    if batch_size % mesh.size:
        fit = max(batch_size // mesh.size, 1) * mesh.size
        raise InputError(f"A batch of {batch_size} cannot be split over {mesh.size} devices; use --batch-size {fit}.")
    if batch_size > count:
        raise InputError(f"A batch of {batch_size} is larger than the training set of {count}; use a smaller one.")
    if (total := epochs * (count // batch_size)) >= 2**31:
        raise InputError(f"{epochs} epochs take {total} steps, more than 2147483647; use fewer epochs.")


def device_mesh() -> Mesh:
    """All devices, of all processes, along one axis, `data`."""
    devices = jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Copies on every device, and the first axis split over them."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Put `tree` on the devices of `sharding`. Every process must pass the same values; each fills its own devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree)


def _calls(rows: np.ndarray) -> list[np.ndarray]:
    """Split `rows` into one part a call. Equal parts compile once, so up to twice as many parts as needed are made
    where those come out equal."""
    least = math.ceil(len(rows) / STEPS_PER_CALL)
    number = next((parts for parts in range(least, 2 * least) if parts and len(rows) % parts == 0), least)
    return np.array_split(rows, number) if number else []


def _looped(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform != "cpu"


def _free_memory(mesh: Mesh) -> float:
    """Bytes free on the device with the least; infinite where devices do not tell, as CPUs do not."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    return min(row["bytes_limit"] - row.get("bytes_in_use", 0) if "bytes_limit" in row else math.inf for row in stats)
