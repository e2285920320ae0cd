"""Data sets in one file: an .npz of arrays, a CIFAR binary archive. Nothing is unpickled or extracted to disk."""

import math
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from jaxslim.data.sources import MAX_BYTES, Dataset, Source, Split, allocate, assemble, fit, stamp
from jaxslim.errors import InputError, first_line

OWN_NAMES = ("train_images", "train_labels", "test_images", "test_labels")
KERAS_NAMES = ("x_train", "y_train", "x_test", "y_test")


def npz(path: Path) -> Source:
    """An .npz with train_images, train_labels, test_images, test_labels (or Keras' names) and maybe class_names."""
    return Source(lambda image_size, channels: read_npz(path, image_size, channels), None)


def read_npz(path: Path, image_size: int, channels: int) -> Dataset:
    """The data set in an .npz, resized and recoloured where needed.

    Raises:
      InputError: the file is damaged, pickled or too large, or an array is missing or of the wrong shape or type.
    """
    arrays = _read_arrays(path)
    names = KERAS_NAMES if KERAS_NAMES[0] in arrays else OWN_NAMES
    if missing := [name for name in names if name not in arrays]:
        raise InputError(
            f"{path} lacks {', '.join(missing)}; save it with "
            f"numpy.savez(path, {', '.join(f'{name}=...' for name in OWN_NAMES)})."
        )
    class_names = arrays.get("class_names")
    if class_names is not None and (class_names.ndim != 1 or class_names.dtype.kind != "U"):
        raise InputError(f"class_names of {path} is {_kind(class_names)}; it must be a list of strings.")
    train, test = (_split(path, arrays, *pair, image_size, channels) for pair in (names[:2], names[2:]))
    return assemble(path, train, test, None if class_names is None else class_names.tolist())


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that make a data set; sizes are checked before anything is read."""
    arrays, total = {}, 0
    stamp(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name not in (*OWN_NAMES, *KERAS_NAMES, "class_names"):
                    continue
                total += info.file_size
                if total > MAX_BYTES:
                    raise InputError(
                        f"{path} claims more than {MAX_BYTES // 2**30} GiB of arrays; use a folder of images instead."
                    )
                with archive.open(info) as file:
                    _check_header(path, name, file, info.file_size)
                with archive.open(info) as file:
                    arrays[name] = npy.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes zipfile and numpy raise one of many unrelated types
        raise InputError(
            f"{path} is no .npz archive, or it is damaged ({error}); save it again with numpy.savez."
        ) from error
    return arrays


def _check_header(path: Path, name: str, file, size: int) -> None:
    """Refuse a member whose header asks for another amount of memory than the member holds, or for a pickle."""
    if npy.read_magic(file) != (1, 0):
        raise InputError(f"{name} of {path} is no plain array; save it again with numpy.savez.")
    shape, _, dtype = npy.read_array_header_1_0(file)
    if dtype.hasobject:
        raise InputError(
            f"{name} of {path} is a pickled array, which is refused as unsafe; save it as numbers or strings."
        )
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise InputError(
            f"{name} of {path} claims the shape {shape} but holds {size} bytes; save it again with numpy.savez."
        )


def _split(path: Path, arrays: dict, images_name: str, labels_name: str, image_size: int, channels: int) -> Split:
    images, labels = arrays.pop(images_name), arrays.pop(labels_name)
    if images.dtype != np.uint8:
        raise InputError(
            f"{images_name} of {path} is {_kind(images)}; convert it to uint8 from 0 to 255, "
            "for example (images * 255).round().astype('uint8') if it holds 0 to 1."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or 0 in images.shape[1:]:
        raise InputError(
            f"{images_name} of {path} is {_kind(images)}; give (n, height, width) or (n, height, width, channels) "
            "with 1, 3 or 4 channels. PyTorch's order becomes this by transpose(0, 2, 3, 1)."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{labels_name} of {path} is {_kind(labels)}; it must hold one integer per image, shape (n,) or (n, 1)."
        )
    if len(labels) != len(images):
        raise InputError(
            f"{path} has {len(images)} {images_name} but {len(labels)} {labels_name}; each image needs one label."
        )
    if images.shape[1:] != (image_size, image_size, channels):
        images = fit(images, allocate(len(images), image_size, channels))
    return np.ascontiguousarray(images), labels


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


class _Layout(NamedTuple):
    """Files of a CIFAR data set; a record is the label bytes, of which the last counts, then three 32x32 planes."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    class_names: str
    classes: int
    label_bytes: int


