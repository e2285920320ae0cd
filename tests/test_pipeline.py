"""Processes that decode pictures: small, harmless to a user's script, ended with their parent, and named if killed."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny_tfds
from test_streams import FLAGS, assert_same, make_folder, mesh, taken

from jaxslim import data
from jaxslim.data import pipeline, tfds
from jaxslim.data.order import Rows
from jaxslim.errors import InputError
from jaxslim.training.feed import InMemory, Streaming

SCRIPT = """
import itertools, resource, sys, time
from jaxslim import data
from jaxslim.data import pipeline
from jaxslim.data.order import Rows
import numpy as np

images = data.load(sys.argv[1], image_size=int(sys.argv[2]), stream="always").train_images
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("started", flush=True)  # at the top level, without a guard against workers that run the script again
batches = pipeline.stream(images, Rows(np.arange(8000).reshape(-1, 8) % len(images)), 0, 1000, 2)
for _ in itertools.islice(batches, int(sys.argv[3])):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)
time.sleep(60)
"""

needs_shared_memory = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows its shared memory as files")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures"))


def streamed(folder: Path, size: int) -> Any:
    return data.load(str(folder), image_size=size, stream="always").train_images


def rows(steps: int, size: int = 2) -> Rows:
    return Rows(np.arange(steps * size).reshape(steps, size) % 24)


@contextlib.contextmanager
def script(where: Path, *words: Any) -> Any:
    """A script that streams some batches of 8 with two workers, and waits; its group of processes is its own.

    Yields the process, the kilobytes that streaming took there, and its children.
    """
    (where / "script.py").write_text(SCRIPT)
    command = [sys.executable, where / "script.py", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "started\n"
            grown = int(process.stdout.readline())
            yield process, grown, psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(folder, tmp_path, sent):
    """Killed, or interrupted at a terminal, which sends SIGINT to the workers too."""
    with script(tmp_path, folder, 16, 1) as (process, _, workers):
        assert len(workers) == 3  # two, and Python's tracker of shared memory
        (process.send_signal if sent == signal.SIGKILL else lambda number: os.killpg(process.pid, number))(sent)
        said, errors = process.communicate(timeout=60)
        _gone, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert said == ""
    assert errors.count("KeyboardInterrupt") == (sent == signal.SIGINT)


def test_a_stream_takes_little_memory(tmp_path):
    """Decoded, these 1,600 pictures would take 241 MB, and JAX takes 140 MB of a worker that loads it."""
    folder = make_folder(tmp_path / "pictures", train=1600)
    with script(tmp_path, folder, 224, 200) as (_process, grown, workers):
        assert grown < 120_000  # grain with it
        assert max(worker.memory_info().rss for worker in workers) < 120e6


@pytest.mark.parametrize("size", [8, 256])
def test_a_worker_that_is_killed_is_no_traceback(folder, size):
    batches = pipeline.stream(streamed(folder, size), rows(2000), 0, 2000, 2)
    next(batches)
    started = multiprocessing.active_children()
    assert len(started) == 2
    time.sleep(0.5)  # until they wait: shared memory of one killed at work would stay
    started[1].kill()
    with pytest.raises(InputError, match=r"^A process that decodes images was killed, .* use fewer"):
        list(batches)
    assert not any(process.is_alive() for process in started)


@needs_shared_memory
@pytest.mark.parametrize(("taken", "size"), [(1, 8), (1, 251), (12, 253)])
def test_processes_and_their_memory_end_with_their_batches(folder, taken, size):
    """After all, or some that were enough; at once."""
    assert shared(2 * size * size * 3) == 0
    with contextlib.closing(pipeline.stream(streamed(folder, size), rows(12), 0, 12, 2)) as batches:
        found = [*itertools.islice(batches, taken)]
        assert multiprocessing.active_children()
        time.sleep(0.3)  # until they have decoded what they may
        if taken == 1 and size != 8:  # small pictures go through a pipe
            assert shared(2 * size * size * 3)
    assert len(found) == taken
    assert multiprocessing.active_children() == []
    assert shared(2 * size * size * 3) == 0


def shared(size: int) -> int:
    """How many blocks of shared memory have this size, which no other test may use."""
    found = []
    for file in Path("/dev/shm").glob("psm_*"):
        with contextlib.suppress(FileNotFoundError):
            found.append(file.stat().st_size)
    return found.count(size)


def test_a_stream_that_nobody_closes_ends_with_its_script(folder, tmp_path):
    lines = [*SCRIPT.splitlines()[:10], "batches = pipeline.stream(images, Rows(np.zeros((99, 8), int)), 0, 99, 2)"]
    (tmp_path / "script.py").write_text("\n".join([*lines, "next(batches)"]))
    command = [sys.executable, tmp_path / "script.py", folder, "224"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_a_batch_travels_in_parts(folder):
    """Whatever its size; of pictures above a megabyte, one at a time."""
    for size, batch in ((600, 3), (256, 8), (8, 5)):
        images = streamed(folder, size)
        chosen = np.arange(2 * batch).reshape(2, batch)
        found = list(pipeline.stream(images, Rows(chosen), 0, 2, 0))
        for part, numbers in zip(found, chosen, strict=True):
            np.testing.assert_array_equal(part.images, np.asarray(images[numbers]))
            np.testing.assert_array_equal(part.numbers, numbers)


def test_little_shared_memory_takes_fewer_processes(folder, monkeypatch):
    images = streamed(folder, 64)
    expected = np.asarray(images[:2])
    for free, workers in ((10**9, 2), (64 * 64 * 3 * 2 * pipeline.AHEAD, 1), (1000, 0)):
        monkeypatch.setattr(pipeline, "_shared_memory", lambda free=free: free)
        with contextlib.closing(pipeline.stream(images, rows(9), 0, 9, 2)) as batches:
            np.testing.assert_array_equal(next(batches).images, expected)
            assert len(multiprocessing.active_children()) == workers


def test_a_stop_reaches_workers_too(folder, tmp_path):
    """Schedulers send SIGTERM to all processes of a job: the run ends its step and writes its checkpoint."""
    words = [sys.executable, "-m", "jaxslim", "train", "--dataset", folder, *FLAGS, "--workers", "2"]
    command = [*map(str, words), "--epochs", "400", "--workdir", str(tmp_path / "run")]
    rows_file = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as run:
        deadline = time.monotonic() + 120
        while not (rows_file.exists() and rows_file.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in errors
    assert b"goes on where it was" in errors


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_change_while_training(tmp_path, workers):
    """One that has gone is left out like a broken one, if that is asked for. A pipe is not waited for."""
    folder = make_folder(tmp_path / "pictures")
    file = folder / "train" / "bright" / "000.jpg"
    lazy = [data.load(str(folder), image_size=16, stream="always", workers=workers, skip_broken=s) for s in (0, 1)]
    strict, lenient = (Streaming(mesh(), each.train_images, each.train_labels, 24, 0, 1, False) for each in lazy)
    file.unlink()
    with pytest.raises(InputError, match=rf"The image {file} is gone; put it back. --skip-broken leaves"):
        taken(strict.batches(1))
    ((images, _),) = taken(lenient.batches(1))
    assert len(np.unique(images.reshape(24, -1), axis=0)) == 23
    os.mkfifo(file)
    for stream in (strict, lenient):
        with pytest.raises(InputError, match=rf"{file} is no regular file"):
            taken(stream.batches(1))
        stream.close()


def test_a_set_of_broken_pictures_is_refused(tmp_path):
    folder = make_folder(tmp_path / "pictures")
    lazy = data.load(str(folder), image_size=16, stream="always", workers=0, skip_broken=True)
    for file in folder.rglob("*.*"):
        file.write_bytes(b"x")
    stream = Streaming(mesh(), lazy.train_images, lazy.train_labels, 8, 0, 1, False)
    with pytest.raises(InputError, match=r"^None of 24 pictures can be decoded; the first says: Cannot decode the"):
        taken(stream.batches(1))


def encoded(size: int = 8) -> bytes:
    pixels = np.random.default_rng(size).integers(0, 256, (8, size, 3), np.uint8)
    return tiny_tfds.encoded(pixels)


def test_tfds_is_streamed(tmp_path, monkeypatch):
    """As from memory. No picture is decoded for the labels, which are read once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [(encoded(7 + row % 3), row % 10) for row in range(13)]
    tiny_tfds.write(tmp_path, {"train": images, "test": images[:3]})
    load = functools.partial(data.load, "cifar10", data_dir=str(tmp_path), image_size=8)
    whole, lazy = load(stream="never"), load(stream="always")
    for field in ("train_labels", "test_labels", "class_names"):
        np.testing.assert_array_equal(getattr(lazy, field), getattr(whole, field))
    assert whole.train_labels.tolist() == [row % 10 for row in range(13)]
    memory = InMemory(mesh(), whole.train_images, whole.train_labels, 4, 3)
    for workers in (0, 1):
        lazy.train_images.workers = workers
        stream = Streaming(mesh(), lazy.train_images, lazy.train_labels, 4, 3, 1, False)
        assert_same(taken(stream.batches(1)), taken(memory.batches(1)))
        stream.close()
    monkeypatch.setattr(tfds, "_examples", None)
    again = load(stream="always")
    np.testing.assert_array_equal(again.train_labels, whole.train_labels)


