"""Torture jaxslim: kill training, damage what it saved, feed the readers rubbish and cut random networks."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torture_readers
from PIL import Image

from jaxslim.commands.arguments import parse
from jaxslim.commands.cli import run, start_jax
from jaxslim.experiments.configs import load_config
from jaxslim.storage import checkpoint, history
from jaxslim.training.loop import train

PROPERTIES = (
    "tests/test_graph.py::test_invariants_hold_for_random_networks_and_plans",
    "tests/test_narrow.py::test_cut_programs_are_the_masked_network",
)
CONFIG = """from jaxslim.training.config import TrainConfig

config = TrainConfig(
    dataset={data!r}, image_size=8, channels=1, mean=(0.5,), std=(0.5,), pad=1, model="vgg", {how}
    model_args={{"widths": (4, "M", 8)}}, epochs=12, batch_size=8, eval_batch_size=24, l1=1e-3, name="torture",
)
"""
STREAMED = 'stream="always", workers=2, augment=("resized-crop", "flip"),'
EXAMPLES = ("python scripts/torture.py", "python scripts/torture.py --kills 20 --networks 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Torture training, checkpoints, readers and cutting. Exits with 1 and says what went wrong, if anything did."""

    short: bool = False
    """In about a minute. This is the default."""
    long: bool = False
    """100 kills, 10,000 inputs and 2,000 networks, in about an hour."""
    seed: int = 0
    """Seed of the moments, the damage, the inputs and the networks."""
    kills: int = 6
    """Number of kills."""
    inputs: int = 200
    """Number of inputs."""
    networks: int = 20
    """Number of networks."""


def main(argv: list[str]) -> None:
    """The command."""
    default = Options(kills=100, inputs=10_000, networks=2000) if "--long" in argv else Options()
    options = parse(Options, argv, prog="python scripts/torture.py", examples=EXAMPLES, default=default)
    start_jax()
    rng = np.random.default_rng(options.seed)
    logging.getLogger("jaxslim").setLevel(logging.ERROR)  # each damage is reported there
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background would have it ignored
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config, whole = write_config(folder), folder / "whole"
            finish(config, whole)
            print(f"kills survived: {kill(config, whole, folder, options.kills, rng)}", flush=True)
            streamed, undisturbed = write_stream(folder), folder / "streamed"
            finish(streamed, undisturbed)
            count = kill(streamed, undisturbed, folder, -(-options.kills // 2), rng)
            print(f"kills of a run that streams pictures survived: {count}", flush=True)
            print(f"damages noticed: {damage(whole, folder, rng)}", flush=True)
            print(f"damaged runs that went on as if nothing had happened: {go_on(config, whole, folder)}", flush=True)
            for reader, count in torture_readers.feed(config, whole, folder, options.inputs, rng).items():
                print(f"inputs to the reader of {reader}: {count}", flush=True)
            shares = (options.networks - options.networks // 2, options.networks // 2)
            drawn = [draw(test, folder, share, rng) for test, share in zip(PROPERTIES, shares, strict=True)]
            print(f"networks drawn without a broken invariant: {sum(drawn)}", flush=True)
    except AssertionError as error:
        raise SystemExit(f"torture: {error}") from None


def write_config(folder: Path) -> Path:
    """Write a small data set and the configuration of a run on it, and return the configuration's file."""
    labels, config = np.arange(72) % 3, folder / "config.py"
    pixels = np.random.default_rng(0).integers(0, 128, (72, 8, 8, 1)) + 40 * labels[:, None, None, None]
    train, test = np.split(pixels.astype(np.uint8), [48])
    np.savez(
        folder / "data.npz", train_images=train, test_images=test, train_labels=labels[:48], test_labels=labels[48:]
    )
    config.write_text(CONFIG.format(data=str(folder / "data.npz"), how=""))
    return config


def write_stream(folder: Path) -> Path:
    """Write the same images as files, and the configuration of a run that streams them; return its file."""
    arrays, config = np.load(folder / "data.npz"), folder / "streamed.py"
    for split in ("train", "test"):
        pairs = zip(arrays[f"{split}_images"], arrays[f"{split}_labels"], strict=True)
        for number, (pixels, label) in enumerate(pairs):
            place = folder / "pictures" / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[..., 0]).save(place / f"{number}.png")
    config.write_text(CONFIG.format(data=str(folder / "pictures"), how=STREAMED))
    return config


def start(config: Path, run_folder: Path) -> subprocess.Popen:
    """Start training in a process of its own."""
    command = [sys.executable, "-m", "jaxslim.train", str(config), "--workdir", str(run_folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(config: Path, run_folder: Path) -> None:
    """Train to the end, in this process, which need not start first."""
    silence, said = contextlib.redirect_stdout(io.StringIO()), io.StringIO()
    try:
        with silence, contextlib.redirect_stderr(said):
            train(dataclasses.replace(load_config(str(config)), workdir=str(run_folder)))
    except Exception as error:
        raise AssertionError(f"training ended with {type(error).__name__}: {error} {said.getvalue()}") from error


def kill(config: Path, whole: Path, folder: Path, number: int, rng: np.random.Generator) -> int:
    """Kill training at random moments, again and again, and compare each run that gets through with `whole`."""
    killed, victim = 0, folder / "victim"
    while killed < number:
        while killed < number and _kill_once(config, victim, rng):
            killed += 1
        finish(config, victim)
        compare(victim, whole)
        shutil.rmtree(victim)
    return killed


def _kill_once(config: Path, victim: Path, rng: np.random.Generator) -> bool:
    """Start or continue a run and send it a signal; whether the signal came before the run had ended."""

    def epochs() -> int:
        file = victim / "metrics.jsonl"
        return len(file.read_bytes().splitlines()) if file.exists() else 0

    sent = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], p=[0.8, 0.1, 0.1])
    more = rng.integers(0, 4)  # epochs to wait for; with none, the signal comes while training starts
    wanted, deadline = epochs() + more, time.monotonic() + 120
    process = start(config, victim)
    while process.poll() is None and epochs() < wanted:
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"training took over two minutes to finish epoch {wanted}")
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1 if more else 3))
    process.send_signal(sent)
    _, said = process.communicate()
    if process.returncode not in (0, -sent, 128 + sent):
        raise AssertionError(f"signal {sent} ended training with {process.returncode}: {said}")
    return process.returncode != 0


