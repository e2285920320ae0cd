"""Folders of image files: SPLIT/CLASS/FILE."""

import logging
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from jaxslim.data.sources import (
    BrokenImage,
    Dataset,
    Form,
    Source,
    Split,
    allocate,
    as_input_error,
    assemble,
    fit_one,
    stamp,
    track,
)
from jaxslim.data.streams import Streamed
from jaxslim.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
KINDS = ", ".join(SUFFIXES)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
TEST_FOLDERS = ("test", "val", "valid", "validation")

log = logging.getLogger(__name__)


def folder(root: Path) -> Source:
    """Images `root/SPLIT/CLASS/*`, with the splits train and test (or val, valid, validation) and classes by name.

    A file with several images counts as its first. A warning names what is skipped, except hidden files.

    Raises:
      InputError: a folder is missing or empty, or a symbolic link leads out of `root`.
    """
    home = Path(os.path.realpath(root))
    splits = {entry.name: entry.path for entry in _entries(root, home) if entry.is_dir()}
    test_name = next((name for name in TEST_FOLDERS if name in splits), None)
    if "train" not in splits or test_name is None:
        missing = "test (or val, valid, validation)" if "train" in splits else "train"
        advice = f"lay images out as train/CLASS/*.png and test/CLASS/*.png ({KINDS})."
        raise InputError(f"{root} has no folder {missing}; {advice}")
    (train, test), skipped, stray = zip(*[_scan(splits[name], home) for name in ("train", test_name)], strict=True)
    _warn(root, "files or folders in class folders that are no images", [*skipped[0], *skipped[1]])
    _warn(root, "images outside of class folders", [*stray[0], *stray[1]])
    if odd := sorted(train.keys() ^ test.keys()):
        there, missing = ("train", test_name) if odd[0] in train else (test_name, "train")
        raise InputError(f"{root}: class {odd[0]} is in {there} but not in {missing}; both need the same classes.")

    def read(form: Form) -> Dataset:
        decoded = [_decode(split, form) for split in (train, test)]
        return assemble(root, decoded[0], decoded[1], list(train))

    def stream(form: Form, workers: int | None) -> Dataset:
        def lazy(split: dict[str, list[str]]) -> Split:
            return Streamed(Files(str(root), _files(split)), form, workers=workers), _labels(split)

        return assemble(root, lazy(train), lazy(test), list(train))

    stamps = [stamp(file) for split in (train, test) for file in _files(split)]
    return Source(read, ["folder", str(home), stamps], len(stamps), stream)


class Files:
    """Pictures in files of a folder, for a `Streamed`. Each process has a copy, so names take one block of memory."""

    turned = True

    def __init__(self, folder: str, paths: Sequence[str]) -> None:
        self._folder, self._home = folder, os.getcwd()  # where a relative path starts; a process may start elsewhere
        start = os.path.join(folder, "")
        self._names = np.array([os.fsencode(path.removeprefix(start)) for path in paths])

    def __len__(self) -> int:
        return len(self._names)

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, os.fsdecode(bytes(self._names[number])))

    def open(self, number: int) -> Any:
        """See `Pictures`."""
        file = os.path.join(self._home, self._path(number))
        if not os.path.exists(file):
            raise BrokenImage(f"The image {self._path(number)} is gone; put it back.")
        stamp(file)
        return _opened(self._path(number), file)

    def broken(self, number: int) -> AbstractContextManager[None]:
        """See `Pictures`."""
        return _broken(self._path(number))


def _files(split: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(file for files in split.values() for file in files)


def _labels(split: dict[str, list[str]]) -> np.ndarray:
    return np.repeat(np.arange(len(split)), [len(files) for files in split.values()])


def _entries(path: str | Path, home: Path) -> list[os.DirEntry]:
    """What a folder holds, in order of name, without hidden files."""
    with as_input_error(path, f"Cannot read the folder {path}", "check the path."):
        entries = sorted((e for e in os.scandir(path) if not e.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(home):
            raise InputError(f"{entry.path} is a symbolic link that leads out of {home}; put a copy there instead.")
    return entries


def _scan(split: str, home: Path) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Image files by class, what the class folders hold besides, and image files outside of them."""
    entries = _entries(split, home)
    inside = {entry.name: _entries(entry.path, home) for entry in entries if entry.is_dir()}
    classes = {name: [file.path for file in files if _is_image(file)] for name, files in inside.items()}
    if not classes:
        raise InputError(f"{split} has no class folders; put each image into a folder named after its class.")
    if empty := [name for name, files in classes.items() if not files]:
        raise InputError(f"The class folder {split}/{empty[0]} has no images ({KINDS}); add some or remove it.")
    skipped = [file.path for files in inside.values() for file in files if not _is_image(file)]
    return classes, skipped, [entry.path for entry in entries if _is_image(entry)]


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not entry.is_dir()


def _warn(root: Path, what: str, paths: list[str], most: int = 3) -> None:
    if paths:
        names = [os.path.relpath(path, root) for path in paths[:most]] + ["..."] * (len(paths) > most)
        log.warning("%s: skipped %d %s: %s", root, len(paths), what, ", ".join(names))


def _decode(split: dict[str, list[str]], form: Form) -> Split:
    """Images (n, image_size, image_size, channels) of files listed by class, and their labels."""
    files, labels, broken = _files(split), _labels(split), []
    images = allocate(len(files), form)
    for row, file in enumerate(track(files, f"Decoding {len(files)} images")):
        try:
            images[row] = _decoded(file, form)
        except BrokenImage as error:
            if not form.skip_broken:
                raise
            log.warning("Left out: %s", error)
            broken.append(row)
    return np.delete(images, broken, 0) if broken else images, np.delete(labels, broken)


def decode(files: Sequence[str], form: Form) -> np.ndarray:
    """Image files as uint8 (n, image_size, image_size, channels), turned as their EXIF says and fitted by `fit_one`.

    Raises:
      BrokenImage: a file is no image, damaged, or too large.
    """
    images = allocate(len(files), form)
    for target, file in zip(images, files, strict=True):
        target[...] = _decoded(file, form)
    return images


def _decoded(file: str, form: Form) -> np.ndarray:
    from PIL import ImageOps

    with _broken(file), _opened(file, file) as image:
        return fit_one(ImageOps.exif_transpose(image), form)


def _opened(name: str, file: str) -> Any:
    """A Pillow image of a file that messages call `name`, not decoded yet."""
    from PIL import Image

    with _broken(name):
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"it has {image.width}x{image.height} pixels")
        return image


def _broken(file: str) -> AbstractContextManager[None]:
    """Names a file that is no image, damaged, or too large."""
    return as_input_error(file, f"Cannot decode the image {file}", "replace or remove it.", BrokenImage)


def image_files(path: str) -> list[str]:
    """The image files that a path means: itself, or of a folder those in it, by name, without hidden ones.

    Raises:
      InputError: there is nothing, no file, or a folder without images.
    """
    if not os.path.exists(path):
        raise InputError(f"There is no image {path}; check the path.")
    if not os.path.isdir(path):
        stamp(path)
        return [path]
    if not (files := [entry.path for entry in _entries(path, Path(os.path.realpath(path))) if _is_image(entry)]):
        raise InputError(f"The folder {path} has no images ({KINDS}); give image files, or a folder of them.")
    return files
