"""Data sets in one file: an .npz of arrays, a CIFAR binary archive. Nothing is unpickled or extracted to disk."""

import functools
import math
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from jaxslim.data.sources import MAX_BYTES, Dataset, Form, Source, Split, as_input_error, assemble, fit, stamp
from jaxslim.errors import InputError
from jaxslim.files import replacing

OWN_NAMES = ("train_images", "train_labels", "test_images", "test_labels")
KERAS_NAMES = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path, form: Form) -> Dataset:
    """The data set in an .npz, resized and recoloured where needed.

    The .npz holds train_images, train_labels, test_images and test_labels, or Keras' names for them, and perhaps
    class_names.

    Raises:
      InputError: the file is damaged, pickled or too large, or an array is missing or of the wrong shape or type.
    """
    arrays, total = {}, 0
    stamp(path)
    problem = f"{path} is no .npz archive, or it is damaged"
    with as_input_error(path, problem, "save it again with numpy.savez."), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in (*OWN_NAMES, *KERAS_NAMES, "class_names"):
                total += info.file_size
                _check_total(path, total, "use a folder of images instead.")
                arrays[name] = _read_array(path, name, archive, info)
    names = KERAS_NAMES if KERAS_NAMES[0] in arrays else OWN_NAMES
    if missing := [name for name in names if name not in arrays]:
        arguments = ", ".join(f"{name}=..." for name in OWN_NAMES)
        raise InputError(f"{path} lacks {', '.join(missing)}; save it with numpy.savez(path, {arguments}).")
    class_names = arrays.get("class_names", np.array([], str))
    is_right = class_names.ndim == 1 and class_names.dtype.kind == "U"
    _check(path, "class_names", class_names, is_right, "it must be a list of strings.")
    train, test = (_split(path, arrays, *pair, form) for pair in (names[:2], names[2:]))
    return assemble(path, train, test, class_names.tolist())


def write_part(images: Dataset, file: Path, train: int, test: int) -> None:
    """Write an .npz with a random part of a data set, the same part every time.

    Args:
      images: the data set.
      file: the .npz, which is replaced.
      train: how many training images; all if there are fewer.
      test: how many test images.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", train), ("test", test)):
        labels = getattr(images, f"{split}_labels")
        chosen = np.random.default_rng(0).permutation(len(labels))[:count]
        pixels = np.asarray(getattr(images, f"{split}_images")[chosen])
        arrays |= {f"{split}_images": pixels, f"{split}_labels": labels[chosen]}
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _read_array(path: Path, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array whose header was checked first: it says how much memory the array takes."""
    with archive.open(info) as file:
        npy.read_magic(file)
        shape, _, dtype = npy.read_array_header_1_0(file)
        if dtype.hasobject:
            raise InputError(f"{name} of {path} is a pickled array, which is unsafe; save numbers or strings.")
        if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
            raise InputError(f"{name} of {path} claims a shape that it does not hold, {shape}; save it again.")
    with archive.open(info) as file:  # anew: zipfile may give up its checksum when it seeks
        return npy.read_array(file, allow_pickle=False)


def _split(path: Path, arrays: dict, images_name: str, labels_name: str, form: Form) -> Split:
    images, labels = arrays.pop(images_name), arrays.pop(labels_name)
    advice = "to uint8 from 0 to 255, for example (images * 255).round().astype('uint8') if it holds 0 to 1."
    _check(path, images_name, images, images.dtype == np.uint8, f"convert it {advice}")
    images = images[..., None] if images.ndim == 3 else images
    advice = "with 1, 3 or 4 channels. PyTorch's order becomes this by transpose(0, 2, 3, 1)."
    is_right = images.ndim == 4 and images.shape[3] in (1, 3, 4) and 0 not in images.shape[1:]
    _check(path, images_name, images, is_right, f"give (n, height, width) or (n, height, width, channels) {advice}")
    labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
    is_right = labels.ndim == 1 and labels.dtype.kind in "iu"
    _check(path, labels_name, labels, is_right, "give one integer per image, (n,) or (n, 1).")
    if len(labels) != len(images):
        counts = f"{len(images)} {images_name} but {len(labels)} {labels_name}"
        raise InputError(f"{path} has {counts}; give as many labels.")
    return fit(images, form), labels


