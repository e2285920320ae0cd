"""The mistakes that users make, in one table: what to do wrong, and how the message starts that it must give.

A command answers each with exit code 2 and one message of at most two lines that names the cause and the fix, never
with a traceback, and leaves all files as they are; a function raises `InputError` with such a message. The parts of the
table go by where the mistake is made: at the command line, in a config file, in the environment, in a data set from
outside, in a checkpoint or run that was damaged or edited, in a configuration and in a call from Python. In words and
messages, `{home}` is the folder with a finished run, `sparse`, and a network cut from it, `pruned`.
"""

import dataclasses
import fcntl
import importlib
import json
import math
import os
import re
import shlex
import shutil
import socket
import sys
import types
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image
from test_bad_input import edit_meta
from test_commands import flat, invoke
from test_data import break_image, empty_class, extra_class, link_file_out, records, save_tar
from test_loop import contents, tiny, write_data
from test_sweep import script

import jaxslim
from jaxslim.commands import evaluate
from jaxslim.commands import train as train_command
from jaxslim.errors import InputError
from jaxslim.storage import checkpoint
from jaxslim.storage.integrity import seal
from jaxslim.training import distributed as processes
from jaxslim.training import loop

prune_command = importlib.import_module("jaxslim.commands.prune")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config file, its finished run `sparse`, a network cut from it, and other files."""
    folder = tmp_path_factory.mktemp("home")
    config = tiny(folder, workdir=str(folder / "sparse"), epochs=2)
    fields = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(config).items())
    (folder / "config.py").write_text(
        f"from jaxslim.training.config import TrainConfig\nconfig = TrainConfig({fields})\n"
    )
    loop.train(config)
    prune_command.save_cut(folder / "sparse", folder / "pruned", 0.5)
    module, variables, _ = checkpoint.load(folder / "pruned")
    checkpoint.save(folder / "bare", module, variables)
    write_data(folder / "ten.npz", classes=10)
    return folder


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command line such as `prune sparse --ratio 0.5` in this process."""
    sweep = script("ratio_sweep")
    monkeypatch.setitem(sys.modules, "ratio_sweep", sweep)  # tyro looks for the comments in its source
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    commands = {"train": train_command, "prune": prune_command, "evaluate": evaluate, "sweep": sweep}

    def run(line):
        command, *words = shlex.split(line)
        return invoke(capsys, commands[command], *words)

    return run


def assert_refused(done, message):
    """Exit code 2 and one message, short and without a traceback, in a frame where the options cannot be parsed."""
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert not re.sub(r"(No CONFIG given: .*|.* has all its 2 epochs\.)\n", "", done.out)
    if "For full helptext" in done.err:
        assert message in flat(done.err), done.err
    else:
        assert flat(done.err).startswith(f"jaxslim: {message}"), done.err
        assert lines(done.err) <= 3


def lines(message):
    """How many a terminal of 100 columns shows, apart from commands on lines of their own and the folders of pytest."""
    short = re.sub(r"\S*/pytest-\d+/(popen-gw\d+/)?|x{99,}", "", message)
    return sum(math.ceil(len(line) / 100) for line in short.splitlines() if not line.startswith("  "))


# At the command line

