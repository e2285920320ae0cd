"""What every source of images shares, and two of them: the built-in digits and folders of image files."""

import logging
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from jaxslim.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Split = tuple[np.ndarray, np.ndarray]  # images, labels

MAX_BYTES = 64 * 2**30
MAX_CLASSES = 2**16
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
TEST_FOLDERS = ("test", "val", "valid", "validation")

log = logging.getLogger(__name__)


class Dataset(NamedTuple):
    """Images and labels of a classification task, decoded and in host memory."""

    name: str
    train_images: np.ndarray
    """uint8 (n, height, width, channels)"""
    train_labels: np.ndarray
    """int32 (n,), each in [0, len(class_names))"""
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


class Source(NamedTuple):
    """A data set that was found but not decoded yet."""

    read: Callable[[int, int], Dataset]
    """read(image_size, channels)"""
    identity: list | None
    """What changes when the data does, as JSON; None where a cache would save no time."""


def stamp(path: str | os.PathLike) -> list:
    """Name, size in bytes and time of change of a file, which stand for its content.

    Raises:
      InputError: there is none, or it is a pipe, a device or a folder; reading a pipe could wait for ever.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"Cannot read {os.fspath(path)}: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{os.fspath(path)} is no regular file; replace or remove it.")
    return [os.fspath(path), found.st_size, found.st_mtime_ns]


def assemble(where: object, train: Split, test: Split, class_names: Sequence[str] | None = None) -> Dataset:
    """Join two splits of (uint8 images, integer labels); classes without names are called by their number.

    Raises:
      InputError: a split is empty, or a label lies outside the classes.
    """
    for split, (_, labels) in (("train", train), ("test", test)):
        if not labels.size:
            raise InputError(f"{where} has no images in its {split} split; training needs at least one in each.")
        classes = len(class_names) if class_names else MAX_CLASSES
        if labels.min() < 0 or labels.max() >= classes:
            raise InputError(
                f"{where} has {split} labels from {labels.min()} to {labels.max()}; "
                f"number the classes from 0 to at most {classes - 1}."
            )
    train_labels, test_labels = train[1].astype(np.int32), test[1].astype(np.int32)
    names = class_names or range(1 + max(train_labels.max(), test_labels.max()))
    return Dataset(str(where), train[0], train_labels, test[0], test_labels, tuple(map(str, names)))


def allocate(count: int, image_size: int, channels: int) -> np.ndarray:
    """Room for `count` decoded images: uint8 (count, image_size, image_size, channels)."""
    needed = count * image_size**2 * channels
    if needed > MAX_BYTES:
        raise InputError(
            f"{count} images of {image_size}x{image_size}x{channels} bytes take {needed / 2**30:.0f} GiB, "
            f"more than the {MAX_BYTES // 2**30} GiB allowed; lower image_size."
        )
    return np.empty((count, image_size, image_size, channels), np.uint8)


def fit(images: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write uint8 `images` (n, h, w, 1 | 3 | 4) into `out` (n, size, size, 1 | 3), resized and recoloured as needed."""
    from PIL import Image

    if images.shape == out.shape:
        out[...] = images
        return out
    for pixels, target in zip(images, out, strict=True):
        target[...] = _fit_one(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), *out.shape[2:])
    return out


def _fit_one(image: "Image", image_size: int, channels: int) -> np.ndarray:
    """Pillow image -> uint8 (image_size, image_size, channels): bilinear, grey by luminance, transparent is black."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits: Pillow itself would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image_size, image_size, channels)


def track(steps: Sequence[T], what: str) -> Iterator[T]:
    """Yield `steps` behind a progress bar on a terminal, after one log line elsewhere."""
    if sys.stderr.isatty():
        from rich import console, markup, progress

        yield from progress.track(steps, markup.escape(what), console=console.Console(stderr=True), transient=True)
    else:
        log.info(what)
        yield from steps


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; a fixed fifth of every class is the test set."""

    def read(image_size: int, channels: int) -> Dataset:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        bunch = load_digits()
        images = fit(
            np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None],
            allocate(len(bunch.images), image_size, channels),
        )
        train, test = train_test_split(
            np.arange(len(images)), test_size=0.2, random_state=0, stratify=bunch.target, shuffle=True
        )
        return assemble("digits", (images[train], bunch.target[train]), (images[test], bunch.target[test]))

    return Source(read, None)


def folder(root: Path) -> Source:
    """Files `root/SPLIT/CLASS/*.png` (.jpg, .jpeg), splits train and test (val, valid, validation), classes by name.

    Other files, and names that start with a dot, are ignored. A symbolic link may not lead out of `root`.
    """
    home = Path(os.path.realpath(root))
    folders = {entry.name: entry.path for entry in _entries(root, home) if entry.is_dir()}
    test_name = next((name for name in TEST_FOLDERS if name in folders), None)
    if "train" not in folders or test_name is None:
        raise InputError(
            f"{root} has no folder {'test (or val, valid, validation)' if 'train' in folders else 'train'}; "
            "lay images out as train/CLASS/*.png and test/CLASS/*.png (also .jpg, .jpeg)."
        )
    train, test = (_classes(folders[split], home) for split in ("train", test_name))
    if odd := sorted(train.keys() ^ test.keys()):
        split, other = ("train", test_name) if odd[0] in train else (test_name, "train")
        raise InputError(f"{root}: class {odd[0]} is in {split} but not in {other}; both need the same class folders.")

    def read(image_size: int, channels: int) -> Dataset:
        splits = [_decode_files(list(split.values()), image_size, channels) for split in (train, test)]
        return assemble(root, splits[0], splits[1], list(train))

    return Source(read, ["folder", str(home), [stamp(f) for split in (train, test) for c in split.values() for f in c]])


def _entries(path: str | Path, home: Path) -> list[os.DirEntry]:
    """What a folder holds, in order of name, without hidden files."""
    try:
        entries = sorted((e for e in os.scandir(path) if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"Cannot read the folder {path}: {error.strerror}.") from error
    for entry in entries:
        if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(home):
            raise InputError(f"{entry.path} is a symbolic link that leads out of {home}; put a copy there instead.")
    return entries


def _classes(split: str, home: Path) -> dict[str, list[str]]:
    """Image files of each class folder of a split."""
    classes = {}
    for entry in _entries(split, home):
        if entry.is_dir():
            files = [
                e for e in _entries(entry.path, home) if e.name.lower().endswith(IMAGE_SUFFIXES) and not e.is_dir()
            ]
            classes[entry.name] = [file.path for file in files]
            if not files:
                raise InputError(f"The class folder {entry.path} has no .png, .jpg or .jpeg; add images or remove it.")
    if not classes:
        raise InputError(f"{split} has no class folders; put each image into a folder named after its class.")
    return classes


def _decode_files(classes: list[list[str]], image_size: int, channels: int) -> Split:
    """Images (n, image_size, image_size, channels) of files listed by class, and their labels."""
    from PIL import Image, ImageOps

    files = [file for names in classes for file in names]
    images = allocate(len(files), image_size, channels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for target, file in zip(images, track(files, f"Decoding {len(files)} images"), strict=True):
            try:
                with Image.open(file, formats=("PNG", "JPEG")) as image:
                    target[...] = _fit_one(ImageOps.exif_transpose(image), image_size, channels)
            except Exception as error:  # a damaged file makes Pillow raise one of many unrelated types
                raise InputError(f"Cannot decode the image {file}: {error}. Replace or remove it.") from error
    return images, np.repeat(np.arange(len(classes)), [len(names) for names in classes])