def _check_total(path: Path, total: int, advice: str) -> None:
    if total > MAX_BYTES:
        raise InputError(f"{path} claims more than {MAX_BYTES // 2**30} GiB; {advice}")


def _check(path: Path, name: str, array: np.ndarray, is_right: bool, advice: str) -> None:
    if not is_right:
        raise InputError(f"{name} of {path} is {array.dtype} of shape {array.shape}; {advice}")


class _Layout(NamedTuple):
    """Files of a CIFAR data set. A record is the label bytes, of which the last counts, and three 32x32 planes."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    class_names: str
    classes: int
    label_bytes: int


CIFAR10 = _Layout(tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), "batches.meta.txt", 10, 1)
CIFAR100 = _Layout(("train.bin",), ("test.bin",), "fine_label_names.txt", 100, 2)
_CIFAR_FILES = sorted(name for kind in (CIFAR10, CIFAR100) for name in (*kind.train, *kind.test, kind.class_names))


def is_cifar_folder(path: Path) -> bool:
    """Whether `path` is an extracted CIFAR binary archive rather than a folder of images."""
    return any((path / name).is_file() for name in _CIFAR_FILES)


def cifar(path: Path) -> Source:
    """The CIFAR-10 or CIFAR-100 (fine labels) binary archive as its authors publish it, or the folder in it."""
    files = [path / name for name in _CIFAR_FILES if (path / name).exists()] if path.is_dir() else [path]
    identity = ["cifar", os.path.realpath(path), [stamp(file) for file in files]]
    return Source(functools.partial(_read_cifar, path), identity)


def _read_cifar(path: Path, form: Form) -> Dataset:
    with as_input_error(path, f"{path} is no tar archive, or it is damaged", "download it again."):
        files = dict(_members(path))
    layout = CIFAR100 if files.keys() & {*CIFAR100.train, *CIFAR100.test} else CIFAR10
    if missing := [name for name in (*layout.train, *layout.test) if name not in files]:
        raise InputError(f"{path} lacks {', '.join(missing)}; give the binary version (cifar-10-binary.tar.gz).")
    class_names = files.get(layout.class_names, b"").decode(errors="replace").split()
    if class_names and len(class_names) != layout.classes:
        count = f"{len(class_names)} names, not {layout.classes}"
        raise InputError(f"{layout.class_names} of {path} has {count}; download it again.")
    record, splits = layout.label_bytes + 3 * 32 * 32, []
    for names in (layout.train, layout.test):
        if wrong := [name for name in names if not files[name] or len(files[name]) % record]:
            size = f"{len(files[wrong[0]])} bytes, no multiple of {record}"
            raise InputError(f"{wrong[0]} of {path} has {size}; download it again.")
        rows = np.frombuffer(b"".join(files[name] for name in names), np.uint8).reshape(-1, record)
        planes = rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
        splits.append((fit(planes.transpose(0, 2, 3, 1), form), rows[:, layout.label_bytes - 1]))
    return assemble(path, splits[0], splits[1], class_names or range(layout.classes))


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each CIFAR file in a folder or tar archive."""
    if path.is_dir():
        yield from ((name, (path / name).read_bytes()) for name in _CIFAR_FILES if (path / name).is_file())
        return
    total = 0
    with tarfile.open(path) as archive:
        for member in archive:
            name, file = os.path.basename(member.name), archive.extractfile(member) if member.isfile() else None
            if file and name in _CIFAR_FILES:
                total += member.size
                _check_total(path, total, "it is no CIFAR archive.")
                yield name, file.read()
        while archive.fileobj and archive.fileobj.read(2**20):  # gzip compares its checksum at the very end
            pass