def test_a_disk_that_fails_breaks_no_picture(tmp_path, monkeypatch):
    """array_record tells no error number, so nothing that it says makes a picture a broken one, to be skipped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_tfds.write(tmp_path, {"train": [(encoded(), 0)] * 3, "test": [(encoded(), 0)]})
    lazy = data.load("cifar10", data_dir=str(tmp_path), image_size=8, stream="always", workers=1, skip_broken=True)
    for file in tmp_path.rglob("*array_record*"):
        file.rename(file.with_name("elsewhere"))
    stream = Streaming(mesh(), lazy.train_images, lazy.train_labels, 3, 0, 1, False)
    with pytest.raises(InputError, match=r"^Image \d of cifar10, train, in .* cannot be read \(.*check the disk"):
        taken(stream.batches(1))
    stream.close()


def test_a_split_of_tfds_is_added_to_the_training_images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = [(encoded(7 + row), row) for row in range(6)]
    tiny_tfds.write(tmp_path, {"train": images[:2], "test": images[2:3], "extra": images[3:]})
    load = functools.partial(data.load, data_dir=str(tmp_path), image_size=8)
    assert load("cifar10").train_labels.tolist() == [0, 1]
    whole = load("cifar10+extra")
    lazy = load("cifar10+extra", stream="always")
    assert whole.name == lazy.name == "cifar10+extra"
    assert whole.train_labels.tolist() == lazy.train_labels.tolist() == [0, 1, 3, 4, 5]
    assert whole.test_labels.tolist() == [2]
    np.testing.assert_array_equal(np.asarray(lazy.train_images), whole.train_images)
    for wrong in ("cifar10+test", "cifar10+more", "cifar10+extra+"):
        with pytest.raises(InputError, match=r"has no split '\w*' to add to train and test; it has besides: extra\."):
            load(wrong)


def test_a_broken_picture_of_tfds_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    good = encoded()
    tiny_tfds.write(tmp_path, {"train": [(good, 0), (good[:60], 1)], "test": [(good, 0)]})
    lazy = data.load("cifar10", data_dir=str(tmp_path), image_size=8, stream="always", workers=0)
    stream = Streaming(mesh(), lazy.train_images, lazy.train_labels, 2, 0, 1, False)
    with pytest.raises(InputError, match=r"^Image 1 of cifar10, train, in .* is damaged \(.*delete that folder"):
        taken(stream.batches(1))
