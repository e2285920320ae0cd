"""Image classification data sets of TensorFlow Datasets, read without TensorFlow."""

import contextlib
import difflib
import functools
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets
from PIL import Image

from jaxslim.data.sources import (
    BrokenImage,
    Dataset,
    Form,
    Source,
    Split,
    allocate,
    as_input_error,
    assemble,
    cache_file,
    fit_one,
    stamp,
    track,
)
from jaxslim.data.streams import Streamed
from jaxslim.errors import InputError
from jaxslim.files import replacing

log = logging.getLogger(__name__)


def find(name: str, data_dir: str | None) -> Source:
    """The data set `name`, prepared as array_record in `data_dir`, else in TFDS_DATA_DIR or `~/tensorflow_datasets`.

    `NAME+SPLIT` adds a split to the training images, as `svhn_cropped+extra` does.

    Raises:
      InputError: the data set is unknown, not prepared or in another format, or it holds no labelled images.
    """
    root = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    name, *added = name.split("+")
    advice = _advice(name, root)
    with _quiet_absl():
        builder = _builder(name, root, advice)
        image_key, label_key = _keys(name, builder.info)
        if not builder.is_prepared():
            raise InputError(f"{name} is not prepared in {root}. {advice}")
        test = next((split for split in ("test", "validation") if split in builder.info.splits), None)
        if "train" not in builder.info.splits or test is None:
            splits = ", ".join(builder.info.splits)
            raise InputError(f"{name} has the splits {splits}; training needs train and test (or validation).")
        if wrong := [split for split in added if split not in {*builder.info.splits} - {"train", test}]:
            rest = ", ".join(sorted({*builder.info.splits} - {"train", test})) or "none"
            raise InputError(f"{name} has no split {wrong[0]!r} to add to train and {test}; it has besides: {rest}.")
        train = "+".join(["train", *added])
        if test == "validation":
            log.warning("%s has no test split; its validation split takes that place.", name)
        stored = f"{name} in {builder.data_dir} is stored as {builder.info.file_format.value}"
        with as_input_error(name, f"{stored}, which cannot be read here", f"delete that folder. {advice}"):
            records = builder.as_data_source([train, test])

    names = builder.info.features[label_key].names

    def read(form: Form) -> Dataset:
        splits: list[Split] = []
        for split in records:
            images, labels = allocate(len(split), form), np.empty(len(split), np.int64)
            for row, example in enumerate(_examples(name, split, advice, "Decoding {} images")):
                images[row], labels[row] = fit_one(example[image_key], form), example[label_key]
            splits.append((images, labels))
        return assemble(name, splits[0], splits[1], names)

    folder = os.path.realpath(builder.data_dir)
    files = sorted(entry.path for entry in os.scandir(folder) if not entry.is_dir())
    identity = ["tfds", builder.info.full_name, folder, [stamp(file) for file in files], *added]

    def stream(form: Form, workers: int | None) -> Dataset:
        splits: list[tuple[Any, np.ndarray]] = []
        for split in (train, test):
            pictures = Records(name, folder, split, image_key, advice)
            read_labels = functools.partial(_labels, pictures, name, label_key, advice)
            labels = _kept_labels([*identity, split], read_labels)
            splits.append((Streamed(pictures, form, workers=workers), labels))
        return assemble(name, splits[0], splits[1], names)

    return Source(read, identity, sum(map(len, records)), stream)


