"""Training runs: what they write, where they go on after an interruption, and what they refuse."""

import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

import jaxslim
from jaxslim import data
from jaxslim.data import sources
from jaxslim.errors import DivergedError, InputError, StoppedError
from jaxslim.experiments.cutting import save_cut
from jaxslim.experiments.finetuning import finetuning
from jaxslim.files import locked
from jaxslim.models import VGG
from jaxslim.models.registry import MODELS
from jaxslim.slim.criteria.scales import bn_scale_mask
from jaxslim.storage import checkpoint
from jaxslim.storage.history import steps_saved
from jaxslim.training import evaluation, feed, loop, saver
from jaxslim.training.config import TrainConfig, from_json
from jaxslim.training.loop import train
from jaxslim.training.optimizer import learning_rates, optimizer
from jaxslim.training.progress import Progress

EPOCHS, STEPS = 4, 6  # of `tiny`
ROW = {
    "epoch",
    "step",
    "loss",
    "train_accuracy",
    "learning_rate",
    "l1",
    "small_scales",
    "test_loss",
    "accuracy",
}


def write_data(path, *, classes=3, train=48, test=24):
    """An .npz of 8x8 grey images, each class a little brighter than the one before."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        noise = rng.integers(0, 128, (count, 8, 8, 1))
        arrays |= {f"{split}_images": (noise + labels[:, None, None, None] * 40).astype(np.uint8)}
        arrays |= {f"{split}_labels": labels}
    np.savez(path, **arrays)
    return str(path)


def tiny(folder, **changes) -> TrainConfig:
    """The configuration of a run in `folder`/run that takes a second."""
    folder.mkdir(exist_ok=True)
    if not (dataset := folder / "data.npz").exists():
        write_data(dataset)
    small = TrainConfig(
        name="tiny",
        workdir=str(folder / "run"),
        dataset=str(dataset),
        image_size=8,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        pad=1,
        model="vgg",
        model_args={"widths": (4, "M", 8)},
        epochs=EPOCHS,
        batch_size=8,
        eval_batch_size=24,
        l1=1e-3,
    )
    return dataclasses.replace(small, **changes)


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def contents(folder):
    """Every file below a folder with its content and time of change, to see that nothing was touched; locks aside."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def assert_same_arrays(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


def training_state(path):
    """Optimizer state and sums of a checkpoint of `tiny`."""
    _, variables, meta = checkpoint.load(path)
    config = from_json(meta["config"], "run")
    tx = optimizer(config, learning_rates(config, STEPS), bn_scale_mask(variables))
    like = (tx.init(variables["params"]), loop.Sums(*jax.numpy.zeros(3)))
    return checkpoint.restore_training(checkpoint.find(path), like)


def assert_same_run(one, other):
    """Equal bit for bit: the metrics file, variables, optimizer, and which epoch is the best."""
    assert (Path(one) / "metrics.jsonl").read_bytes() == (Path(other) / "metrics.jsonl").read_bytes()
    for name in ("latest", "best"):
        paths = [checkpoint.find(Path(folder) / name) for folder in (one, other)]
        assert paths[0].name == paths[1].name
        assert_same_arrays(*(checkpoint.load(path).variables for path in paths))
        assert_same_arrays(*(training_state(path) for path in paths))


