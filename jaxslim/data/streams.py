"""Sets of pictures that do not fit into memory: each is decoded when its turn comes. Nothing here imports JAX."""

import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxslim.data.sources import BrokenImage, Form, fit_one
from jaxslim.errors import InputError

AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Of a random-resized crop (Szegedy et al., CVPR 2015): its share of the picture, its width by its height."""
ORIENTATION = 0x0112  # of EXIF; above 4 the picture lies on its side
Crop = tuple[int, int, int, int]  # left, top, right, bottom


class Pictures(Protocol):
    """Where pictures come from; it travels to worker processes."""

    turned: bool
    """Whether what the EXIF data of cameras say turns pictures."""

    def __len__(self) -> int:
        """How many there are."""

    def open(self, number: int) -> Any:
        """A Pillow image, not decoded yet; a BrokenImage that names it if it is none."""

    def broken(self, number: int) -> AbstractContextManager[None]:
        """Turns what a decoder raises into a BrokenImage that names the picture."""


class Streamed:
    """Pictures in place of an array of images: decoded when they are asked for, as uint8 (size, size, channels)."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self, pictures: Pictures, form: Form, rows: np.ndarray | None = None, workers: int | None = None
    ) -> None:
        self._pictures, self.form, self.workers = pictures, form, workers
        self._rows = np.arange(len(pictures)) if rows is None else rows
        self.shape = (len(self._rows), form.image_size, form.image_size, form.channels)
        """As of an array."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> "Streamed":
        """Some of them."""
        return Streamed(self._pictures, self.form, self._rows[rows], self.workers)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, decoded."""
        images = [self._decoded(int(row), None) for row in self._rows]
        return np.stack(images) if images else np.empty(self.shape, np.uint8)

    def read(self, number: int, rng: np.random.Generator | None) -> tuple[np.ndarray, int, str]:
        """Decode one; with `rng`, a random-resized crop of it. Faults are told, since processes pass them on.

        Returns:
          The image, the number of the picture that it is of, and what was wrong. In place of a broken picture comes the
          next whole one, if broken ones are to be skipped; otherwise the number is -1, as after any other failure.
        """
        fault = ""
        try:
            for place in range(number, number + len(self)):
                place %= len(self)
                try:
                    return self._decoded(int(self._rows[place]), rng), place, fault
                except BrokenImage as error:
                    if not self.form.skip_broken:
                        raise BrokenImage(f"{error} --skip-broken leaves such pictures out.") from error
                    fault = fault or str(error)
            raise InputError(f"None of {len(self):,} pictures can be decoded; the first says: {fault}")
        except InputError as error:
            return np.zeros(self.shape[1:], np.uint8), -1, str(error)

    def _decoded(self, number: int, rng: np.random.Generator | None) -> np.ndarray:
        with self._pictures.open(number) as picture, self._pictures.broken(number):
            turned = self._pictures.turned
            size = picture.size[::-1] if turned and picture.getexif().get(ORIENTATION, 1) > 4 else picture.size
            box = (0, 0, *size) if rng is None else random_crop(size, rng)
            share = min(box[2] - box[0], box[3] - box[1]) / min(size)
            small = _drafted(picture, share, self.form.image_size, turned)
            if rng is None:
                return fit_one(small, self.form)
            scale = small.size[0] / size[0], small.size[1] / size[1]
            left, top, right, bottom = (round(edge * scale[place % 2]) for place, edge in enumerate(box))
            part = small.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
            return fit_one(part, self.form._replace(crop=False))


def _drafted(picture: Any, share: float, size: int, turned: bool) -> Any:
    """A JPEG in a smaller size that its decoder gives for less work, with twice the pixels needed; turned as asked."""
    from PIL import ImageOps

    needed = math.ceil(2 * size / share)
    picture.draft(None, (needed, needed))
    return ImageOps.exif_transpose(picture) if turned else picture


def random_crop(size: tuple[int, int], rng: np.random.Generator) -> Crop:
    """A random part of a picture of `size` (width, height), by area and aspect ratio; else its largest middle part."""
    width, height = size
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * ASPECT[1]))), min(height, max(1, round(width / ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Part(NamedTuple):
    """What one process decodes of a batch."""

    images: np.ndarray
    """uint8 (n, size, size, channels)"""
    numbers: np.ndarray
    """int (n,): which pictures these are; another than was asked for in place of a broken one, -1 after a failure."""
    faults: np.ndarray
    """str (n,): what was wrong with broken ones; mostly empty."""


class Asked(NamedTuple):
    """What a batch is to hold."""

    numbers: np.ndarray
    """int (n,): pictures."""
    seeds: np.ndarray | None = None
    """int (n, 3): of each random-resized crop; None for whole pictures."""