class Records:
    """Pictures of a split in array_record files, for a `Streamed`. Each process opens the files for itself."""

    turned = False

    def __init__(self, name: str, folder: str, split: str, image_key: str, advice: str) -> None:
        self._name, self._folder, self._split, self._key, self._advice = name, folder, split, image_key, advice
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None}

    def __len__(self) -> int:
        return len(self.records)

    @property
    def records(self) -> Any:
        """The examples of the split, with images that are not decoded."""
        if self._opened is None:
            with _quiet_absl():
                builder = tensorflow_datasets.builder_from_directory(self._folder)
                undecoded = {self._key: tensorflow_datasets.decode.SkipDecoding()}
                self._opened = builder.as_data_source(self._split, decoders=undecoded)
        return self._opened

    def open(self, number: int) -> Any:
        """See `Pictures`."""
        fix = _repair(self._folder, self._advice)
        with as_input_error(self._folder, f"{self._named(number)} cannot be read", fix):
            content = self.records[number][self._key]
        with self.broken(number):
            return Image.open(io.BytesIO(content))

    def broken(self, number: int) -> contextlib.AbstractContextManager[None]:
        """See `Pictures`."""
        fix = f"delete that folder. {self._advice}"
        return as_input_error(self._folder, f"{self._named(number)} is damaged", fix, BrokenImage)

    def _named(self, number: int) -> str:
        return f"Image {number} of {self._name}, {self._split}, in {self._folder}"


def _kept_labels(identity: list, read: Callable[[], np.ndarray]) -> np.ndarray:
    """Labels, read once and then kept in the cache of decoded data."""
    file = cache_file(identity, "-labels.npy")
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(file, allow_pickle=False)
    labels = read()
    with contextlib.suppress(OSError), replacing(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, labels)
    return labels


def _labels(pictures: Records, name: str, label_key: str, advice: str) -> np.ndarray:
    """The labels of a split, without decoding its images."""
    examples = _examples(name, pictures.records, advice, "Reading the labels of {} images")
    return np.array([example[label_key] for example in examples], np.int64)


def _repair(folder: str, advice: str) -> str:
    return f"check the disk; if the files are damaged, delete {folder}. {advice}"


def _advice(name: str, root: str) -> str:
    return (
        "Preparing it needs TensorFlow once; training does not:\n"
        "  pip install tensorflow\n"
        '  python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}, file_format='array_record', data_dir={root!r}).download_and_prepare()\""
        + ("" if sys.platform == "linux" else "\nThat takes Linux; elsewhere use an .npz, an image folder or digits.")
    )


def _builder(name: str, root: str, advice: str) -> Any:
    with as_input_error(root, f"TFDS cannot open {name} in {root}", f"if it is damaged, delete its folder. {advice}"):
        try:
            return tensorflow_datasets.builder(name, data_dir=root)
        except tensorflow_datasets.core.DatasetNotFoundError:
            known = ["digits", *tensorflow_datasets.list_builders(with_community_datasets=False)]
            close = " or ".join(difflib.get_close_matches(name.lower(), known) or ["cifar10", "digits"])
            meant = f"did you mean {close}, or the path of a folder, .npz or archive?"
            raise InputError(f"There is no data set called {name}; {meant}") from None


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Names of the image and of the label in an example."""
    wanted = (tensorflow_datasets.features.Image, tensorflow_datasets.features.ClassLabel)
    keys: tuple = info.supervised_keys or ()
    features = [info.features[key] for key in keys if isinstance(key, str)]
    if not (len(keys) == len(features) == 2 and all(map(isinstance, features, wanted))):
        raise InputError(f"{name} holds no labelled images; give an image classification data set such as cifar10.")
    if features[0].np_dtype != np.uint8:
        raise InputError(f"{name} has images of {np.dtype(features[0].np_dtype)}; only 8-bit images are supported.")
    return keys[0], keys[1]


def _examples(name: str, split: Any, advice: str, what: str) -> Iterator[dict]:
    """Read a data source in batches; the checksums in its files find damage."""
    for start in track(range(0, len(split), 500), f"{what.format(len(split))} of {name}"):
        with as_input_error(name, f"The files of {name} cannot be read", _repair("its folder", advice)), _quiet_absl():
            examples = split.__getitems__(list(range(start, min(start + 500, len(split)))))
        yield from examples


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silence TFDS' warnings about OpenCV and about folders that are not prepared: errors here say the same."""
    from absl import logging as absl

    before = absl.get_verbosity()
    absl.set_verbosity(absl.ERROR)
    try:
        yield
    finally:
        absl.set_verbosity(before)
