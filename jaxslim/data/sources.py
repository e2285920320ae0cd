"""What the sources of images share: the data set they give, its limits, resizing, and their errors."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxslim.errors import InputError, first_line
from jaxslim.files import cache_folder

Split = tuple[Any, np.ndarray]  # images, labels

MAX_BYTES = 64 * 2**30
MAX_CLASSES = 2**16
CROPPED = 224 / 256
"""Share of the shorter side that `Form.crop` keeps."""

log = logging.getLogger(__name__)


class Dataset(NamedTuple):
    """Images and labels of a classification task, decoded and in host memory."""

    name: str
    train_images: Any
    """uint8 (n, height, width, channels): an array, or what decodes them when their turn comes, a `Streamed`"""
    train_labels: np.ndarray
    """int32 (n,), each in [0, len(class_names))"""
    test_images: Any
    test_labels: np.ndarray
    class_names: tuple[str, ...]


class Form(NamedTuple):
    """What decoded images are like."""

    image_size: int
    """Height and width in pixels."""
    channels: int
    crop: bool = False
    """Whether the middle of a picture is taken, in place of the whole one stretched to a square."""
    skip_broken: bool = False
    """Whether broken pictures are left out, with a warning, in place of an error."""


class BrokenImage(InputError):
    """A picture is damaged, or no picture at all."""


class Source(NamedTuple):
    """A data set that was found but not decoded yet."""

    read: Callable[[Form], Dataset]
    identity: list | None
    """JSON that changes when the data changes; None where a cache would save no time."""
    pictures: int = 0
    """How many pictures there are, if they can be streamed."""
    stream: Callable[[Form, int | None], Dataset] | None = None
    """`stream(form, workers)` -> the set with `Streamed` images; None where it is decoded already, or too small."""


def stamp(path: str | os.PathLike) -> list:
    """Name, size in bytes and time of change of a file, which stand for its content.

    Anything but a file is an InputError, since reading a pipe could wait for ever.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"Cannot read {os.fspath(path)}: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{os.fspath(path)} is no regular file; replace or remove it.")
    return [os.fspath(path), found.st_size, found.st_mtime_ns]


@contextlib.contextmanager
def as_input_error(path: object, problem: str, fix: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Turn what a decoder raises about a damaged file, of whatever type, into a `kind`: `problem (cause); fix`.

    A failure of the system is no damage and keeps its name.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # A decoder's own errors have no number, and a damaged file can send it to a place that a file cannot have.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise InputError(f"Cannot read {path}: {error.strerror}.") from error
        raise kind(f"{problem} ({first_line(error)}); {fix}") from error


def assemble(where: object, train: Split, test: Split, class_names: Sequence[Any] | None = None) -> Dataset:
    """Join two splits of (uint8 images, integer labels); without `class_names`, a class is called by its number.

    Raises:
      InputError: a split is empty, or a label lies outside the classes.
    """
    last = (len(class_names) if class_names else MAX_CLASSES) - 1
    for split, (_, labels) in (("train", train), ("test", test)):
        if not labels.size:
            raise InputError(f"{where} has no images in its {split} split; training needs at least one in each.")
        low, high = labels.min(), labels.max()
        if low < 0 or high > last:
            raise InputError(f"{where} has {split} labels from {low} to {high}; number the classes from 0 to {last}.")
    train_labels, test_labels = train[1].astype(np.int32), test[1].astype(np.int32)
    names = class_names or range(1 + max(train_labels.max(), test_labels.max()))
    return Dataset(str(where), train[0], train_labels, test[0], test_labels, tuple(map(str, names)))


def decoded_bytes(count: int, form: Form) -> int:
    """What `count` decoded images take."""
    return count * form.image_size**2 * form.channels


def allocate(count: int, form: Form) -> np.ndarray:
    """Room for `count` decoded images: uint8 (count, image_size, image_size, channels)."""
    if (needed := decoded_bytes(count, form)) > MAX_BYTES:
        size = f"{form.image_size}x{form.image_size}x{form.channels}"
        raise InputError(f"{count} images of {size} bytes take {needed / 2**30:.0f} GiB of memory; lower image_size.")
    return np.empty((count, form.image_size, form.image_size, form.channels), np.uint8)


def fit(images: np.ndarray, form: Form) -> np.ndarray:
    """Images (n, h, w, 1 | 3 | 4), each as `fit_one` makes it: uint8 (n, image_size, image_size, channels)."""
    if images.shape[1:] == (form.image_size, form.image_size, form.channels):
        return np.ascontiguousarray(images)
    out = allocate(len(images), form)
    for target, image in zip(out, images, strict=True):
        target[...] = fit_one(image, form)
    return out


def fit_one(image: Any, form: Form) -> np.ndarray:
    """Pillow image or uint8 (h, w, 1 | 3 | 4) -> uint8 (image_size, image_size, channels).

    Resizing is bilinear, grey is luminance, transparent is black. With `form.crop`, the shorter side of a picture that
    has not the size yet becomes 256 / 224 of the size, and the middle is taken, as networks for ImageNet are tested.
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a channel, whose range is unknown")
    if image.mode.startswith("I;16"):  # Pillow itself would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    size, (width, height) = form.image_size, image.size
    image = image.convert("L" if form.channels == 1 else "RGB")
    if image.size != (size, size):
        side = min(width, height) * CROPPED
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box if form.crop else None)
    return np.asarray(image).reshape(size, size, form.channels)


def cache_file(identity: list, ending: str) -> Path:
    """Where what was read of a data set is kept; `identity` is JSON that changes when the data changes."""
    return cache_folder() / "data" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}{ending}"


def track(steps: Sequence[Any], what: str) -> Iterator[Any]:
    """Yield `steps`, behind a progress bar on a terminal and after one log line elsewhere."""
    if sys.stderr.isatty():
        from rich import console, markup, progress

        yield from progress.track(steps, markup.escape(what), console=console.Console(stderr=True), transient=True)
    else:
        log.info(what)
        yield from steps