NO_CHECKPOINT = "is not a checkpoint of jaxslim (no meta and variables in it) and not a run that has saved one; give a"
COMMAND_LINES = {
    "misspelt option": ("train --epoch 3", "Unrecognized options: --epoch, 3 Perhaps you meant: --epochs INT"),
    "value after a switch": ("train config.py --flip yes", "Unrecognized options: yes"),
    "two configs": ("train config.py config.py", "Unrecognized options: config.py"),
    "config after options": ("train --epochs 1 config.py", "The config comes before the options: python -m jaxslim.tr"),
    "absent config": ("train no.py", "There is no config file no.py; give a Python file such as configs/cifar10_spars"),
    "config of another kind": ("train data.npz", "There is no config file data.npz; give a Python file such as"),
    "folder as config": ("train sparse", "There is no config file sparse; give a Python file such as"),
    "no integer": ("train --epochs 2.5", "Error parsing --epochs: "),
    "no choice": (
        "train --model resnet18",
        "invalid choice 'resnet18' for argument '--model'. Expected one of ('vgg11'",
    ),
    "no epochs": ("train --epochs 0", "epochs is 0; it must be a number of at least 1."),
    "epochs as drops": ("train --lr-drops 80 120", "lr_drops is (80.0, 120.0); each must be a share of the run in (0"),
    "name that is a path": ("train config.py --name runs/a", "name is 'runs/a'; it must be a plain folder name"),
    "no convolution": ("train config.py --widths M", "widths ('M',) hold no convolution; give channel counts and"),
    "small images": (
        "train config.py --image-size 1",
        "1 poolings shrink images of 1 pixels to nothing; raise image_s",
    ),
    "colour without means": ("train config.py --channels 3", "mean has 1 numbers for 3 channels; give one a channel."),
    "misspelt data": (
        "train config.py --workdir new --dataset CIFAR10",
        "There is no data set called CIFAR10; did you m",
    ),
    "absent data": ("train config.py --workdir new --dataset ./no", "There is no file or folder ./no; check the path."),
    "no data": ("train config.py --workdir new --dataset ''", "The name of the data set is empty; give a name such as"),
    "text as data": (
        "train config.py --workdir new --dataset imdb_reviews",
        "imdb_reviews holds no labelled images; g",
    ),
    "source as data": (
        "train config.py --workdir new --dataset config.py",
        "config.py is no data set; give an image fol",
    ),
    "small holdout": (
        "train config.py --workdir new --holdout 0.001",
        "A holdout of 0.001 of 48 images leaves none on",
    ),
    "large batch": (
        "train config.py --workdir new --batch-size 49",
        "A batch of 49 is larger than the training set of ",
    ),
    "large images": (
        "train config.py --workdir new --image-size 100000",
        "48 images of 100000x100000x1 bytes take 447 ",
    ),
    "other channels": (
        "train config.py --workdir new --init-from pruned --channels 3 --mean 0 0 0 --std 1 1 1",
        "pruned sees 1 channels and the configuration has 3; use --channels 1, with as many numbers in --mean and",
    ),
    "other classes": (
        "train config.py --workdir new --init-from pruned --dataset ten.npz",
        "pruned tells 3 classes apart and ten.npz has 10; start from a checkpoint of the same data set.",
    ),
    "absent start": (
        "train config.py --workdir new --init-from no",
        "There is no checkpoint {home}/no; check the path.",
    ),
    "another run": ("train config.py --seed 1", "{home}/sparse holds another run (seed 0 there, 1 here); choose anoth"),
    "workdir of other files": (
        "train config.py --workdir .",
        "{home} holds other files and no run; choose another --w",
    ),
    "workdir below a file": ("train config.py --workdir data.npz/x", "{home}/data.npz/x: Not a directory. Check that"),
    "long workdir": (
        f"train config.py --workdir {'x' * 300}",
        "{home}/" + "x" * 300 + "/config.json: File name too lo",
    ),
    "no out": ("prune sparse --ratio 0.5", "Missing from jaxslim prune: --out STR"),
    "no ratio": ("prune sparse --out new", "Give either a ratio or a threshold, for example a ratio of 0.7."),
    "ties of a threshold": (
        "prune sparse --out new --threshold 0.1 --reference-ties",
        "reference_ties is a rule for a ratio; leave it out with a threshold.",
    ),
    "ratio and threshold": (
        "prune sparse --out new --ratio 0.5 --threshold 0.1",
        "Give either a ratio or a threshold, f",
    ),
    "per cent": ("prune sparse --out new --ratio 70", "The ratio is 70.0; it must lie in [0, 1): 0.7 cuts 70 % of the"),
    "per cent with a sign": ("prune sparse --out new --ratio 70%", "could not convert string to float: '70%'"),
    "everything": ("prune sparse --out new --ratio 0.99", "A ratio of 0.99 cannot be met: with min_channels=1 and the"),
    "nothing may go": ("prune sparse --out new --ratio 0.5 --leave bn0 bn1", "A ratio of 0.5 cannot be met: with min_"),
    "negative threshold": (
        "prune sparse --out new --threshold -1",
        "The threshold is -1.0; it must be a number of at le",
    ),
    "share of a layer": (
        "prune sparse --out new --ratio 0.5 --max-layer-ratio 0",
        "max_layer_ratio is 0.0; it must be a share in (0, 1], for example 0.5.",
    ),
    "no batches": (
        "prune sparse --out new --ratio 0.5 --recalibrate -1",
        "recalibrate is -1; it must be a number of batches, 0 or more.",
    ),
    "no such schedule": ("train config.py --workdir new --schedule linear", "invalid choice 'linear'"),
    "no such layer": (
        "prune sparse --out new --ratio 0.5 --leave conv0",
        "There is no layer conv0 to leave alone; the",
    ),
    "no channels": ("prune sparse --out new --ratio 0.5 --min-channels 0", "min_channels is 0; it must be at least 1."),
    "multiple of nothing": (
        "prune sparse --out new --ratio 0.5 --multiple-of 0",
        "multiple_of is 0; it must be at least",
    ),
    "out exists": (
        "prune sparse --out pruned --ratio 0.5",
        "pruned exists already and checkpoints are never overwritten",
    ),
    "out in a run": (
        "prune sparse --out sparse/checkpoints/9 --ratio 0.5",
        "{home}/sparse/checkpoints/9 lies among a r",
    ),
    "out below a file": (
        "prune sparse --out data.npz/x --ratio 0.5",
        "data.npz/x cannot be a folder, since a file is in its place; choose another --out.",
    ),
    "absent checkpoint": (
        "prune sparse/checkpoints/7 --out new --ratio 0.5",
        "There is no checkpoint {home}/sparse/chec",
    ),
    "file as checkpoint": ("prune data.npz --out new --ratio 0.5", "{home}/data.npz " + NO_CHECKPOINT),
    "no image shape": (
        "prune bare --out new --ratio 0.5",
        "{home}/bare does not name its images' shape; save it with m",
    ),
    "nothing to evaluate": ("evaluate", "Missing from jaxslim evaluate"),
    "two to evaluate": ("evaluate sparse pruned", "Unrecognized options: pruned"),
    "folder of checkpoints": ("evaluate sparse/checkpoints", "{home}/sparse/checkpoints " + NO_CHECKPOINT),
    "empty checkpoint": (
        "prune '' --out new --ratio 0.5",
        "The path of the checkpoint is empty; give a folder that jaxslim.train or",
    ),
    "data not prepared": (
        "train config.py --workdir new --dataset cifar100 --data-dir tfds",
        "cifar100 is not prepared in tfds. Preparing it needs TensorFlow once; training does not: pip install tensorfl",
    ),
    "no such name": ("evaluate sparse/newest", "There is no checkpoint {home}/sparse/newest; check the path."),
    "batch of none": ("evaluate sparse --batch-size 0", "batch_size is 0; it must be at least 1."),
    "no data folder": ("evaluate sparse --data-dir ''", "data_dir is empty; give a path, or leave it out."),
    "evaluated on others": (
        "evaluate sparse --dataset ten.npz",
        "sparse tells 3 classes apart and ten.npz has 10; give t",
    ),
    "no configuration": (
        "evaluate bare",
        "The checkpoint names no training configuration ('config'); jaxslim.train wri",
    ),
    "one ratio of a sweep": ("sweep sparse --ratios 1.0", "The ratio is 1.0; it must lie in [0, 1): 0.7 cuts 70 % of"),
    "ratios with commas": ("sweep sparse --ratios 0,0.5", "Error parsing --ratios: "),
    "no ratios": ("sweep sparse --ratios", "The ratios are []; give at least one, each once, for example 0 0.5 0.7."),
    "a ratio twice": (
        "sweep sparse --ratios 0.5 0.5",
        "The ratios are [0.5, 0.5]; give at least one, each once, for exa",
    ),
    "negative tuning": ("sweep sparse --finetune-epochs -1", "finetune_epochs is -1; it must be at least 0."),
    "many channels stay": (
        "sweep sparse --min-channels 5",
        "A ratio of 0.4 cannot be met: with min_channels=5 and the",
    ),
    "file as baseline": ("sweep sparse --baseline config.py", "{home}/config.py " + NO_CHECKPOINT),
    "file as report": (
        "sweep sparse --out data.npz",
        "data.npz cannot be a folder, since a file is in its place; choo",
    ),
    "run as report": ("sweep pruned --out sparse", "sparse holds a training run; choose another --out."),
    "sweep of nothing": (
        "sweep bare",
        "The checkpoint names no training configuration ('config'); jaxslim.train writes",
    ),
}


