"""Pictures that are decoded while training: the same batches as from memory, workers that end, broken ones named."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_commands import assert_one_message, invoke

import jaxslim
from jaxslim import data
from jaxslim.commands import train
from jaxslim.data import Form, Streamed, streams
from jaxslim.data.order import Order
from jaxslim.errors import InputError
from jaxslim.training import feed
from jaxslim.training.config import TrainConfig
from jaxslim.training.evaluation import training_batches
from jaxslim.training.feed import InMemory, Streaming

FLAGS = ["--image-size", "16", "--stream", "always", "--model", "vgg", "--model-args", "widths=4,M,6"]
FLAGS += ["--batch-size", "8", "--augment", "resized-crop", "flip", "--learning-rate", "0.05"]


def make_folder(root: Path, train: int = 24, test: int = 12, broken: str | None = None) -> Path:
    """An image folder of two classes: JPEGs of several sizes, one turned by EXIF, and PNGs with transparency."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for number in range(count):
            folder = root / split / ("bright", "dark")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            height, width = int(rng.integers(20, 90)), int(rng.integers(20, 90))
            pixels = rng.integers(0, 128, (height, width, 3)) + 100 * (number % 2 == 0)
            picture = Image.fromarray(pixels.astype(np.uint8))
            if number % 5 == 4:
                picture.putalpha(200)
                picture.save(folder / f"{number:03}.png")
            else:
                exif = Image.Exif()
                exif[0x0112] = 6 if number % 7 == 3 else 1
                picture.save(folder / f"{number:03}.jpg", exif=exif)
    if broken:
        (root / broken).write_bytes((root / broken).read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"))


def mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))


def streamed(folder: Path, **how: Any) -> data.Dataset:
    return data.load(str(folder), image_size=16, stream="always", **how)


