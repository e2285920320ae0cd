"""Feed damaged input to every reader of files and options; only the documented errors may come of it."""

import functools
import io
import itertools
import os
import runpy
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from jaxslim import data
from jaxslim.commands import train
from jaxslim.errors import InputError
from jaxslim.storage import checkpoint
from jaxslim.storage.integrity import seal
from jaxslim.training.run import check_folder

WORDS = ("9" * 15, "-1", "null", "[]", '""', "1e400")
VALUES = ("", "-1", "nan", "1e999", "x", "M", "0", "[]", "\u2603", "9" * 30, "None", "True")
Reader = tuple[str, Path, Callable[[], object]]  # name, the file to damage, and what reads it


def feed(config: Path, whole: Path, folder: Path, number: int, rng: np.random.Generator) -> Counter[str]:
    """Give `number` damaged inputs to the readers in turn; count them. `config` is the file of the run in `whole`."""
    readers, counts = itertools.cycle(_readers(config, whole, folder, rng)), Counter[str]()
    for name, file, read in itertools.islice(readers, number):
        original = file.read_bytes()
        file.write_bytes(spoil(original, rng))
        try:
            with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache")):
                read()
        except InputError:
            pass
        except BaseException as error:
            if not isinstance(error, SystemExit) or error.code not in (0, 2):
                kept = shutil.copy(file, tempfile.mkdtemp(prefix="torture-"))
                message = f"the reader of {name} raised {type(error).__name__}: {error} (input: {kept})"
                raise AssertionError(message) from error
        finally:
            file.write_bytes(original)
        counts[name] += 1
    return counts


def _readers(config: Path, whole: Path, folder: Path, rng: np.random.Generator) -> list[Reader]:
    network, started = shutil.copytree(checkpoint.find(whole), folder / "fed"), folder / "started"
    shutil.copytree(whole, started)
    meta = next(file for file in (network / "meta").iterdir() if file.read_bytes().startswith(b"{"))
    archive = Path(shutil.copy(folder / "data.npz", folder / "fed.npz"))
    load = functools.partial(data.load, image_size=8, channels=1)
    images, options = folder / "images", folder / "options"
    for place in ("train/a", "test/a"):
        (images / place).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(images / place / "0.png")
    options.write_text(" ".join(f"--{name.replace('_', '-')}" for name in checkpoint.read_meta(network)["config"]))
    words = [*options.read_text().split(), *VALUES]

    def read_sealed() -> None:
        seal(network)
        checkpoint.load(network)

    def parse() -> None:
        """Give `jaxslim train` random options, without the training."""
        argv = rng.choice(words, rng.integers(1, 5)).tolist()
        options.write_text("\n".join(argv))
        silence = mock.patch.multiple(sys, stdout=io.StringIO(), stderr=io.StringIO())
        with silence, mock.patch("jaxslim.training.loop.train"):
            train.main(argv)

    return [
        ("checkpoint metadata", meta, read_sealed),
        ("checksums", network / "checksums.json", lambda: checkpoint.load(network)),
        ("run folders", started / "config.json", lambda: check_folder(started, runpy.run_path(str(config))["config"])),
        (".npz", archive, lambda: load(str(archive))),
        ("image folders", images / "train" / "a" / "0.png", lambda: load(str(images))),
        ("options", options, parse),
    ]


def spoil(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with a few pieces taken out, doubled or overwritten, or with a word put in."""
    for _ in range(rng.integers(1, 4)):
        start, length = rng.integers(len(content) + 1), rng.integers(1, 20)
        piece = content[start : start + length]
        word = str(rng.choice(WORDS)).encode()
        ways = (b"", piece * 2, rng.bytes(len(piece)), word + piece)
        content = content[:start] + ways[rng.integers(len(ways))] + content[start + length :]
    return content