@pytest.mark.parametrize(("line", "message"), COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_at_the_command_line(call, home, monkeypatch, line, message):
    monkeypatch.chdir(home)
    before = contents(home)
    assert_refused(call(line), message.replace("{home}", str(home)))
    assert contents(home) == before
    assert not (home / "new").exists()


@pytest.mark.parametrize("line", ["sweep {home}/sparse", "prune {home}/sparse --ratio 0.5 --recalibrate 2"])
def test_out_where_nothing_can_be_written(call, home, tmp_path, monkeypatch, line):
    """As the system answers for a read-only mount, and for a folder of someone else."""
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != tmp_path)
    monkeypatch.setattr("jaxslim.storage.checkpoint.load", None)  # the work
    done = call(f"{line.format(home=home)} --out {tmp_path}/new")
    assert_refused(done, f"{tmp_path} cannot be written to; choose another --out.")
    assert not (tmp_path / "new").exists()


# In a config file: its text after the import of TrainConfig

CONFIG_FILES = {
    "no config": ("settings = TrainConfig()", "config.py defines no config; end it with `config = TrainConfig(...)`."),
    "a dict": ("config = dict(epochs=3)", "config.py defines no config; end it with `config = TrainConfig(...)`."),
    "the class": ("config = TrainConfig", "config.py defines no config; end it with `config = TrainConfig(...)`."),
    "misspelt field": (
        "config = TrainConfig(epoch=3)",
        "config.py does not run: TypeError: TrainConfig.__init__() got",
    ),
    "fields by order": (
        "config = TrainConfig('x')",
        "config.py does not run: TypeError: TrainConfig.__init__() takes 1",
    ),
    "syntax": (
        "config = TrainConfig(",
        "config.py does not run: SyntaxError: '(' was never closed (config.py, line 2)",
    ),
    "absent module": (
        "import nowhere",
        "config.py does not run: ModuleNotFoundError: No module named 'nowhere'. Corre",
    ),
    "absent file": (
        "open('no')",
        "config.py does not run: FileNotFoundError: [Errno 2] No such file or directory: 'no'",
    ),
    "endless": ("def f(): f()\nf()", "config.py does not run: RecursionError: maximum recursion depth exceeded"),
    "exit": (
        "raise SystemExit",
        "config.py does not run: SystemExit: SystemExit. Correct it; `python -m jaxslim.train --help` li",
    ),
    "zero bytes": (
        "\0",
        "config.py does not run: SyntaxError: source code string cannot contain null bytes. Correct it",
    ),
    "wrong value": ("config = TrainConfig(momentum=9)", "config.py: momentum is 9; it must lie in [0, 1)."),
}


@pytest.mark.parametrize(("text", "message"), CONFIG_FILES.values(), ids=CONFIG_FILES)
def test_in_a_config_file(call, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(f"from jaxslim.training.config import TrainConfig\n{text}\n")
    before = contents(tmp_path)
    assert_refused(call("train config.py"), message)
    assert contents(tmp_path) == before


# In the environment, where it describes several processes: the address of process 0; {port} is one that is taken

NO_ADDRESS = "it must be a host and a port from 1 to 65535, for example localhost:12345."
ADDRESSES = {
    "no port": ("foo", f"JAX_COORDINATOR_ADDRESS is 'foo'; {NO_ADDRESS}"),
    "no host": (":12345", f"JAX_COORDINATOR_ADDRESS is ':12345'; {NO_ADDRESS}"),
    "word as port": ("foo:bar", f"JAX_COORDINATOR_ADDRESS is 'foo:bar'; {NO_ADDRESS}"),
    "port 0": ("localhost:0", f"JAX_COORDINATOR_ADDRESS is 'localhost:0'; {NO_ADDRESS}"),
    "large port": ("localhost:65536", f"JAX_COORDINATOR_ADDRESS is 'localhost:65536'; {NO_ADDRESS}"),
    "two ports": ("localhost:22222:3", f"JAX_COORDINATOR_ADDRESS is 'localhost:22222:3'; {NO_ADDRESS}"),
    "bare IPv6": ("::1:22222", f"JAX_COORDINATOR_ADDRESS is '::1:22222'; {NO_ADDRESS}"),
    "URL": ("http://localhost:22222", f"JAX_COORDINATOR_ADDRESS is 'http://localhost:22222'; {NO_ADDRESS}"),
    "name of no host": ("no.invalid:22222", "The host no.invalid of JAX_COORDINATOR_ADDRESS cannot be found ("),
    "name of none": (f"{'x' * 99}:22222", f"The host {'x' * 99} of JAX_COORDINATOR_ADDRESS cannot be found ("),
    "taken port": ("localhost:{port}", "Process 0 cannot listen at the port {port} of JAX_COORDINATOR_ADDRESS ("),
}


@pytest.mark.parametrize(("address", "message"), ADDRESSES.values(), ids=ADDRESSES)
def test_in_the_environment(call, home, tmp_path, monkeypatch, address, message):
    monkeypatch.setattr(processes, "_PATIENCE", 0.5)
    monkeypatch.setattr(os, "_exit", sys.exit)  # by which a process among others ends
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address.format(port=port))
        before = contents(home)
        assert_refused(call(f"train {home}/config.py --workdir {tmp_path}/new"), message.format(port=port))
    assert contents(home) == before
    assert not (tmp_path / "new").exists()


# In a data set from outside: how to make it, and under which name


def npz(**changes):
    """data.npz with some arrays changed, or left out where None."""

    def make(folder):
        with np.load(write_data(folder / "data.npz")) as file:
            arrays = {name: array for name, array in {**file, **changes}.items() if array is not None}
        np.savez(folder / "data.npz", **arrays)

    return make


def photos(change):
    """Two classes of one image a split, changed."""

    def make(folder):
        for name in ("train/ant/1.png", "train/bee/1.png", "test/ant/1.png", "test/bee/1.png"):
            (folder / "photos" / name).parent.mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "photos" / name)
        change(folder / "photos")

    return make


