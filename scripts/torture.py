"""Kill training at random moments, damage what it saved, feed the readers rubbish and cut random networks: nothing is
lost, passes unseen or comes out wrong."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tyro

from jaxslim.commands.cli import run
from jaxslim.errors import InputError

EPOCHS = 12
PROPERTY = "tests/test_channels.py::test_invariants_hold_for_random_networks_and_plans"
CONFIG = """from jaxslim.training.config import TrainConfig

config = TrainConfig(
    dataset={data!r}, image_size=8, channels=1, mean=(0.5,), std=(0.5,), pad=1, widths=(4, "M", 8), epochs={epochs},
    batch_size=8, eval_batch_size=24, l1=1e-3, name="torture",
)
"""


class Failure(AssertionError):
    """Something was lost, or passed unseen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Torture training, checkpoints, readers and cutting; exits with 1 and says what went wrong if something does."""

    short: bool = False
    """A minute's worth, as the tests run it; this is what happens without --long, too."""
    long: bool = False
    """100 kills, 10,000 inputs and 2,000 networks, an hour's worth."""
    seed: int = 0
    """Of the moments, the damage, the inputs and the networks."""
    kills: int | None = None
    """Another number of kills."""
    inputs: int | None = None
    """Another number of inputs."""
    networks: int | None = None
    """Another number of networks."""


def main(argv: list[str]) -> None:
    """The command."""
    options = tyro.cli(Options, args=argv, prog="python scripts/torture.py")
    if options.short and options.long:
        raise InputError("--short and --long exclude each other; give one of them.")
    kills = options.kills if options.kills is not None else 100 if options.long else 6
    inputs = options.inputs if options.inputs is not None else 10_000 if options.long else 200
    networks = options.networks if options.networks is not None else 2000 if options.long else 20
    if min(kills, inputs, networks, options.seed) < 0:
        raise InputError("--kills, --inputs, --networks and --seed must be at least 0.")
    if networks and not all(map(importlib.util.find_spec, ("pytest", "hypothesis"))):
        raise InputError('Drawing networks needs pytest and Hypothesis: pip install -e ".[dev]", or give --networks 0.')
    rng = np.random.default_rng(options.seed)
    logging.getLogger("jaxslim").setLevel(logging.ERROR)  # each damage is reported there
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = _write_config(folder)
            whole = folder / "whole"
            _finish(config, whole)
            print(f"kills survived: {_kill(config, whole, folder, kills, rng)}", flush=True)
            print(f"damages noticed: {_damage(whole, folder, rng)}", flush=True)
            print(f"damaged runs that went on as if nothing had happened: {_go_on(config, whole, folder)}", flush=True)
            for what, count in _feed(whole, folder, inputs, rng).items():
                print(f"inputs to the reader of {what}: {count}", flush=True)
            print(f"networks drawn without a broken invariant: {_draw(folder, networks, rng)}", flush=True)
    except Failure as error:
        print(f"torture: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _write_config(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 48), ("test", 24)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 128, (count, 8, 8, 1)) + labels[:, None, None, None] * 40
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    np.savez(folder / "data.npz", **arrays)
    config = folder / "config.py"
    config.write_text(CONFIG.format(data=str(folder / "data.npz"), epochs=EPOCHS))
    return config


def _start(config: Path, run_folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxslim.train", str(config), "--workdir", str(run_folder)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, it would ignore it
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def _progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{what}: {done}/{total}", end="\r" if done < total else "\n", file=sys.stderr, flush=True)


def _finish(config: Path, run_folder: Path) -> None:
    process = _start(config, run_folder)
    _, said = process.communicate()
    if process.returncode:
        raise Failure(f"training ended with {process.returncode}: {said}")


# Kills


def _kill(config: Path, whole: Path, folder: Path, number: int, rng: np.random.Generator) -> int:
    """Start training again and again, end it at a random moment, and compare each run that gets through."""
    survived, runs = 0, 0
    while survived < number:
        runs += 1
        victim = folder / f"victim{runs}"
        while survived < number:
            process = _start(config, victim)
            how = signal.SIGKILL if rng.random() < 0.8 else signal.SIGTERM if rng.random() < 0.5 else signal.SIGINT
            reached = len(_lines(victim / "metrics.jsonl"))
            more = rng.integers(0, 4)  # epochs, from none at all: while it starts
            deadline = time.monotonic() + 120
            while process.poll() is None and len(_lines(victim / "metrics.jsonl")) < reached + more:
                if time.monotonic() > deadline:
                    raise Failure(f"training has not got beyond epoch {reached} of {victim} in two minutes")
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.1) if more else rng.uniform(0, 3))
            process.send_signal(how)
            _, said = process.communicate()
            if process.returncode == 0:
                break
            if process.returncode not in (-how, 128 + how):
                raise Failure(f"signal {how} ended training with {process.returncode}: {said}")
            survived += 1
            _progress("kills", survived, number)
        _finish(config, victim)
        _compare(victim, whole)
        shutil.rmtree(victim)
    return survived


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.exists() else []