def compare(one: Path, other: Path) -> None:
    """Fail unless two runs are equal bit for bit: their metrics files, and their latest and best checkpoints."""
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        raise AssertionError(f"the metrics of {one} differ from those of an undisturbed run")
    for which in ("latest", "best"):
        mine, theirs = (checkpoint.load(run_folder / which).meta for run_folder in (one, other))
        if any(mine[name] != theirs[name] for name in ("digest", "step", "epoch", "metrics")):
            raise AssertionError(f"{one}/{which} differs from that of an undisturbed run")
    if rests := list(one.rglob(".unfinished*")):
        raise AssertionError(f"{rests[0]} was left over")


def damage(whole: Path, folder: Path, rng: np.random.Generator) -> int:
    """Flip, cut, swap, delete and add each file of a checkpoint, and delete each folder; every damage must be named."""
    path, copy = checkpoint.find(whole), folder / "copy"
    places = sorted(place.relative_to(path) for place in path.rglob("*"))
    contents = {place: (path / place).read_bytes() for place in places if (path / place).is_file()}
    damages: list[tuple[Path, bytes | None]] = [(place, None) for place in places]
    for (place, content), other in zip(contents.items(), reversed(contents.values()), strict=True):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        damages += [(place, bytes(flipped)), (place, content[: rng.integers(len(content))])]
        damages += [(place, other)] * (other != content) + [(place.with_name("added"), content)]
    for place, changed in damages:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        name = place.as_posix() + "/" * (copy / place).is_dir()
        if changed is not None:
            (copy / place).write_bytes(changed)
        elif (copy / place).is_dir():
            shutil.rmtree(copy / place)
        else:
            (copy / place).unlink()
        fault = checkpoint.fault(copy)
        if fault is None or (name not in fault and name != "checksums.json"):
            raise AssertionError(f"damage to {name} of a checkpoint was answered with {fault!r}")
    return len(damages)


def go_on(config: Path, whole: Path, folder: Path) -> int:
    """Damage the latest checkpoint of a run; training falls back to the one before and ends alike."""
    before, latest = (history.step_folder(Path(), step) for step in history.steps_saved(whole)[-2:])
    spoiled = ("checksums.json", "meta", "")
    for number, name in enumerate(spoiled):
        victim = shutil.copytree(whole, folder / f"damaged{number}")
        place = victim / latest / name
        if place.is_file():
            place.write_text("{")
        else:
            shutil.rmtree(place)
        if not name:
            shutil.copytree(victim / before, place)
        finish(config, victim)
        compare(victim, whole)
    return len(spoiled)


def draw(test: str, folder: Path, number: int, rng: np.random.Generator) -> int:
    """Draw networks and plans in a property test, up to 100 a process, since each leaves compiled code behind."""
    drawn = 0
    while drawn < number:
        environment = {**os.environ, "HYPOTHESIS_PROFILE": "thorough", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        environment["HYPOTHESIS_EXAMPLES"] = str(min(100, number - drawn))
        environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-show-statistics"]
        command += [f"--hypothesis-seed={rng.integers(2**31)}", test]
        root, pipe = Path(__file__).parents[1], subprocess.PIPE
        done = subprocess.run(command, cwd=root, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        passed = sum(map(int, re.findall(r"- (\d+) passing", done.stdout)))
        if done.returncode or not passed:
            raise AssertionError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stdout}")
        drawn += passed
    return drawn


if __name__ == "__main__":
    run(main, sys.argv[1:])