def once(build):
    """`build`, with one result for all calls with equal arguments; where a run is written, makes no difference."""
    results = {}

    def built(config, *rest):
        fields = dataclasses.asdict(config) | {"name": "", "workdir": "", "dataset": ""}
        key = repr(fields), *(repr(item) if isinstance(item, dict) else item for item in rest)
        if key not in results:
            results[key] = build(config, *rest)
        return results[key]

    return built


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    """The many runs of one configuration share their compiled steps, whose makers get all that decides on them."""
    makers = ((loop, "learning_rates"), (loop, "optimizer"), (loop, "train_step"), (evaluation, "evaluate_step"))
    with pytest.MonkeyPatch.context() as patch:
        for module, name in makers:
            patch.setattr(module, name, once(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, and what it printed."""
    config = tiny(tmp_path_factory.mktemp("whole"))
    printed = types.SimpleNamespace(out=io.StringIO(), err=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", printed.out)
        patch.setattr(sys, "stderr", printed.err)
        result = train(config)
    return types.SimpleNamespace(config=config, folder=Path(config.folder), result=result, printed=printed)


# What a run writes


def test_a_row_for_each_epoch(whole):
    found = rows(whole.folder)
    assert [set(row) for row in found] == [ROW] * EPOCHS
    assert [row["epoch"] for row in found] == [1, 2, 3, 4]
    assert [row["step"] for row in found] == [6, 12, 18, 24]
    np.testing.assert_allclose([row["learning_rate"] for row in found], [0.1, 0.1, 0.01, 0.001], rtol=1e-6)
    assert all(0 < row["loss"] < 2 for row in found)
    assert all(row["train_accuracy"] * 48 == pytest.approx(round(row["train_accuracy"] * 48)) for row in found)
    assert found[-1]["loss"] < found[0]["loss"]
    assert whole.result.metrics == found[-1]
    assert whole.result.best == max(found, key=lambda row: (row["accuracy"], row["epoch"]))


def test_rows_tell_the_truth_about_their_checkpoint(whole):
    module, variables, meta = checkpoint.load(whole.folder / "latest")
    row = meta["metrics"]
    assert row == rows(whole.folder)[-1]
    images = data.load(whole.config.dataset, image_size=8, channels=1)
    logits = module.apply(variables, (images.test_images / np.float32(255) - np.float32(0.5)) / np.float32(0.5))
    assert row["accuracy"] == np.mean(np.asarray(logits).argmax(-1) == images.test_labels)
    scales = np.concatenate([np.abs(variables["params"][name]["scale"]) for name in ("bn0", "bn1")])
    assert row["l1"] == pytest.approx(scales.sum())
    assert row["small_scales"] == np.mean(scales < 0.01)


def test_scales_are_summed_and_small_ones_counted(tmp_path):
    module = VGG((2, 3), 3)
    variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 8, 8, 1)))
    variables["params"]["bn0"]["scale"] = np.float32([-0.5, 0.0])
    variables["params"]["bn1"]["scale"] = np.float32([0.011, -0.009, 2.0])
    checkpoint.save(tmp_path / "start", module, variables)
    result = train(tiny(tmp_path, init_from=str(tmp_path / "start"), learning_rate=1e-30, epochs=1))
    assert result.metrics["l1"] == pytest.approx(2.52)
    assert result.metrics["small_scales"] == 2 / 5


def test_a_line_for_each_epoch_without_a_terminal(whole):
    lines = whole.printed.err.getvalue().splitlines()
    pattern = r"epoch {}/4  loss \d\.\d{{4}}  accuracy +\d+\.\d\d%  rate {}  scales under 0.01 +\d+\.\d%  \d+ images/s"
    assert len(lines) == EPOCHS
    for line, epoch, rate in zip(lines, (1, 2, 3, 4), ("0.1", "0.1", "0.01", "0.001"), strict=True):
        assert re.fullmatch(pattern.format(epoch, rate), line)


def test_a_large_run_saves_what_a_small_one_saves(tmp_path, monkeypatch):
    """One item after another, without a thread; and it goes on from an earlier checkpoint bit for bit."""
    small = Path(train(tiny(tmp_path / "small")).folder)
    monkeypatch.setattr(saver, "LARGE", 0)
    large = Path(train(config := tiny(tmp_path / "large")).folder)
    assert (large / "metrics.jsonl").read_bytes() == (small / "metrics.jsonl").read_bytes()
    shutil.rmtree(large / "checkpoints" / str(steps_saved(large)[-1]))
    assert train(config).metrics["epoch"] == EPOCHS
    digests = [checkpoint.load(folder).meta["digest"] for folder in (small, large)]
    assert digests[0] == digests[1]
    files = [sorted(str(file.relative_to(of)) for file in of.rglob("manifest.ocdbt")) for of in (small, large)]
    assert files[0] == files[1]


def test_bars_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    row = {"epoch": 2, "loss": 1.5, "accuracy": 0.25, "learning_rate": 0.1, "small_scales": 0.5}
    with Progress("tiny[red][/x]", 3, 1, 2, 64) as progress:
        for _ in range(3):  # a speed takes two times, and the bar shows what was known before
            progress.advance(1)
            time.sleep(0.01)
        progress.finish_epoch(row, 7.0)
    assert list(sources.track(range(2), "Decoding [/x]")) == [0, 1]
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stderr.getvalue())
    assert "epoch 2/3  loss 1.5000  accuracy  25.00%  rate 0.1  scales under 0.01  50.0%  7 images/s" in shown
    assert "Decoding [/x]" in shown
    assert re.search(r"tiny\[red\]\[/x\] .* 67% \d+:\d\d:\d\d left \d:\d\d:\d\d [\d,]+ images/s", shown)


def test_the_last_line_says_what_best_was_chosen_on(whole):
    best, latest = whole.result.best, whole.result.metrics
    first, line = whole.printed.out.getvalue().splitlines()
    assert first == f"tiny: 48 training and 24 test images of {whole.config.dataset}, 8x8x1, 3 classes; VGG on 1 x cpu"
    assert line.startswith(
        f"tiny: accuracy {latest['accuracy']:.2%} after epoch 4; best {best['accuracy']:.2%} after epoch "
        f"{best['epoch']}, chosen on the test set, as in the reference. Checkpoint"
    )
    assert str(whole.folder) in line


def test_best_is_chosen_on_held_out_images(tmp_path, capsys):
    result = train(tiny(tmp_path, holdout=0.25))
    assert "chosen on the 25% of the training images that are held out." in capsys.readouterr().out
    found = rows(result.folder)
    assert [set(row) for row in found] == [ROW | {"holdout_accuracy"}] * EPOCHS
    assert [row["step"] for row in found] == [4, 8, 12, 16]  # 36 images are left: four batches
    assert result.best == max(found, key=lambda row: (row["holdout_accuracy"], row["epoch"]))
    _, variables, _ = checkpoint.load(result.folder / "best")
    images, *held = data.hold_out(data.load(str(tmp_path / "data.npz"), image_size=8, channels=1), 0.25, 0)
    module = checkpoint.load(result.folder / "best").module
    logits = module.apply(variables, (held[0] / np.float32(255) - 0.5) / 0.5)
    hits = np.asarray(logits).argmax(-1) == held[1]
    assert result.best["holdout_accuracy"] == hits.mean()
    assert len(images.train_labels) == 36


def test_a_checkpoint_says_where_it_comes_from(whole):
    meta = checkpoint.load(whole.folder).meta
    assert (meta["kind"], meta["epoch"], meta["step"], meta["parent"]) == ("sparse", 4, 24, None)
    assert from_json(meta["config"], "run") == whole.config
    assert meta["class_names"] == ["0", "1", "2"]
    assert meta["image_shape"] == [8, 8, 1]
    assert json.loads((whole.folder / "config.json").read_text()) == {"version": jaxslim.__version__, **meta["config"]}


def test_the_seed_decides_everything(tmp_path, whole):
    again = train(tiny(tmp_path / "again"))
    other = train(tiny(tmp_path / "other", seed=1))
    assert [row["loss"] for row in rows(again.folder)] == [row["loss"] for row in rows(whole.folder)]
    assert other.metrics["loss"] != whole.result.metrics["loss"]


TRAIN = "import sys, json; from jaxslim.training.config import TrainConfig; from jaxslim.training.loop import train; "
TRAIN += "train(TrainConfig(**json.loads(sys.argv[1])))"


def elsewhere(config, **environment):
    """Start training in a process of its own."""
    command = [sys.executable, "-c", TRAIN, json.dumps(dataclasses.asdict(config))]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


def test_nothing_that_ran_before_decides_anything(tmp_path, whole):
    """Equal digests after other work in this process, another run above all, and in a fresh one."""
    np.random.seed(5)
    other = {"seed": 5, "model_args": {"widths": (6, "M", 4)}, "batch_size": 12, "dtype": "bfloat16", "epochs": 1}
    train(tiny(tmp_path / "other", **other))
    again = train(tiny(tmp_path / "again"))
    fresh = tiny(tmp_path / "fresh")
    assert elsewhere(fresh, PYTHONHASHSEED="7").wait() == 0
    digests = {checkpoint.load(folder).meta["digest"] for folder in (whole.folder, again.folder, fresh.folder)}
    assert len(digests) == 1


def test_eight_devices_train_what_one_trains(tmp_path):
    one, eight = (tiny(tmp_path, workdir=str(tmp_path / name), epochs=1) for name in ("one", "eight"))
    train(one)
    assert elsewhere(eight, JAX_NUM_CPU_DEVICES="8").wait() == 0
    mine, theirs = (checkpoint.load(config.folder) for config in (one, eight))
    assert theirs.meta["metrics"]["accuracy"] == mine.meta["metrics"]["accuracy"]
    assert theirs.meta["digest"] != mine.meta["digest"]  # sums in another order: it was another number of devices
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), theirs.variables, mine.variables)


def events(folder):
    """Scalars of the TensorBoard files of a folder, by tag and step, read by the format itself."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in sorted(folder.iterdir()):
        raw = file.read_bytes()
        while raw:
            (size,) = struct.unpack("<Q", raw[:8])
            event = Event.FromString(raw[12 : 12 + size])
            raw = raw[12 + size + 4 :]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_files(tmp_path):
    result = train(tiny(tmp_path, tensorboard=True, epochs=2))
    found = events(result.folder / "tensorboard")
    expected = {(name, row["epoch"]): value for row in rows(result.folder) for name, value in row.items()}
    assert found == pytest.approx(expected, rel=1e-6)


# Going on


class Stop:
    """Stands in for a function and is interrupted, as by Ctrl-C, in place of call number `after` + 1."""

    def __init__(self, function, after):
        self.function, self.left = function, after

    def __call__(self, *args):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.function(*args)


def interrupt(monkeypatch, where, after):
    """Make training stop in a step, in an evaluation, or before saving."""
    if where == "save":
        stop = Stop(saver.Saver.save, after)
        monkeypatch.setattr(saver.Saver, "save", lambda *args: stop(*args))
    else:
        build = getattr(loop, where)
        monkeypatch.setattr(loop, where, lambda *args: Stop(build(*args), after))


@pytest.mark.parametrize(
    ("where", "after", "saved"),
    [
        ("train_step", 0, []),
        ("train_step", 5, []),
        ("train_step", 6, [6]),
        ("train_step", 20, [6, 12, 18]),
        ("evaluator", 1, [6]),
        ("save", 0, []),
        ("save", 3, [6, 12, 18]),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, whole, where, after, saved):
    config = tiny(tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, where, after)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    left = steps_saved(Path(config.folder))
    assert left[-2:] == saved[-2:]
    assert set(left) <= set(saved)
    train(config)
    assert_same_run(config.folder, whole.folder)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    config = tiny(tmp_path, epochs=12)
    process = elsewhere(config)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= 4) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = steps_saved(tmp_path / "run")
    assert 2 * STEPS <= stopped[-1] < 12 * STEPS  # the third may not be whole yet

    train(config)
    through = dataclasses.replace(config, workdir=str(tmp_path / "through"))
    train(through)
    assert_same_run(config.workdir, through.workdir)


def signal_at(monkeypatch, where, call, number):
    """Send this process a signal just before call number `call` of a step or an evaluation."""
    build, calls = getattr(loop, where), []

    def signalled(*args):
        function = build(*args)

        def run(*args):
            calls.append(args)
            if len(calls) == call:
                os.kill(os.getpid(), number)
            return function(*args)

        return run

    monkeypatch.setattr(loop, where, signalled)


@contextlib.contextmanager
def handled(number, handler):
    """With `handler` for a signal, whatever it was: where tests run in the background, SIGINT is ignored."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("where", "call", "step"), [("train_step", 9, 9), ("train_step", 12, 12), ("evaluator", 2, 12)]
)
def test_a_signal_saves_the_middle_of_an_epoch(tmp_path, monkeypatch, whole, where, call, step, number):
    """In a step, the last of an epoch too, and in an evaluation; what was begun counts once."""
    with monkeypatch.context() as patch, handled(number, signal.default_int_handler):
        signal_at(patch, where, call, number)
        with pytest.raises(StoppedError) as caught:
            train(tiny(tmp_path))
        assert (caught.value.signal, signal.getsignal(number)) == (number, signal.default_int_handler)
    saved = checkpoint.read_meta(checkpoint.find(tmp_path / "run" / "latest"))
    assert (saved["epoch"], saved["step"], "metrics" in saved) == (1, step, False)
    assert checkpoint.find(tmp_path / "run" / "best").name == "6"
    assert_same_run(train(tiny(tmp_path)).folder, whole.folder)
    assert steps_saved(tmp_path / "run") == steps_saved(whole.folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_so(tmp_path, monkeypatch, whole, number):
    with handled(number, signal.SIG_IGN):
        signal_at(monkeypatch, "train_step", 9, number)
        assert_same_run(train(tiny(tmp_path)).folder, whole.folder)


def test_checkpoints_of_some_epochs_only(tmp_path, monkeypatch, whole):
    """The same run with fewer checkpoints: undisturbed, stopped after an epoch that was not saved, and killed."""
    folders = [train(tiny(tmp_path / "undisturbed", save_every=3)).folder]
    for name, call in (("stopped", 9), ("stopped twice", 21)):
        with monkeypatch.context() as patch:
            signal_at(patch, "train_step", call, signal.SIGTERM)
            with pytest.raises(StoppedError):
                train(tiny(tmp_path / name, save_every=3))
        if name == "stopped twice":  # and the process ends before its state is looked at: back to epoch 3
            shutil.rmtree(tmp_path / name / "run" / "checkpoints" / "21")
        folders.append(train(tiny(tmp_path / name, save_every=3)).folder)
    for folder in folders:
        assert steps_saved(folder) == [18, 24]
        assert (folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
        assert_same_arrays(*(checkpoint.load(path / "latest").variables for path in (folder, whole.folder)))


def test_the_middle_of_anothers_first_epoch_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, "train_step", 3, signal.SIGTERM)
        with pytest.raises(StoppedError):
            train(tiny(tmp_path))
    assert steps_saved(tmp_path / "run") == [3]
    before = contents(tmp_path / "run")
    with pytest.raises(InputError, match=r"run holds another run \(l1 0.001 there, 0.01 here\); choose another"):
        train(tiny(tmp_path, l1=1e-2))
    assert contents(tmp_path / "run") == before


def test_a_damaged_middle_of_an_epoch_is_left_out(tmp_path, monkeypatch, whole, caplog):
    with monkeypatch.context() as patch:
        signal_at(patch, "train_step", 9, signal.SIGTERM)
        with pytest.raises(StoppedError):
            train(tiny(tmp_path))
    (tmp_path / "run" / "checkpoints" / "9" / "checksums.json").unlink()
    assert_same_run(train(tiny(tmp_path)).folder, whole.folder)
    assert "checkpoints/9 is damaged: its checksums.json is missing; going on from" in caplog.text


def test_a_middle_of_an_epoch_that_cannot_be_saved_leaves_the_one_before(tmp_path, monkeypatch, caplog):
    states = []
    for call, full in ((9, ()), (5, ("14",))):
        with monkeypatch.context() as patch:
            signal_at(patch, "train_step", call, signal.SIGTERM)
            disk_full_at(patch, *full)
            with pytest.raises(StoppedError) as caught:
                train(tiny(tmp_path, save_every=4))
        assert caught.value.saved == (not full)
        states.append(contents(tmp_path / "run" / "checkpoints"))
    assert "could not be saved: [Errno 28] No space left on device" in caplog.text
    assert states[0] == states[1]


def test_a_kill_while_a_finished_epoch_takes_the_place_of_its_middle(tmp_path, monkeypatch, whole):
    """A stop during the evaluation saves the step that the finished epoch is saved as."""
    rename = os.rename

    def killed(source, target):
        if Path(target).name == "12":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        signal_at(patch, "evaluator", 2, signal.SIGTERM)
        with pytest.raises(StoppedError):
            train(tiny(tmp_path))
    assert steps_saved(tmp_path / "run") == [6, 12]
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(tmp_path))
    assert 6 in steps_saved(tmp_path / "run")
    assert_same_run(train(tiny(tmp_path)).folder, whole.folder)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.folder.iterdir()}


def test_a_kill_before_anything_is_in_its_place(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Stop(os.replace, 0))
        patch.setattr(Path, "unlink", lambda *args, **options: None)  # a kill lets nobody tidy up
        with pytest.raises(KeyboardInterrupt):
            train(tiny(tmp_path))
    assert any(path.name.startswith(".unfinished-") for path in (tmp_path / "run").iterdir())
    assert_same_run(train(tiny(tmp_path)).folder, whole.folder)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.folder.iterdir()}


def swap(run):
    for old, new in (("18", "x"), ("24", "18"), ("x", "24")):
        (run / old).rename(run / new)


def link(run):
    (run / "24").rename(run.parent / "elsewhere")
    (run / "24").symlink_to(run.parent / "elsewhere")


BROKEN = {
    "no meta": (lambda run: shutil.rmtree(run / "24" / "meta"), "24", "its file meta/"),
    "no variables": (lambda run: shutil.rmtree(run / "24" / "variables"), "24", "its file variables/"),
    "a file": (lambda run: (shutil.rmtree(run / "24"), (run / "24").write_text("")), "24", "it is no folder"),
    "nothing": (lambda run: (shutil.rmtree(run / "24"), (run / "24").mkdir()), "24", "its checksums.json is missing"),
    "another's name": (lambda run: (run / "24").rename(run / "30"), "30", "it is the checkpoint of step 24"),
    "link": (link, "24", "it is a symbolic link"),
}


@pytest.mark.parametrize(("spoil", "name", "how"), BROKEN.values(), ids=BROKEN)
def test_a_checkpoint_that_is_broken_or_not_in_its_place(tmp_path, whole, caplog, spoil, name, how):
    shutil.copytree(whole.folder, tmp_path / "run")
    spoil(tmp_path / "run" / "checkpoints")
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / name):
        with pytest.raises(
            InputError, match=rf"checkpoints/{name} is damaged: {how}.*take \S+/checkpoints/18, which is"
        ):
            checkpoint.load(path)
    config = dataclasses.replace(whole.config, workdir=str(tmp_path / "run"))
    assert_same_run(train(config).folder, whole.folder)
    assert re.search(rf"checkpoints/{name} is damaged: {how}.*; going on from \S+/checkpoints/18", caplog.text)
    assert len(list((tmp_path / "run" / "checkpoints").glob(f"{name}.*.damaged"))) == 1


def test_two_checkpoints_in_each_others_place(tmp_path, whole):
    shutil.copytree(whole.folder, tmp_path / "run")
    swap(tmp_path / "run" / "checkpoints")
    message = "checkpoints/24 is damaged: it is the checkpoint of step 18; no other checkpoint of its run is whole"
    with pytest.raises(InputError, match=message):
        train(dataclasses.replace(whole.config, workdir=str(tmp_path / "run")))


def test_two_processes_in_one_folder(tmp_path, whole):
    config = tiny(tmp_path)
    with locked(tmp_path / "run"), pytest.raises(InputError, match="run is in use by another process;"):
        train(config)
    assert_same_run(train(config).folder, whole.folder)


def disk_full_at(monkeypatch, *names):
    write, tried = saver.write, []

    def full(path, *args, **how):
        tried.append(path.name)
        if path.name in names:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *args, **how)

    monkeypatch.setattr(saver, "write", full)
    return tried


def test_a_checkpoint_that_cannot_be_written_is_made_up_for_by_the_next(tmp_path, monkeypatch, whole, caplog):
    tried = disk_full_at(monkeypatch, "6", "12")
    assert_same_run(train(tiny(tmp_path)).folder, whole.folder)
    assert tried == ["6", "12", "18", "24"]
    assert caplog.text.count("A checkpoint could not be saved: [Errno 28] No space left on device:") == 2


def test_a_disk_without_room_for_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
    with pytest.raises(
        InputError, match=rf"{tmp_path}(/run)? has 0\.0 MB free and a checkpoint takes 0\.0 MB; make room"
    ):
        train(tiny(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_last_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    disk_full_at(monkeypatch, "24")
    with pytest.raises(OSError, match="No space left on device"):
        train(tiny(tmp_path))
    assert steps_saved(tmp_path / "run")[-1] == 18


def test_a_finished_run_is_left_as_it_is(whole, monkeypatch, capsys):
    before = contents(whole.folder)
    monkeypatch.setattr(data, "load", None)  # not even looked at
    assert train(whole.config) == whole.result
    assert contents(whole.folder) == before
    assert capsys.readouterr().out.startswith(f"{whole.folder} has all its 4 epochs.\ntiny: accuracy")


def test_a_run_may_move(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        interrupt(patch, "train_step", 13)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(tmp_path))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    moved = tiny(tmp_path, workdir=str(tmp_path / "moved"), name="moved", tensorboard=True)
    assert_same_run(train(moved).folder, whole.folder)


def test_a_run_goes_on_from_the_epoch_before_a_damaged_one(tmp_path, whole, caplog):
    shutil.copytree(whole.folder, tmp_path / "run")
    latest = tmp_path / "run" / "checkpoints" / "24"
    for file in (latest / "variables").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:5])
    advice = rf"take {tmp_path}/run/checkpoints/18, which is whole; training goes on from there by itself"
    with pytest.raises(InputError, match=rf"/24 is damaged: its file \S+ is missing or changed; {advice}"):
        checkpoint.load(tmp_path / "run")
    caplog.clear()
    assert_same_run(train(tiny(tmp_path, dataset=whole.config.dataset)).folder, whole.folder)
    (said,) = caplog.messages
    assert re.match(
        rf"{latest} is damaged: its file \S+ is missing or changed; going on from .*/checkpoints/18\.", said
    )
    assert [path.name.split(".")[0] for path in latest.parent.glob("*.damaged")] == ["24"]


def test_a_run_ends_alike_after_damage_to_older_checkpoints(tmp_path, monkeypatch, whole, caplog):
    older = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch:
        interrupt(patch, "train_step", 20)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(tmp_path))
    (older / "12" / "checksums.json").write_text("{")
    assert_same_run(train(tiny(tmp_path)).folder, whole.folder)
    assert [re.sub(r"\S+/|:.*;", "", said) for said in caplog.messages] == ["12 is damaged going on from 18."]
    assert [path.name.split(".")[0] for path in older.glob("*.damaged")] == ["12"]


# Folders


def test_the_run_of_another_configuration_is_refused(whole):
    before = contents(whole.folder)
    others = [
        ({"l1": 0.0}, "l1 0.001 there, 0.0 here"),
        ({"epochs": 5, "seed": 3}, "epochs 4 there, 5 here, seed 0 there, 3 here"),
        ({"model_args": {"widths": (4, 8)}}, "model_args {'widths': [4, 'M', 8]} there, {'widths': [4, 8]} here"),
        ({"init_from": "runs/x", "l1": 0.0}, "init_from None there, runs/x here, l1 0.001 there, 0.0 here"),
    ]
    for changes, what in others:
        with pytest.raises(InputError, match=re.escape(f"{whole.folder} holds another run ({what}); choose another")):
            train(dataclasses.replace(whole.config, **changes))
    assert contents(whole.folder) == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"run/notes.txt": "mine"}, "holds other files and no run; choose another --workdir."),
        ({"run": "mine"}, "holds other files and no run; choose another --workdir."),
        ({"run/config.json": "{"}, "config.json is not readable"),
    ],
)
def test_other_folders_are_refused(tmp_path, files, message):
    config = tiny(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        train(config)
    assert contents(tmp_path) == before


def test_a_run_that_saved_nothing_can_be_started_over(tmp_path):
    config = tiny(tmp_path, learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"No checkpoint was saved\.$"):
        train(config)
    assert train(dataclasses.replace(config, learning_rate=0.1, epochs=1)).metrics["epoch"] == 1


# Divergence


def test_a_diverged_run_says_where_it_was(tmp_path):
    with pytest.raises(
        DivergedError, match=r"diverged in epoch 1, step 2, at learning rate 1e\+30; lower --learning-rate"
    ):
        train(tiny(tmp_path, learning_rate=1e30))
    assert not steps_saved(tmp_path / "run")
    assert rows(tmp_path / "run") == []


def test_a_network_that_the_last_step_of_all_breaks_is_not_saved(tmp_path):
    """One step an epoch: its loss is that of the parameters before."""
    message = r"diverged in epoch 1, step 1, at learning rate 1e\+30;.*No checkpoint was saved"
    with pytest.raises(DivergedError, match=message):
        train(tiny(tmp_path, learning_rate=1e30, epochs=1, batch_size=48))
    assert not steps_saved(tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "step"), [(12, 14), (17, 18)], ids=["first step of an epoch", "last step of an epoch"]
)
def test_the_checkpoint_before_a_divergence_stays(tmp_path, monkeypatch, whole, number, step):
    """The step named is the first whose loss is not finite.

    Also where the parameters break in the last step, whose loss is still that of the parameters before."""
    build, made = loop.train_step, []

    def broken(*args):
        function = build(*args)

        def run(*args):
            state = function(*args)
            made.append(state)
            if len(made) == number + 1:
                state = state._replace(variables=jax.tree.map(lambda leaf: leaf * np.nan, state.variables))
            return state

        return run

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", broken)
        with pytest.raises(DivergedError) as caught:
            train(tiny(tmp_path))
    assert str(caught.value) == (
        f"The training diverged in epoch 3, step {step}, at learning rate 0.01; "
        "lower --learning-rate. The checkpoint of step 12 stays; give the new run another --name or "
        "--workdir."
    )
    assert checkpoint.find(tmp_path / "run" / "latest").name == "12"
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2]
    train(tiny(tmp_path))  # the break is gone
    assert_same_run(tmp_path / "run", whole.folder)


# Pulls on whole channels, and on scales of other norms


def test_group_lasso_empties_channels_and_goes_on_after_an_interruption(tmp_path, monkeypatch):
    pull = {"l1": 0.0, "group_lasso": 0.2, "group_lasso_growth": 0.5, "l1_method": "proximal", "epochs": 2}
    whole = train(tiny(tmp_path / "whole", **pull))
    with monkeypatch.context() as patch:
        interrupt(patch, "train_step", 8)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(tmp_path / "broken", **pull))
    again = train(tiny(tmp_path / "broken", **pull))
    assert_same_arrays(checkpoint.load(whole.folder).variables, checkpoint.load(again.folder).variables)
    _, variables, meta = checkpoint.load(whole.folder)
    assert meta["kind"] == "sparse"
    first, norm, second = (variables["params"][name] for name in ("conv0", "bn0", "conv1"))
    empty = np.asarray(norm["scale"] == 0)
    assert empty.sum() > 0
    for leaf in (first["kernel"], norm["bias"], np.swapaxes(second["kernel"], 2, 3)):
        assert not np.asarray(leaf)[..., empty].any()


class Normed(nn.Module):
    """Without BatchNorm; its scales are those of a LayerNorm, if it has one."""

    num_classes: int
    dtype: Any = np.float32
    norm: bool = True

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(6, name="one")(images.reshape(len(images), -1))
        x = nn.LayerNorm(name="norm")(x) if self.norm else x
        return nn.Dense(self.num_classes, name="two")(nn.relu(x))


def test_l1_pulls_on_other_scales_where_there_is_no_batch_norm(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "normed", Normed)
    own = {"model": "normed", "model_args": {}, "l1_method": "proximal", "epochs": 1}
    for name, l1 in (("free", 0.0), ("pulled", 1e3)):
        params = checkpoint.load(train(tiny(tmp_path / name, **own, l1=l1)).folder).variables["params"]
        assert bool(params["norm"]["scale"].any()) == (l1 == 0)
        assert params["one"]["kernel"].any()
    with pytest.raises(InputError) as caught:
        train(tiny(tmp_path / "none", **own | {"model_args": {"norm": False}}))
    assert str(caught.value) == "Normed has no scales that L1 could pull on; train it with group_lasso."
    emptied = train(tiny(tmp_path / "lasso", **own | {"model_args": {"norm": False}}, l1=0.0, group_lasso=1e3))
    params = checkpoint.load(emptied.folder).variables["params"]
    assert not params["one"]["kernel"].any()
    assert not params["two"]["kernel"].any()
    assert params["two"]["bias"].any()


# Fine-tuning


def test_fine_tuning_takes_the_network_from_the_checkpoint(tmp_path, whole):
    save_cut(whole.folder, tmp_path / "pruned", 0.5)
    source = checkpoint.load(tmp_path / "pruned")
    before = contents(tmp_path / "pruned")
    tune = {"init_from": str(tmp_path / "pruned"), "l1": 0.0, "epochs": 1}
    config = tiny(tmp_path, **tune, model_args={"widths": (99, "M", 99)}, learning_rate=1e-30)
    module, variables, meta = checkpoint.load(train(config).folder)
    assert module.widths == source.module.widths
    assert module.widths not in ((4, "M", 8), (99, "M", 99))
    assert_same_arrays(variables["params"], source.variables["params"])  # a rate of nothing: where it started
    assert meta["kind"] == "fine-tuned"
    assert meta["parent"]["path"] == str(tmp_path / "pruned")
    assert (meta["parent"]["kind"], meta["parent"]["plan"]) == ("pruned", source.meta["plan"])
    assert contents(tmp_path / "pruned") == before


def test_training_from_random_weights_is_dense_or_sparse(tmp_path):
    assert checkpoint.load(train(tiny(tmp_path, l1=0.0, epochs=1)).folder).meta["kind"] == "dense"


# What is refused before anything is written


class Devices:
    """As many as the batch of `tiny` cannot be split over."""

    size = 3


def test_a_batch_that_the_devices_cannot_share(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "device_mesh", Devices)
    with pytest.raises(InputError, match=r"A batch of 8 cannot be split over 3 devices; use --batch-size 6\."):
        train(tiny(tmp_path))
    assert not (tmp_path / "run").exists()


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    fix = "--tensorboard needs tensorboardX: pip install tensorboardX."
    with pytest.raises(InputError, match=re.escape(fix)):
        train(tiny(tmp_path, tensorboard=True))
    assert not (tmp_path / "run").exists()


REFUSED = {
    "batch": ({"batch_size": 49}, "A batch of 49 is larger than the training set of 48; use a smaller one."),
    "holdout": ({"holdout": 0.01}, "A holdout of 0.01 of 48 images leaves none on one side; give a share such as 0.1."),
    "batch after holdout": ({"holdout": 0.9}, "A batch of 8 is larger than the training set of 5; use a smaller one."),
    "poolings": (
        {"model_args": {}, "model": "vgg11"},
        "4 poolings shrink images of 8x8 pixels to nothing; use larger images",
    ),
    "data": ({"dataset": "/absent.npz"}, "There is no file or folder /absent.npz; check the path."),
    "init_from": ({"init_from": "/absent"}, "There is no checkpoint /absent; check the path."),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_run_cannot_start_with(tmp_path, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        train(tiny(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


FINETUNING = {
    "classes": ({"classes": 4}, {}, "tells 3 classes apart and {data} has 4; give the data set that it was trained on"),
    "channels": (
        {},
        {"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3},
        "cannot be applied to images of shape (8, 8, 3)",
    ),
    "poolings": (
        {},
        {"image_size": 1, "pad": 0},
        "1 poolings shrink images of 1x1 pixels to nothing; use larger images",
    ),
}


@pytest.mark.parametrize(("images", "changes", "message"), FINETUNING.values(), ids=FINETUNING)
def test_checkpoints_that_do_not_fit(tmp_path, whole, images, changes, message):
    path = write_data(tmp_path / "other.npz", **images)
    with pytest.raises(InputError, match=re.escape(message.format(data=path))):
        train(tiny(tmp_path, dataset=path, init_from=str(whole.folder), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    config = tiny(tmp_path)
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        train(config)


SHRINKS = {"progressive": 0.5, "progressive_steps": 2, "progressive_schedule": "linear"}


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    return train(tiny(tmp_path_factory.mktemp("shrunk"), **SHRINKS))


def test_a_run_cuts_its_network_in_steps(shrunk):
    """Of 12 channels 3 go before epoch 2 and 3 before epoch 3; the best epoch is one of the final size."""
    assert [row["to_cut"] for row in rows(shrunk.folder)] == [6, 3, 0, 0]
    assert checkpoint.find(shrunk.folder / "best").name in ("18", "24")
    loaded = checkpoint.load(shrunk.folder / "latest")
    assert sum(width for width in loaded.module.widths if width != "M") == 6
    assert loaded.meta["kind"] == "pruned"
    shapes = jax.tree.map(np.shape, loaded.module.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)))
    assert jax.tree.map(np.shape, loaded.variables) == shapes


@pytest.mark.parametrize("call", [3, 6, 9, 12, 15])
def test_a_run_that_shrinks_goes_on_where_it_was_stopped(tmp_path, monkeypatch, shrunk, call):
    """Before the first cut, at the ends of epochs, and between the cuts."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", counted(loop.train_step, call))
        with pytest.raises(StoppedError):
            train(tiny(tmp_path, **SHRINKS))
    assert steps_saved(tmp_path / "run")[-1] == call
    assert_same_run(train(tiny(tmp_path, **SHRINKS)).folder, shrunk.folder)


def test_fine_tuning_does_not_cut_again(shrunk):
    tuned = finetuning(shrunk.folder)
    assert (tuned.progressive, tuned.l1, tuned.epochs) == (0.0, 0.0, EPOCHS)


def test_more_channels_than_can_go_are_refused_before_the_training(tmp_path):
    with pytest.raises(InputError, match=r"A ratio of 0.95 cannot be met: .* the largest ratio is 0.8"):
        train(tiny(tmp_path, **SHRINKS | {"progressive": 0.95}))
    assert not (tmp_path / "run").exists()


def test_a_cut_network_is_cut_on_while_it_trains(tmp_path, shrunk):
    again = train(tiny(tmp_path, init_from=str(shrunk.folder), **SHRINKS))
    widths = checkpoint.load(shrunk.folder).module.widths
    total = sum(width for width in widths if width not in ("M", 1))  # a layer's last channel stays
    first, both = int(total * 0.25), int(total * 0.5)
    assert [row["to_cut"] for row in rows(again.folder)] == [both, both - first, 0, 0]
    with pytest.raises(InputError, match="progressive cuts between epochs, and there is 1; give at least 2 epochs"):
        train(tiny(tmp_path / "short", epochs=1, **SHRINKS))
    assert not (tmp_path / "short" / "run").exists()


# Moving averages, accumulated gradients, warm-up

AVERAGED: dict[str, Any] = {"ema": 0.9, "accumulate": 2, "warmup": 0.3, "schedule": "cosine", "optimizer": "adamw"}


def test_the_average_is_what_is_saved_and_tested(tmp_path, monkeypatch):
    """It is that of the variables after each step, worked out here again."""
    seen = []

    def recorded(build):
        def built(*args):
            step = build(*args)

            def run(*args):
                state = step(*args)
                seen.append(jax.device_get(state.variables))
                return state

            return run

        return built

    monkeypatch.setattr(loop, "train_step", recorded(loop.train_step))
    config = tiny(tmp_path, epochs=2, save_every=2, **AVERAGED)
    start = loop.build(config, None, loop.load(config))[1]
    done = train(config)
    average = jax.tree.map(np.float64, jax.device_get(start))
    for step, variables in enumerate(seen):
        decay = min(0.9, (1 + step) / (10 + step))
        average = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, average, variables)
    found = checkpoint.load(done.folder)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found.variables, average)
    assert found.meta["metrics"]["l1"] == pytest.approx(sum(abs(norm["scale"]).sum() for norm in _norms(average)))
    assert len(seen) == 2 * STEPS
    for number in range(0, len(seen), 2):  # the first of two batches makes no update
        before = start if number == 0 else seen[number - 1]
        assert_same_arrays(seen[number]["params"], before["params"])