CIFAR10 = _Layout(tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), "batches.meta.txt", 10, 1)
CIFAR100 = _Layout(("train.bin",), ("test.bin",), "fine_label_names.txt", 100, 2)
_CIFAR_FILES = {name for layout in (CIFAR10, CIFAR100) for name in (*layout.train, *layout.test, layout.class_names)}


def is_cifar_folder(path: Path) -> bool:
    """Whether `path` is an extracted CIFAR binary archive rather than a folder of images."""
    return any((path / name).is_file() for name in (*CIFAR10.train, *CIFAR10.test, *CIFAR100.train, *CIFAR100.test))


def cifar(path: Path) -> Source:
    """The CIFAR-10 or CIFAR-100 (fine labels) binary archive as its authors publish it, or the folder in it."""
    files = [path / name for name in sorted(_CIFAR_FILES) if (path / name).exists()] if path.is_dir() else [path]
    return Source(
        lambda image_size, channels: _read_cifar(path, image_size, channels),
        ["cifar", os.path.realpath(path), [stamp(file) for file in files]],
    )


def _read_cifar(path: Path, image_size: int, channels: int) -> Dataset:
    try:
        files = dict(_members(path))
    except InputError:
        raise
    except Exception as error:  # a damaged file makes tarfile and gzip raise one of many unrelated types
        raise InputError(
            f"{path} is no tar archive, or it is damaged ({first_line(error)}); download it again."
        ) from error
    layout = CIFAR100 if files.keys() & {*CIFAR100.train, *CIFAR100.test} else CIFAR10
    if missing := [name for name in (*layout.train, *layout.test) if name not in files]:
        raise InputError(
            f"{path} lacks {', '.join(missing)}; give the binary version, "
            "cifar-10-binary.tar.gz or cifar-100-binary.tar.gz (the Python and Matlab versions are not read)."
        )
    class_names = files.get(layout.class_names, b"").decode(errors="replace").split() or list(
        map(str, range(layout.classes))
    )
    if len(class_names) != layout.classes:
        raise InputError(
            f"{layout.class_names} of {path} names {len(class_names)} classes, not {layout.classes}; download it again."
        )
    train, test = (_records(path, files, names, layout, image_size, channels) for names in (layout.train, layout.test))
    return assemble(path, train, test, class_names)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each CIFAR file in a folder or tar archive."""
    if path.is_dir():
        for name in sorted(_CIFAR_FILES):
            if (path / name).is_file():
                yield name, (path / name).read_bytes()
        return
    total = 0
    with tarfile.open(path) as archive:
        for member in archive:
            name = os.path.basename(member.name)
            if name not in _CIFAR_FILES or not (file := archive.extractfile(member) if member.isfile() else None):
                continue
            total += member.size
            if total > MAX_BYTES:
                raise InputError(f"{path} claims more than {MAX_BYTES // 2**30} GiB; it is no CIFAR archive.")
            yield name, file.read()
        while archive.fileobj and archive.fileobj.read(2**20):  # gzip compares its checksum at the very end
            pass


def _records(path: Path, files: dict, names: tuple[str, ...], layout: _Layout, image_size: int, channels: int) -> Split:
    """Decode the records of some files, taking them out of `files`."""
    record = layout.label_bytes + 3 * 32 * 32
    for name in names:
        if not files[name] or len(files[name]) % record:
            raise InputError(
                f"{name} of {path} has {len(files[name])} bytes, no multiple of {record}; download it again."
            )
    count = sum(len(files[name]) for name in names) // record
    images, labels = allocate(count, image_size, channels), np.empty(count, np.int32)
    end = 0
    for name in names:
        rows = np.frombuffer(files.pop(name), np.uint8).reshape(-1, record)
        start, end = end, end + len(rows)
        labels[start:end] = rows[:, layout.label_bytes - 1]
        planes = rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
        fit(planes.transpose(0, 2, 3, 1), images[start:end])
    return images, labels