def cifar(**changes):
    """The binary archive of CIFAR-10 with two images a file, some files changed, or left out where None."""

    def make(folder):
        names = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
        files = dict.fromkeys(names, records([[3], [4]], np.zeros((2, 32, 32, 3), np.uint8))) | changes
        save_tar(folder / "cifar.tar.gz", {f"{name}.bin": file for name, file in files.items() if file is not None})

    return make


def file_of(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder):
    cifar()(folder)
    (folder / "cifar.tar.gz").write_bytes((folder / "cifar.tar.gz").read_bytes()[:200])


DATA = {
    "floats": (
        "data.npz",
        npz(train_images=np.zeros((48, 8, 8, 1))),
        "train_images of data.npz is float64 of shape (4",
    ),
    "PyTorch's order": (
        "data.npz",
        npz(train_images=np.zeros((48, 5, 8, 8), np.uint8)),
        "train_images of data.npz is u",
    ),
    "flat images": (
        "data.npz",
        npz(test_images=np.zeros((24, 64), np.uint8)),
        "test_images of data.npz is uint8 of sh",
    ),
    "one label short": (
        "data.npz",
        npz(train_labels=np.zeros(47, int)),
        "data.npz has 48 train_images but 47 train_la",
    ),
    "one-hot labels": (
        "data.npz",
        npz(train_labels=np.eye(48, dtype=int)),
        "train_labels of data.npz is int64 of shap",
    ),
    "named labels": (
        "data.npz",
        npz(test_labels=np.array(["ant"] * 24)),
        "test_labels of data.npz is <U3 of shape (24",
    ),
    "labels below 0": (
        "data.npz",
        npz(train_labels=np.full(48, -1)),
        "data.npz has train labels from -1 to -1; number",
    ),
    "few class names": (
        "data.npz",
        npz(class_names=["a", "b"]),
        "data.npz has train labels from 0 to 2; number the cl",
    ),
    "class names as bytes": (
        "data.npz",
        npz(class_names=np.array([b"a"])),
        "class_names of data.npz is |S1 of shape (",
    ),
    "pickled names": (
        "data.npz",
        npz(class_names=np.array(["a"], object)),
        "class_names of data.npz is a pickled arra",
    ),
    "no test images": ("data.npz", npz(test_images=None), "data.npz lacks test_images; save it with numpy.savez(path"),
    "empty test set": (
        "data.npz",
        npz(test_images=np.zeros((0, 8, 8, 1), np.uint8), test_labels=np.zeros(0, int)),
        "data.npz has no images in its test split; training needs at least one in each.",
    ),
    "empty .npz": (
        "data.npz",
        file_of("data.npz", b""),
        "data.npz is no .npz archive, or it is damaged (File is not a z",
    ),
    "a single array": ("data.npy", file_of("data.npy", b"x"), "data.npy is no data set; give an image folder, an .npz"),
    "no train folder": (
        "photos",
        photos(lambda folder: shutil.rmtree(folder / "train")),
        "photos has no folder train;",
    ),
    "no test folder": (
        "photos",
        photos(lambda folder: shutil.rmtree(folder / "test")),
        "photos has no folder test (or",
    ),
    "no classes": ("photos/train", photos(lambda _: None), "photos/train has no folder train; lay images out as train"),
    "class without images": (
        "photos",
        photos(empty_class),
        "The class folder photos/test/cat has no .png, .jpg or .jp",
    ),
    "class in one split": ("photos", photos(extra_class), "photos: class cat is in test but not in train; both need"),
    "damaged image": ("photos", photos(break_image), "Cannot decode the image photos/train/bee/1.png: "),
    "link that leads out": (
        "photos",
        photos(link_file_out),
        "photos/train/bee/4.png is a symbolic link that leads out",
    ),
    "CIFAR in part": ("cifar.tar.gz", cifar(test_batch=None), "cifar.tar.gz lacks test_batch.bin; give the binary ver"),
    "CIFAR for Python": (
        "cifar.tar.gz",
        lambda folder: save_tar(folder / "cifar.tar.gz", {"data_batch_1": b"x"}),
        "cifar.tar.gz lacks data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, data_batch_4.bin, data_batch_5.bin, ",
    ),
    "CIFAR cut off": (
        "cifar.tar.gz",
        cifar(test_batch=bytes(99)),
        "test_batch.bin of cifar.tar.gz has 99 bytes, no mu",
    ),
    "CIFAR of 256 classes": ("cifar.tar.gz", cifar(test_batch=b"\xff" * 3073), "cifar.tar.gz has test labels from 255"),
    "archive cut short": ("cifar.tar.gz", cut_short, "cifar.tar.gz is no tar archive, or it is damaged ("),
}