def _norms(variables):
    return [layer for name, layer in variables["params"].items() if name.startswith("bn")]


@pytest.mark.parametrize("changes", [{}, SHRINKS], ids=["plain", "shrinking"])
@pytest.mark.parametrize("call", [3, 9, 12])
def test_an_averaged_run_goes_on_bit_for_bit(tmp_path, monkeypatch, call, changes):
    config = functools.partial(tiny, **AVERAGED | changes)
    whole = train(config(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", counted(loop.train_step, call))
        with pytest.raises(StoppedError):
            train(config(tmp_path / "stopped"))
    stopped = train(config(tmp_path / "stopped"))
    assert rows(stopped.folder) == rows(whole.folder)
    assert_same_arrays(checkpoint.load(stopped.folder).variables, checkpoint.load(whole.folder).variables)


def counted(build, call):
    """Steps that send SIGTERM in place of call number `call` of all of them."""
    numbers = iter(range(1, 100))

    def built(*args):
        function = build(*args)

        def step(*args):
            if next(numbers) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*args)

        return step

    return built


def test_the_average_is_what_is_cut(tmp_path):
    done = train(tiny(tmp_path, epochs=1, ema=0.5))
    pruned, _ = save_cut(done.folder, tmp_path / "cut", 0.5)
    assert_same_arrays(pruned.full, checkpoint.load(done.folder).variables)


def test_warmup_is_not_for_one_cycle(tmp_path):
    with pytest.raises(InputError, match="warmup is for step and cosine, since one-cycle rises by itself"):
        tiny(tmp_path, warmup=0.1, schedule="one-cycle")
