"""Finding a data set and loading it, with a cache of decoded images."""

import functools
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxslim.data import archives, digits, folders
from jaxslim.data.sources import Dataset, Form, Source, cache_file, decoded_bytes
from jaxslim.errors import InputError
from jaxslim.files import replacing
from jaxslim.machine import memory

CACHE_VERSION = 1  # raise it when the same source would decode to other pixels
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".gz")

log = logging.getLogger(__name__)


def load(
    dataset: str,
    *,
    data_dir: str | None = None,
    image_size: int = 32,
    channels: int = 3,
    fit: str = "stretch",
    stream: str = "never",
    workers: int | None = None,
    skip_broken: bool = False,
) -> Dataset:
    """The data set called `dataset`, as uint8 images of image_size x image_size x channels and int32 labels.

    An existing path wins over a name. Decoded TFDS data sets, folders and CIFAR archives are kept in
    `$XDG_CACHE_HOME/jaxslim/data` (else `~/.cache`); deleting that folder is always safe.

    Args:
      dataset: `digits`, a TFDS name such as `cifar10` or `svhn_cropped+extra` (`+` adds a split to the training
        images), or the path of an image folder (`train/CLASS/*.png`, `test/CLASS/*.png`), of an .npz (`train_images`,
        `train_labels`, `test_images`, `test_labels`), or of a CIFAR binary archive or the folder extracted from it.
      data_dir: where TFDS keeps its data sets; without it the variable TFDS_DATA_DIR, then `~/tensorflow_datasets`.
      image_size: height and width in pixels that images are resized to.
      channels: 3 repeats grey images, 1 turns colour into luminance.
      fit: how pictures become squares: "stretch", or "crop", which takes the middle.
      stream: when pictures of folders and of TFDS are decoded only as their turn comes, so that `train_images` and
        `test_images` are `Streamed`: "always", "never", or "auto", if all would take a quarter of the memory or more.
      workers: processes that decode a stream while training: None for half of the cores, at most 8; 0 for threads.
      skip_broken: whether broken files of a folder or a stream are left out, with a warning.

    Raises:
      InputError: there is no such data set, or it is damaged or not of the form above.
    """
    if image_size < 1 or channels not in (1, 3):
        raise InputError(f"image_size is {image_size} and channels {channels}; give at least 1 pixel, 1 or 3 channels.")
    source, form = find(dataset, data_dir), Form(image_size, channels, fit == "crop", skip_broken)
    if source.stream is None and stream == "always":
        raise InputError(f"{dataset} is no folder of images or TFDS name and cannot be streamed; leave --stream out.")
    needed, there = decoded_bytes(source.pictures, form), memory()
    if source.stream is not None and (stream == "always" or (stream == "auto" and needed > there / 4)):
        size = f"{source.pictures:,} images of {image_size}x{image_size} would take {needed / 1e9:,.1f} GB"
        if importlib.util.find_spec("grain") is None:
            missing = f"{dataset} would be decoded while training by grain, which is not installed here"
            raise InputError(f"{missing}; --stream never decodes all images into memory.")
        log.info("%s: %s of %.1f GB of memory; they are decoded while training.", dataset, size, there / 1e9)
        return source.stream(form, workers)._replace(name=dataset)
    read = source.read if source.identity is None else functools.partial(_read_cached, source)
    return read(form)._replace(name=dataset)


def find(dataset: str, data_dir: str | None = None) -> Source:
    """What `load` would decode; arguments and errors are those of `load`."""
    if not dataset:
        raise InputError("The name of the data set is empty; give a name such as cifar10 or digits, or a path.")
    path = Path(os.path.expanduser(dataset))
    is_path = os.path.isabs(path) or dataset.startswith((".", "~")) or path.name.endswith((".npz", *ARCHIVE_SUFFIXES))
    if is_path and not os.path.exists(path):
        raise InputError(f"There is no file or folder {dataset}; check the path.")
    if os.path.isdir(path):
        return archives.cifar(path) if archives.is_cifar_folder(path) else folders.folder(path)
    if path.suffix == ".npz":
        return Source(functools.partial(archives.read_npz, path), None)
    if path.name.endswith(ARCHIVE_SUFFIXES):
        return archives.cifar(path)
    if os.path.exists(path):
        raise InputError(f"{dataset} is no data set; give an image folder, an .npz or a CIFAR archive (.tar.gz).")
    if dataset == "digits":
        return Source(digits.read, None)
    from jaxslim.data import tfds  # costs a third of a second

    return tfds.find(dataset, data_dir)


def _read_cached(source: Source, form: Form) -> Dataset:
    """Decode `source`, or take what was decoded before. A cache that cannot be written only costs time."""
    marks = [name for name in form._fields[2:] if getattr(form, name)]
    path = cache_file([CACHE_VERSION, source.identity, *form[:2], *marks], ".npz")
    try:
        return archives.read_npz(path, form)
    except InputError:  # absent or damaged
        data = source.read(form)
    arrays = {name: value for name, value in data._asdict().items() if name != "name"}
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        log.warning("Cannot cache decoded images in %s (%s); they will be decoded again next time.", path.parent, error)
    return data


def hold_out(data: Dataset, share: float, seed: int) -> tuple[Dataset, Any, np.ndarray]:
    """Set aside a random `share` of the training set, the same one for the same seed.

    Returns:
      `data` with the smaller training set, the held-out images (n, h, w, c) and their labels (n,).

    Raises:
      InputError: the share leaves no image on one of the two sides.
    """
    total = len(data.train_labels)
    count = round(total * share) if 0 < share < 1 else 0
    if not 0 < count < total:
        raise InputError(f"A holdout of {share} of {total} images leaves none on one side; give a share such as 0.1.")
    set_aside, kept = map(np.sort, np.split(np.random.default_rng(seed).permutation(total), [count]))
    rest = data._replace(train_images=data.train_images[kept], train_labels=data.train_labels[kept])
    return rest, data.train_images[set_aside], data.train_labels[set_aside]