def _compare(one: Path, other: Path) -> None:
    """Equal bit for bit: the metrics file, and the latest and the best checkpoint."""
    from jaxslim.storage import checkpoint

    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        raise Failure(f"the metrics of {one} differ from those of an undisturbed run")
    for which in ("latest", "best"):
        mine, theirs = (checkpoint.load(run_folder / which).meta for run_folder in (one, other))
        if (mine["digest"], mine["epoch"], mine["metrics"]) != (theirs["digest"], theirs["epoch"], theirs["metrics"]):
            raise Failure(f"{one}/{which} differs from that of an undisturbed run")
    if rests := list(one.rglob(".unfinished*")):
        raise Failure(f"{rests[0]} was left over")


# Damage


def _damages(whole: Path, copy: Path, rng: np.random.Generator) -> Iterator[str]:
    """Copies of a checkpoint with a file flipped, cut, deleted, swapped or added, or a folder deleted; its name."""
    files = [file for file in sorted(whole.rglob("*")) if file.is_file() and file.stat().st_size]
    for file in files:
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        other = files[(files.index(file) + 1) % len(files)].read_bytes()
        for changed in (bytes(flipped), content[: rng.integers(len(content))], None, other):
            if changed == content:
                continue
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            broken = copy / file.relative_to(whole)
            broken.unlink()
            if changed is not None:
                broken.write_bytes(changed)
            yield file.relative_to(whole).as_posix()
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
        added = file.relative_to(whole).with_name("added")
        (copy / added).write_bytes(content)
        yield added.as_posix()
    for place in sorted(path for path in whole.rglob("*") if path.is_dir()):
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
        shutil.rmtree(copy / place.relative_to(whole))
        yield f"{place.relative_to(whole).as_posix()}/"


def _damage(whole: Path, folder: Path, rng: np.random.Generator) -> int:
    from jaxslim.storage import checkpoint

    noticed = 0
    for name in _damages(checkpoint.find(whole), folder / "copy", rng):
        fault = checkpoint.damage(folder / "copy")
        named = fault is not None and (name == "checksums.json" or name in fault)
        if not named:
            raise Failure(f"damage to {name} of a checkpoint was answered with {fault!r}")
        noticed += 1
    return noticed


def _go_on(config: Path, whole: Path, folder: Path) -> int:
    """Damage the latest checkpoint of a run; training falls back to one before and ends alike."""

    def replace(latest: Path) -> None:
        shutil.rmtree(latest)
        shutil.copytree(latest.with_name(str(EPOCHS - 1)), latest)

    ways: list[Callable[[Path], object]] = [
        lambda latest: (latest / "checksums.json").write_text("{"),
        lambda latest: shutil.rmtree(latest / "meta"),
        replace,
    ]
    for number, spoil in enumerate(ways):
        victim = folder / f"damaged{number}"
        shutil.copytree(whole, victim)
        spoil(victim / "checkpoints" / str(EPOCHS))
        _finish(config, victim)
        _compare(victim, whole)
    return len(ways)


# Rubbish