def taken(batches: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each step."""
    found = []
    for batch in batches:
        for number in range(batch.steps):
            found.append(jax.device_get(batch.step(None if batch.rows is None else batch.rows[number])))
    return found


def assert_same(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    for (images, labels), (others, theirs) in zip(one, other, strict=True):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, theirs)


# The same as from memory


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_a_stream_decodes_what_memory_would_hold(tmp_path, fit):
    """PNGs bit for bit. A JPEG decoded at a smaller size differs by little."""
    root = make_folder(tmp_path)
    memory, lazy = (data.load(str(root), image_size=16, fit=fit, stream=how) for how in ("never", "always"))
    assert isinstance(lazy.train_images, Streamed)
    assert lazy.train_images.shape == memory.train_images.shape
    np.testing.assert_array_equal(lazy.train_labels, memory.train_labels)
    assert lazy.class_names == memory.class_names
    found = np.asarray(lazy.train_images).astype(int)
    assert np.abs(found - memory.train_images).mean() < 4
    files = sorted((root / "train").rglob("*.*"))
    pngs = [number for number, file in enumerate(files) if file.suffix == ".png"]
    np.testing.assert_array_equal(found[pngs], memory.train_images[pngs])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_set_in_memory(folder, workers):
    """All epochs, in the order of the seed, whether one goes on or starts in the middle."""
    lazy = streamed(folder, workers=workers)
    decoded = np.asarray(lazy.train_images)
    memory = InMemory(mesh(), decoded, lazy.train_labels, 5, seed=3)
    stream = Streaming(mesh(), lazy.train_images, lazy.train_labels, 5, 3, 3, False)
    assert stream.steps_per_epoch == memory.steps_per_epoch == 4
    for epoch in (1, 2):
        assert_same(taken(stream.batches(epoch)), taken(memory.batches(epoch)))
    assert_same(taken(stream.batches(3, skip=2)), taken(memory.batches(3, skip=2)))
    stream.close()


def test_crops_are_those_of_the_seed_whoever_decodes_them(folder):
    found = []
    for workers in (0, 1, 2):
        lazy = streamed(folder, workers=workers)
        stream = Streaming(mesh(), lazy.train_images, lazy.train_labels, 6, 1, 2, True)
        found.append([*taken(stream.batches(1)), *taken(stream.batches(2))])
        stream.close()
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    first, again = (dict(zip(("images", "labels"), found[0][step], strict=True)) for step in (0, 4))
    assert first["images"].shape == again["images"].shape == (6, 16, 16, 3)
    assert (first["images"] != again["images"]).any()


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31))
def test_processes_share_a_batch(count, batch_size, seed):
    """What two processes are asked for is, put together, what one is; crops go by the place in the whole batch."""
    if batch_size > count:
        return
    places = np.arange(batch_size)
    whole = Order(seed, count, batch_size, places, True)
    halves = [Order(seed, count, batch_size, part, True) for part in np.array_split(places, 2)]
    for number in range(2 * (count // batch_size)):
        parts = [half(number) for half in halves]
        for field in ("numbers", "seeds"):
            joined = np.concatenate([getattr(part, field) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole(number), field))


def test_what_is_picked_is_in_order(folder):
    lazy = streamed(folder)
    stream = feed.feed(mesh(), lazy.test_images, lazy.test_labels)
    rows = np.array([[3, 1], [11, 11]], np.int32)
    decoded = np.asarray(lazy.test_images)
    for (images, labels), row in zip(taken(stream.pick(rows)), rows, strict=True):
        np.testing.assert_array_equal(images, decoded[row])
        np.testing.assert_array_equal(labels, lazy.test_labels[row])


def test_a_part_is_a_stream(folder):
    images = streamed(folder).train_images
    part = images[np.array([5, 2])]
    assert part.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(np.asarray(part), np.asarray(images)[[5, 2]])


# Random-resized crops


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**32))
def test_a_crop_lies_inside(width, height, seed):
    left, top, right, bottom = streams.random_crop((width, height), np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) > 50 and max(width, height) < 1.3 * min(width, height):
        share, ratio = (right - left) * (bottom - top) / (width * height), (right - left) / (bottom - top)
        assert 0.07 < share <= 1
        assert 0.7 < ratio < 1.42


def test_areas_and_aspects_are_uniform():
    """Small ones, of which each fits: areas from 8 to 50 % by their mean, and as often wide as high."""
    rng = np.random.default_rng(0)
    boxes = np.array([streams.random_crop((1000, 1000), rng) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas = width * height / 1e6
    assert abs(areas[areas < 0.5].mean() - 0.29) < 0.01
    assert abs(np.log(width / height).mean()) < 0.01
    assert abs((width > height).mean() - 0.5) < 0.03


def test_a_crop_on_the_device_shows_a_part_larger():
    """A ramp stays a ramp: of smaller slope, inside the old one, and of the same size."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 4, (50, 64, 64, 3))
    augment = data.augmenter(("resized-crop",))
    found = np.asarray(augment(jax.numpy.asarray(ramp), jax.random.key(0))).astype(int)
    assert found.shape == ramp.shape
    slopes = np.diff(found[:, 32, 8:-8, 0], axis=1).mean(1)
    assert (slopes <= 4.01).all()
    assert slopes.min() < 2
    assert np.ptp(found, axis=1).max() == 0  # no column changes from row to row
    again = np.asarray(augment(jax.numpy.asarray(ramp), jax.random.key(0))).astype(int)
    np.testing.assert_array_equal(found, again)


def test_the_middle_of_a_picture_by_hand():
    """Of 64x32 pixels the middle 28x28 is taken."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[2:30, 18:46] = 255
    np.testing.assert_array_equal(data.sources.fit_one(pixels, Form(28, 3, crop=True)), 255)
    assert data.sources.fit_one(pixels, Form(28, 3)).min() == 0


# Broken pictures


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(tmp_path, workers):
    root = make_folder(tmp_path, broken="train/bright/002.jpg")
    lazy = streamed(root, workers=workers)
    stream = Streaming(mesh(), lazy.train_images, lazy.train_labels, 8, 0, 1, False)
    with pytest.raises(
        InputError, match=r"Cannot decode the image .*002\.jpg \(.*--skip-broken leaves such pictures out"
    ):
        taken(stream.batches(1))
    stream.close()


def test_broken_pictures_are_left_out_when_asked(tmp_path, caplog):
    """In training the next one takes the place; in a test the label says that it does not count."""
    root = make_folder(tmp_path, broken="train/bright/002.jpg")
    (root / "val/dark/001.jpg").write_bytes(b"no picture")
    lazy = streamed(root, skip_broken=True)
    stream = Streaming(mesh(), lazy.train_images, lazy.train_labels, 8, 0, 1, False)
    with caplog.at_level("WARNING", logger="jaxslim"):
        images, _ = map(np.concatenate, zip(*taken(stream.batches(1)), strict=True))
    stream.close()
    assert caplog.text.count("002.jpg") == 1
    assert len(images) == 24
    assert len(np.unique(images.reshape(24, -1), axis=0)) == 23
    tested = feed.feed(mesh(), lazy.test_images, lazy.test_labels)
    labels = taken(tested.pick(np.arange(12, dtype=np.int32)[None]))[0][1]
    assert (labels == -1).sum() == 1
    config = TrainConfig(batch_size=8, augment=(), mean=(0, 0, 0), std=(1, 1, 1))
    seen = training_batches(config, lazy, 3)
    assert len(np.unique(np.concatenate([images for images, _ in seen]).reshape(24, -1), axis=0)) == 23
    for images, labels in seen:  # the replacement has its own label, and bright pictures are of class 0
        np.testing.assert_array_equal(images.mean((1, 2, 3)) < 0.5, labels)
    memory = data.load(str(root), image_size=16, skip_broken=True)
    assert len(memory.train_images) == len(memory.train_labels) == 23
    assert len(memory.test_labels) == 11


def test_the_command_names_a_broken_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = make_folder(tmp_path / "pictures", broken="train/bright/002.jpg")
    done = invoke(capsys, train, "--dataset", root, *FLAGS, "--epochs", "1", "--workers", "1")
    assert_one_message(done, "train/bright/002.jpg")
    done = invoke(capsys, train, "--dataset", root, *FLAGS, "--epochs", "1", "--workers", "0", "--skip-broken")
    assert done.code == 0, done.err


def test_what_is_decoded_already_is_not_streamed():
    with pytest.raises(InputError, match="digits is no folder of images or TFDS name and cannot be streamed"):
        data.load("digits", stream="always")


def test_large_sets_are_streamed_by_themselves(folder, monkeypatch, caplog):
    monkeypatch.setattr("jaxslim.data.loading.memory", lambda: 4 * 36 * 16 * 16 * 3 - 1)
    with caplog.at_level("INFO", logger="jaxslim"):
        assert isinstance(data.load(str(folder), image_size=16, stream="auto").train_images, Streamed)
    assert "they are decoded while training" in caplog.text
    monkeypatch.setattr("jaxslim.data.loading.memory", lambda: 4 * 36 * 16 * 16 * 3)
    assert not isinstance(data.load(str(folder), image_size=16, stream="auto").train_images, Streamed)


# Runs


def start(folder: Path, where: Path, *more: str) -> Any:
    words = [sys.executable, "-m", "jaxslim", "train", "--dataset", str(folder), *FLAGS, "--workers", "2"]
    return subprocess.Popen([*words, "--workdir", str(where), *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def assert_finished(process: Any) -> None:
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


def digest(run: Path) -> str:
    found: str = jaxslim.load(run).meta["digest"]
    return found


def test_a_killed_run_leaves_no_workers_and_ends_as_an_undisturbed_one(folder, tmp_path):
    epochs = ("--epochs", "30")
    whole = start(folder, tmp_path / "whole", *epochs)
    assert_finished(whole)
    killed, rows = start(folder, tmp_path / "killed", *epochs), tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and len(rows.read_bytes().splitlines()) > 2) and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = [child for child in psutil.Process(killed.pid).children(recursive=True) if child.is_running()]
    assert workers
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    _gone, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert jaxslim.load(tmp_path / "killed").meta["epoch"] != 30
    again = start(folder, tmp_path / "killed", *epochs)
    assert_finished(again)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert rows.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_stopped_run_ends_its_workers_and_goes_on(folder, tmp_path):
    epochs = ("--epochs", "40")
    run, rows = start(folder, tmp_path / "run", *epochs), tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.stat().st_size):  # until it takes signals
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in errors
    assert b"goes on where it was" in errors
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