@pytest.mark.parametrize(("name", "make", "message"), DATA.values(), ids=DATA)
def test_in_a_data_set(call, home, tmp_path, monkeypatch, name, make, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    before = contents(tmp_path)
    assert_refused(call(f"train {home}/config.py --workdir new --dataset {name}"), message)
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


# In a checkpoint that was damaged or edited: what happened to it


def meta(**changes):
    """Other values in the JSON, with checksums that fit."""
    return lambda folder: edit_meta(folder, lambda meta: meta.update(changes))


def change_byte(folder):
    file = max((file for file in (folder / "variables").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def half_meta(folder):
    file = folder / "meta" / "metadata"
    file.write_bytes(file.read_bytes()[:20])
    seal(folder)


def of_another_program(folder):
    (folder / "meta" / "metadata").write_text(json.dumps({"step": 1}))
    seal(folder)


VGG = "jaxslim.models.vgg.VGG"
CHECKPOINTS = {
    "changed byte": (change_byte, "{copy} is damaged: its file variables/"),
    "no checksums": (
        lambda folder: (folder / "checksums.json").unlink(),
        "{copy} is damaged: its checksums.json is miss",
    ),
    "bad checksums": (
        file_of("checksums.json", b"{"),
        "{copy} is damaged: its checksums.json cannot be read; take anot",
    ),
    "no variables": (lambda folder: shutil.rmtree(folder / "variables"), "{copy} " + NO_CHECKPOINT),
    "no meta": (lambda folder: shutil.rmtree(folder / "meta"), "{copy} " + NO_CHECKPOINT),
    "half a meta": (half_meta, "{copy} is damaged: its meta cannot be read ("),
    "another program's": (
        of_another_program,
        "{copy} is not a checkpoint of jaxslim; give a folder that jaxslim made.",
    ),
    "newer": (meta(format=2), "{copy} was written by a newer jaxslim (format 2); update jaxslim."),
    "edited format": (meta(format="1"), "{copy} is damaged: its format is '1'; take another checkpoint."),
    "edited digest": (meta(digest="0"), "{copy} is damaged: its variables have the digest "),
    "edited shape": (meta(image_shape=[8, 8]), "{copy} is damaged: its network, arrays and image shape do not fit"),
    "huge images": (
        meta(image_shape=[200_000, 200_000, 1]),
        "{copy} is unusable: its image_shape is [200000, 2",
    ),
    "edited arrays": (meta(variables=["bn0"]), "{copy} is damaged: its meta describes no arrays ("),
    "no module": (meta(module=None), "{copy} is damaged: its meta describes no module; take another checkpoint."),
    "another network": (
        meta(module={"type": "x.ResNet", "fields": {}}),
        "The checkpoint holds a x.ResNet, which is not",
    ),
    "another field": (
        meta(module={"type": VGG, "fields": {"depth": 3}}),
        f"The checkpoint's {VGG} cannot be built from its fields: ",
    ),
}


@pytest.mark.parametrize("line", ["evaluate copy", "prune copy --ratio 0.1 --out new"], ids=["evaluate", "prune"])
@pytest.mark.parametrize(("change", "message"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_in_a_checkpoint(call, home, tmp_path, monkeypatch, line, change, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "pruned", tmp_path / "copy")
    change(tmp_path / "copy")
    before = contents(tmp_path)
    assert_refused(call(line), message.replace("{copy}", f"{tmp_path}/copy"))
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def three_channels(folder):
    changes = {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    edit_meta(folder, lambda meta: meta["config"].update(changes))


@pytest.mark.parametrize("line", ["evaluate copy", "prune copy --ratio 0.1 --out new --recalibrate 2", "sweep copy"])
def test_channels_that_the_network_does_not_see(call, home, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "pruned", tmp_path / "copy")
    three_channels(tmp_path / "copy")
    done = call(line)
    assert_refused(done, "")
    assert "copy is unusable: it sees images of 1 channels and its configuration makes them of 3; take" in done.err
    assert not (tmp_path / "new").exists()


def test_what_looks_like_markup_is_shown_as_it_is(call, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "pruned", tmp_path / "a[red]" / "b[" / "c]")
    meta(kind="[/x]")(tmp_path / "a[red]" / "b[" / "c]")
    shutil.copy(home / "data.npz", tmp_path / "data[blue].npz")
    done = call("evaluate 'a[red]/b[/c]' --dataset 'data[blue].npz'")
    assert (done.code, done.err) == (0, "")
    assert f"{tmp_path}/a[red]/b[/c] ([/x])\n" in done.out
    assert "24 test images of data[blue].npz\n" in done.out


def test_a_kind_that_is_no_text_is_shown_as_it_is(call, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "pruned", tmp_path / "copy")
    meta(kind=["dense"])(tmp_path / "copy")
    done = call("sweep copy --ratios 0.5")
    assert (done.code, "Traceback" in done.err) == (0, False)


# In a run that was damaged or edited, and is then continued


def no_sums(run):
    for folder in (run / "checkpoints").iterdir():
        (folder / "checksums.json").unlink()


def no_optimizer(run):
    shutil.rmtree(run / "checkpoints" / "2")
    shutil.rmtree(run / "checkpoints" / "1" / "optimizer")
    seal(run / "checkpoints" / "1")


def in_use(run):
    """Hold the lock that a process at work has."""
    shutil.rmtree(run / "checkpoints" / "2")
    file = (run / ".lock").open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def file_for_folder(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")


def folder_for_file(name):
    def change(run):
        (run / name).unlink()
        (run / name).mkdir()

    return change


def no_accuracy(run):
    for folder in (run / "checkpoints").iterdir():
        edit_meta(folder, lambda meta: meta.pop("metrics"))


def unfinished(run):
    no_accuracy(run)
    shutil.rmtree(run / "checkpoints" / "2")


RUNS = {
    "half a configuration": (
        file_of("config.json", b"{"),
        "{copy}/config.json is not readable (Expecting property nam",
    ),
    "binary configuration": (file_of("config.json", b"\xff"), "{copy}/config.json is not readable ("),
    "list as configuration": (
        file_of("config.json", b"[]"),
        "{copy}/config.json holds no configuration; choose anothe",
    ),
    "other configuration": (file_of("config.json", b"{}"), "{copy} holds another run (dataset cifar10 there, "),
    "no configuration": (
        lambda run: (run / "config.json").unlink(),
        "{copy} holds other files and no run; choose anot",
    ),
    "folder for its file": (folder_for_file("config.json"), "{copy}/config.json is no file; choose another --workdir."),
    "file for its folder": (file_for_folder, "{copy}/checkpoints is a file and no folder; choose another --workdir."),
    "all damaged": (no_sums, "{copy}/checkpoints/2 is damaged: its checksums.json is missing; no other checkpoint of"),
    "no optimizer": (no_optimizer, "{copy}/checkpoints/1 is damaged: its optimizer cannot be read ("),
    "in use": (in_use, "{copy} is in use by "),
    "no accuracies": (no_accuracy, "{copy}/checkpoints/1 names no accuracy to choose the best by; name a checkpoint b"),
    "no accuracy to go on from": (
        unfinished,
        "{copy}/checkpoints/1 names no accuracy to choose the best by; name a checkpoint by its folder, or move this",
    ),
}


@pytest.mark.parametrize(("change", "message"), RUNS.values(), ids=RUNS)
def test_in_a_run(call, home, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "sparse", tmp_path / "copy")
    held = change(tmp_path / "copy")
    before = contents(tmp_path)
    done = call(f"train {home}/config.py --workdir copy")
    if change is in_use:
        held.close()
    assert_refused(done, message.replace("{copy}", f"{tmp_path}/copy"))
    assert contents(tmp_path) == before


# In a configuration made in Python

TUPLE = "must be of type tuple[float, ...]."
CONFIGS = {
    "number in quotes": ({"epochs": "3"}, "epochs is '3'; it must be of type int."),
    "float for an integer": ({"epochs": 1e3}, "epochs is 1000.0; it must be of type int."),
    "yes for true": ({"flip": "yes"}, "flip is 'yes'; it must be of type bool."),
    "path object": ({"workdir": Path("runs")}, "workdir is PosixPath('runs'); it must be of type str | None."),
    "type as dtype": (
        {"dtype": np.float32},
        "dtype is <class 'numpy.float32'>; it must be of type Literal['float32', ",
    ),
    "half precision": ({"dtype": "float16"}, "dtype is 'float16'; it must be of type Literal['float32', 'bfloat16']."),
    "one mean": ({"mean": 0.5}, f"mean is 0.5; it {TUPLE}"),
    "means of bytes": ({"mean": (125.3, 1e7, 113.9)}, "mean (125.3, 10000000.0, 113.9) and std "),
    "no deviation": (
        {"std": (0, 1, 1)},
        "mean (0.5, 0.5, 0.5) and std (0, 1, 1) must be finite and every std above 0.",
    ),
    "one drop": ({"lr_drops": 0.5}, f"lr_drops is 0.5; it {TUPLE}"),
    "no rate": ({"learning_rate": 0}, "learning_rate is 0; it must be a number above 0."),
    "rate that is none": ({"learning_rate": math.nan}, "learning_rate is nan; it must be a number above 0."),
    "negative pull": ({"l1": -1e-4}, "l1 is -0.0001; it must be a number of at least 0."),
    "endless decay": ({"weight_decay": math.inf}, "weight_decay is inf; it must be a number of at least 0."),
    "huge pull": ({"l1": 1e31}, "l1 is 1e+31; it must be at most 1e+30."),
    "holdout of all": ({"holdout": 1.0}, "holdout is 1.0; it must be a share in [0, 1), for example 0.1."),
    "large seed": ({"seed": 2**31}, "seed is 2147483648; it must be below 2147483648."),
    "widths as text": ({"widths": "64 M"}, "widths is '64 M'; it must be of type tuple[Union[int, Literal['M']], ...]"),
    "no channels": ({"widths": (8, 0)}, "widths hold 0; each must be a positive number of channels or"),
    "empty start": ({"init_from": ""}, "init_from is empty; give a path, or leave it out."),
    "folder above": ({"name": ".."}, "name is '..'; it must be a plain folder name, for example cifar10-sparse."),
}


@pytest.mark.parametrize(("fields", "message"), CONFIGS.values(), ids=CONFIGS)
def test_in_a_configuration(fields, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        jaxslim.TrainConfig(**fields)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# In a call from Python: n has the network of `pruned` with its graph, scores and a plan


class Plain(nn.Module):
    """A network that does not know how to become narrower."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)))


@pytest.fixture(scope="module")
def network(home):
    module, variables, _ = jaxslim.load(home / "sparse")
    images = np.zeros((1, 8, 8, 1), np.float32)
    graph = jaxslim.trace(module.apply, variables, images)
    kind = type(module)
    scores = jaxslim.bn_scales(variables)
    plan = jaxslim.plan(graph, scores, 0.5)
    other = jaxslim.trace(lambda w, x: x @ w["a"] @ w["b"], {"a": np.ones((1, 3)), "b": np.ones((3, 1))}, images[0, 0])
    return types.SimpleNamespace(**locals())


def prune_plain(n):
    module, x = Plain(), np.ones((1, 4))
    return jaxslim.prune(module, module.init(jax.random.key(0), x), 0.3, x)


def count_a_loop(n):
    def apply(w, x):
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ w, x)

    return jaxslim.count(apply, np.ones((2, 2)), np.ones((1, 2)))


def one_scale(value):
    return {"params": {"bn0": {"scale": np.array(value)}}}


NOT_APPLIED = "The network cannot be applied ("
CALLS = {
    "plan per cent": (
        lambda n: jaxslim.plan(n.graph, n.scores, 50),
        "The ratio is 50; it must lie in [0, 1): 0.7 cuts",
    ),
    "plan nothing": (
        lambda n: jaxslim.plan(n.graph, n.scores, None),
        "Give either a ratio or a threshold, for example",
    ),
    "plan too much": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.95),
        "A ratio of 0.95 cannot be met: with min_channel",
    ),
    "plan without scores": (
        lambda n: jaxslim.plan(n.graph, {}, 0.5),
        "There are no scores; nothing says which channel",
    ),
    "plan by a name": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, leave="bn0"),
        "leave is 'bn0'; it must hold names of layers, for example ('bn0',).",
    ),
    "plan with None to leave": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, leave=None),
        "leave is None; it must",
    ),
    "plan in quotes": (lambda n: jaxslim.plan(n.graph, n.scores, "0.5"), "The ratio is '0.5'; it must lie in [0, 1): "),
    "plan two ratios": (lambda n: jaxslim.plan(n.graph, n.scores, [0.5, 0.7]), "The ratio is [0.5, 0.7]; it must lie"),
    "plan a threshold in quotes": (
        lambda n: jaxslim.plan(n.graph, n.scores, None, threshold="0.1"),
        "The threshold is '0.1'; it must be a number of at least 0",
    ),
    "plan by many ratios": (
        lambda n: jaxslim.plan(n.graph, n.scores, np.full((9, 9), 0.5)),
        "The ratio is array([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.5, ; it must lie in [0, 1): ",
    ),
    "plan by many thresholds": (
        lambda n: jaxslim.plan(n.graph, n.scores, None, threshold=np.arange(999.0)),
        "The threshold is array([ 0., 1., 2., 3., 4., 5.",
    ),
    "plan shares of layers": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, max_layer_ratio=np.full((9, 9), 0.5)),
        "max_layer_ratio is array([[0.5",
    ),
    "plan channels of layers": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, np.ones((9, 9), int)),
        "min_channels is array([[1",
    ),
    "plan to leave numbers": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, leave=np.ones((9, 9))),
        "leave is array([[1",
    ),
    "plan to leave a long name": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, leave=["x" * 999]),
        f"There is no layer {'x' * 60} to leave alone; the layers are bn0, bn1.",
    ),
    "plan ties of a threshold": (
        lambda n: jaxslim.plan(n.graph, n.scores, None, threshold=0.1, reference_ties=True),
        "reference_ties is a rule for a ratio; leave it out with a threshold.",
    ),
    "plan many ties": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, reference_ties=np.ones(2, bool)),
        "reference_ties is array([ True, True]); it must be True or False.",
    ),
    "plan ties in quotes": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, reference_ties="no"),
        "reference_ties is 'no'; it must be True or False.",
    ),
    "prune and absorb by layer": (
        lambda n: jaxslim.prune(n.module, n.variables, 0.5, n.images, absorb=np.ones(2, bool)),
        "absorb is array([ True, True]); it must be True or False.",
    ),
    "plan half a channel": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, 1.5),
        "min_channels is 1.5; it must be an",
    ),
    "plan a multiple in quotes": (
        lambda n: jaxslim.plan(n.graph, n.scores, 0.5, multiple_of="8"),
        "multiple_of is '8'; it must be an integer.",
    ),
    "plan by words": (
        lambda n: jaxslim.plan(n.graph, {"params": {"bn0": {"scale": "high"}}}, 0.5),
        "The scores params/bn0/scale are 'high'; give numbers.",
    ),
    "plan of a module": (
        lambda n: jaxslim.plan(n.module, n.scores, 0.5),
        "The graph is of type VGG; pass what",
    ),
    "trace a module": (lambda n: jaxslim.trace(n.module, n.variables, n.images), NOT_APPLIED + "Can't call compact"),
    "trace a class": (lambda n: jaxslim.trace(n.kind.apply, n.variables, n.images), NOT_APPLIED + "Can only call ini"),
    "trace params": (
        lambda n: jaxslim.trace(n.module.apply, n.variables["params"], n.images),
        NOT_APPLIED + 'Tried to access "kernel" from collection "params" in "/conv0" but the collection is empty.); ',
    ),
    "trace params without statistics": (
        lambda n: jaxslim.trace(n.module.apply, {"params": n.variables["params"]}, n.images),
        NOT_APPLIED + 'Tried to access "mean" from collection "batch_stats"',
    ),
    "trace a list": (lambda n: jaxslim.trace(n.module.apply, [1], n.images), NOT_APPLIED + "'list' object has no attr"),
    "trace an image": (
        lambda n: jaxslim.trace(n.module.apply, n.variables, n.images[0]),
        "The images have shape (8, 8, 1); pass an array (n, height, width, channels).",
    ),
    "trace no images": (
        lambda n: jaxslim.trace(n.module.apply, n.variables, None),
        "The images have shape (); pass",
    ),
    "trace colour images": (
        lambda n: jaxslim.trace(n.module.apply, n.variables, np.zeros((1, 8, 8, 3))),
        NOT_APPLIED + 'For parameter "kernel" in "/conv0"',
    ),
    "apply to an image": (lambda n: n.module.apply(n.variables, n.images[0]), "The images have shape (8, 8, 1); pass "),
    "a model's name as widths": (
        lambda n: jaxslim.VGG("vgg11"),
        "widths is 'vgg11'; give channels and \"M\" for poolings, or use jaxslim.vgg11().",
    ),
    "no widths": (lambda n: jaxslim.VGG(None), "widths is None; give channels and"),
    "a width of none": (lambda n: jaxslim.VGG((8, 0)), "widths hold 0; each must be a positive number of channels or"),
    "half a channel": (lambda n: n.module.clone(widths=(8, 2.5)), "widths hold 2.5; each must be a positive number"),
    "a small m": (lambda n: jaxslim.VGG((8, "m")), "widths hold 'm'; each must be a positive number of channels or"),
    "no classes": (lambda n: jaxslim.VGG((8,), 0), "num_classes is 0; it must be an integer of at least 1."),
    "names as classes": (lambda n: jaxslim.VGG((8,), ["a"]), "num_classes is ['a']; it must be an integer of at least"),
    "resize by params": (
        lambda n: n.module.resized(n.variables["params"]),
        "The variables are not of this VGG ('params'); pass all that its init returned.",
    ),
    "train a dict": (
        lambda n: loop.train({"epochs": 3}),
        "The config is of type dict; pass a TrainConfig, such as load_config(path) gives.",
    ),
    "plan by few scores": (
        lambda n: jaxslim.plan(n.graph, one_scale([1, 2]), 0.5),
        "The scores params/bn0/scale have sh",
    ),
    "plan by NaN": (
        lambda n: jaxslim.plan(n.graph, one_scale([math.nan] * 4), 0.5),
        "The scores params/bn0/scale hold N",
    ),
    "plan for another": (
        lambda n: jaxslim.plan(n.other, n.scores, 0.5),
        "The scores hold params/bn0/scale, which is no",
    ),
    "cut by another's plan": (
        lambda n: jaxslim.cut(n.other, n.variables, n.plan),
        "The plan is for 12 units and the gr",
    ),
    "cut by a ratio": (
        lambda n: jaxslim.cut(n.graph, n.variables, 0.5),
        "The graph and the plan are a ChannelGraph and a float; pass what trace and plan gave, and the tree between.",
    ),
    "zero without a graph": (
        lambda n: jaxslim.zero(None, n.variables, n.plan),
        "The graph and the plan are a NoneType and a Plan; pass what trace",
    ),
    "cut twice": (
        lambda n: jaxslim.cut(n.graph, jaxslim.cut(n.graph, n.variables, n.plan), n.plan),
        "batch_stats/bn0/mean has shape ",
    ),
    "cut what is not traced": (
        lambda n: jaxslim.cut(n.graph, {"extra": np.ones(3)}, n.plan),
        "extra (3,) is none of the traced variables; cut the tree that was traced.",
    ),
    "cut a part": (
        lambda n: jaxslim.cut(n.graph, {"bn0": n.variables["params"]["bn0"]}, n.plan),
        "The tree lacks params/conv0/kernel; cut the traced variables or a whole collection.",
    ),
    "zero what is not traced": (
        lambda n: jaxslim.zero(n.graph, {"extra": np.ones(3)}, n.plan),
        "extra (3,) is none of the traced variables; cut the tree that was traced.",
    ),
    "prune per cent": (
        lambda n: jaxslim.prune(n.module, n.variables, 50, n.images),
        "The ratio is 50; it must lie in [",
    ),
    "prune in quotes": (lambda n: jaxslim.prune(n.module, n.variables, "0.5", n.images), "The ratio is '0.5'; it must"),
    "prune a class": (lambda n: jaxslim.prune(n.kind, n.variables, 0.5, n.images), NOT_APPLIED + "Can only call init"),
    "prune a path": (
        lambda n: jaxslim.prune("runs/x", n.variables, 0.5, n.images),
        "The module is of type str; pass a Linen module, as load(path) gives.",
    ),
    "prune a plain module": (prune_plain, "Plain does not say how to build a narrower self: give it a method resized("),
    "save over a checkpoint": (
        lambda n: jaxslim.save(n.home / "pruned", n.module, n.variables),
        "{home}/pruned exists",
    ),
    "save into a run": (
        lambda n: jaxslim.save(n.home / "sparse" / "checkpoints" / "9", n.module, n.variables),
        "{home}/sparse/checkpoints/9 lies among a run's own checkpoints; choose another folder.",
    ),
    "save nowhere": (lambda n: jaxslim.save(None, n.module, n.variables), "The path is of type NoneType; pass a str "),
    "save in another order": (
        lambda n: jaxslim.save(n.module, n.variables, "x"),
        "The path is of type VGG; pass a s",
    ),
    "save a class": (
        lambda n: jaxslim.save(n.home / "new", n.kind, n.variables),
        "The module is of type type; pass a Linen module, not its class or its variables.",
    ),
    "save no module": (
        lambda n: jaxslim.save(n.home / "new", None, n.variables),
        "The module is of type NoneType; ",
    ),
    "save a kind as meta": (
        lambda n: jaxslim.save(n.home / "new", n.module, n.variables, "dense"),
        "The meta is 'dense'; pass a dict, for example {'kind': 'dense'}.",
    ),
    "save words": (
        lambda n: jaxslim.save(n.home / "new", n.module, {"a": np.array(["x"])}),
        "The variables hold an array of <U1; turn it into numbers.",
    ),
    "save a key": (
        lambda n: jaxslim.save(n.home / "new", n.module, {"a": jax.random.key(0)}),
        "The variables hold an array of key<fry>; turn it into numbers.",
    ),
    "save nothing": (
        lambda n: jaxslim.save(n.home / "new", n.module, {}),
        "There are no arrays to save; pass the varia",
    ),
    "save lists": (
        lambda n: jaxslim.save(n.home / "new", n.module, [np.ones(2)]),
        "A checkpoint holds nested dicts of a",
    ),
    "save odd values": (
        lambda n: jaxslim.save(n.home / "new", n.module, n.variables, {"of": {1, 2}}),
        "The meta cannot be written as JSON (Object of type set is not JSON serializable); use numbers, strings,",
    ),
    "save an odd module": (
        lambda n: jaxslim.save(n.home / "new", n.module.clone(dtype=print), n.variables),
        "The module's field dtype holds <built-in function print>, which a checkpoint cannot describe; use numbers, ",
    ),
    "save under a name with a zero byte": (
        lambda n: jaxslim.save(n.home / "a\0b", n.module, n.variables),
        "The path '{home}/a\\x00b' is not valid UTF-8; choose",
    ),
    "load nothing": (lambda n: jaxslim.load(n.home / "no"), "There is no checkpoint {home}/no; check the path."),
    "load a data set": (lambda n: jaxslim.load(n.home / "data.npz"), "{home}/data.npz " + NO_CHECKPOINT),
    "load None": (lambda n: jaxslim.load(None), "The path is of type NoneType; pass a str or a Path."),
    "load a zero byte": (lambda n: jaxslim.load("a\0b"), "The path 'a\\x00b' is not valid UTF-8; choose another name."),
    "load by an instance": (
        lambda n: jaxslim.load(n.home / "pruned", n.module),
        "module_type is of type VGG; pass the class of the module.",
    ),
    "load as another": (
        lambda n: jaxslim.load(n.home / "pruned", Plain),
        f"The checkpoint's {VGG} cannot be built from",
    ),
    "count no images": (
        lambda n: jaxslim.count(n.module.apply, n.variables, None),
        "The images are None; pass an array or a ShapeDtypeStruct, batch first.",
    ),
    "count for a shape": (
        lambda n: jaxslim.count(n.module.apply, n.variables, (1, 8, 8, 1)),
        "The images are (1, 8, 8, 1); pass an array or a Shape",
    ),
    "count a module": (lambda n: jaxslim.count(n.module, n.variables, n.images), NOT_APPLIED + "Can't call compact me"),
    "count in a loop": (
        count_a_loop,
        "The network multiplies inside a while loop, whose rounds cannot be counted; use",
    ),
    "negative L1": (
        lambda n: jaxslim.l1_subgradient(-1, True),
        "The L1 strength is -1; it must be a number of at least",
    ),
    "L1 in quotes": (lambda n: jaxslim.l1_subgradient("1e-4", True), "The L1 strength is '1e-4'; it must be a number "),
    "L1 of variables": (
        lambda n: jaxslim.l1_subgradient(1e-4, jaxslim.bn_scale_mask(n.variables)).init(n.variables),
        "The mask has another structure than the parameters; pass bn_scale_mask(variables) and use it with variables[",
    ),
    "L1 alone": (
        lambda n: (tx := jaxslim.l1_subgradient(1, True)).update(n.scores, tx.init(n.scores)),
        "l1_subgradient needs the parameters: call update(gradients, state, params).",
    ),
    "scales of params": (
        lambda n: jaxslim.bn_scales(n.variables["params"]),
        "The variables have no params; pass all th",
    ),
    "scales without statistics": (
        lambda n: jaxslim.bn_scales({"params": n.variables["params"]}),
        "The variables hold no BatchNorm scale (a scale in params beside a mean in batch_stats); pass both collections",
    ),
    "mask of a module": (
        lambda n: jaxslim.bn_scale_mask(n.module),
        "The variables have no params; pass all that module",
    ),
}


@pytest.mark.parametrize(("act", "message"), CALLS.values(), ids=CALLS)
def test_in_a_call(home, network, act, message):
    before = contents(home)
    with pytest.raises(InputError) as caught:
        act(network)
    assert str(caught.value).startswith(message.replace("{home}", str(home)))
    assert "\n" not in str(caught.value)
    assert lines(str(caught.value)) <= 3
    assert contents(home) == before
    assert not (home / "new").exists()