def _feed(whole: Path, folder: Path, number: int, rng: np.random.Generator) -> dict[str, int]:
    """Give every reader of files and words from outside damaged input; only documented errors may come of it."""
    from PIL import Image

    from jaxslim import data
    from jaxslim.commands import train
    from jaxslim.storage import checkpoint
    from jaxslim.storage.integrity import seal

    network = folder / "fed"
    shutil.copytree(checkpoint.find(whole), network)
    meta = next(file for file in (network / "meta").iterdir() if file.read_bytes().startswith(b"{"))
    for place in ("train/a", "test/a"):
        (folder / "images" / place).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "images" / place / "0.png")
    picture = folder / "images" / "train" / "a" / "0.png"
    archive = folder / "fed.npz"
    originals = {file: file.read_bytes() for file in (meta, network / "checksums.json", picture)}
    originals[archive] = (folder / "data.npz").read_bytes()
    words = json.loads(originals[meta])["config"]

    def sealed() -> None:
        seal(network)
        checkpoint.load(network)

    def options() -> None:
        names = [f"--{name.replace('_', '-')}" for name in words]
        values = ["", "-1", "nan", "1e999", "x", "M", "0", "[]", "\u2603", "9" * 30, "None", "True"]
        argv = [str(rng.choice([*names, *values])) for _ in range(rng.integers(1, 5))]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            _only_parse(train, argv)

    readers: dict[str, tuple[Path | None, Callable[[], Any]]] = {
        "checkpoint metadata": (meta, sealed),
        "checksums": (network / "checksums.json", lambda: checkpoint.load(network)),
        ".npz": (archive, lambda: data.load(str(archive), image_size=8, channels=1)),
        "image folders": (picture, lambda: data.load(str(folder / "images"), image_size=8, channels=1)),
        "options": (None, options),
    }
    counts = dict.fromkeys(readers, 0)
    for turn in range(number):
        name = list(readers)[turn % len(readers)]
        file, read = readers[name]
        if file is not None:
            file.write_bytes(_spoilt(originals[file], rng))
        try:
            with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache")):
                read()
        except InputError:
            pass
        except SystemExit as error:
            if error.code not in (0, 2):
                raise Failure(f"{name} ended with {error.code}") from error
        except BaseException as error:
            kept = Path(tempfile.mkdtemp(prefix="torture-"))
            if file is not None:
                shutil.copy(file, kept)
            raise Failure(f"the reader of {name} raised {type(error).__name__}: {error} (input in {kept})") from error
        finally:
            if file is not None:
                file.write_bytes(originals[file])
        counts[name] += 1
        _progress("inputs", turn + 1, number)
    return counts


def _only_parse(train: Any, argv: list[str]) -> None:
    from jaxslim.training import loop

    before, loop.train = loop.train, lambda config: None  # type: ignore[assignment, return-value]
    try:
        train.main(argv)
    finally:
        loop.train = before


def _spoilt(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with a few bytes changed, a piece taken out, put in twice, or cut off."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        start, length = rng.integers(len(changed) + 1), rng.integers(1, 20)
        how = rng.integers(5)
        if how == 0 and changed:
            changed[start % len(changed)] = rng.integers(256)
        elif how == 1:
            del changed[start : start + length]
        elif how == 2:
            changed[start:start] = changed[start : start + length]
        elif how == 3:
            changed[start : start + length] = rng.bytes(int(length))
        else:
            changed[start:start] = str(rng.choice(["9" * 15, "-1", "null", "[]", '""', "1e400"])).encode()
    return bytes(changed)


# Networks


def _draw(folder: Path, number: int, rng: np.random.Generator) -> int:
    """Draw networks and plans in the property test, up to 100 a process, since each leaves compiled code behind."""
    drawn = 0
    while drawn < number:
        environment = {
            **os.environ,
            "HYPOTHESIS_PROFILE": "thorough",
            "HYPOTHESIS_EXAMPLES": str(min(100, number - drawn)),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-show-statistics"]
        command += [f"--hypothesis-seed={rng.integers(2**31)}", PROPERTY]
        root, pipe = Path(__file__).parents[1], subprocess.PIPE
        done = subprocess.run(command, cwd=root, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        passed = sum(map(int, re.findall(r"- (\d+) passing", done.stdout)))
        if done.returncode or not passed:
            raise Failure(f"`{' '.join(command)}` ended with {done.returncode}: {done.stdout}")
        drawn += passed
        _progress("networks", drawn, number)
    return drawn


if __name__ == "__main__":
    run(main, sys.argv[1:])
