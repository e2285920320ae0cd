"""The mistakes that users make, in tables: what to do wrong, and how the message starts that it must give.

A command answers each with exit code 2 and one short message that names the cause and the fix, never with a traceback,
and leaves all files as they are; a function raises `InputError` with such a message. The tables go by where the mistake
is made: at the command line, in a config file, in the environment, in a data set, in a checkpoint or run that was
damaged or edited, and in a call from Python. In commands and messages, `{home}` is a folder with a finished run,
`sparse`, and a network cut from it, `pruned`.
"""

import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image
from test_commands import flat, invoke, python
from test_data import break_image, empty_class, extra_class, link_file_out, records, save_tar
from test_loop import contents, tiny, write_data

import jaxslim
from jaxslim.commands import main as every_command
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import save_cut
from jaxslim.files import locked
from jaxslim.storage import checkpoint
from jaxslim.storage.integrity import seal
from jaxslim.training import loop
from jaxslim.training.run import keep_rows

IMPORT = "from jaxslim.training.config import TrainConfig"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config file, its finished run `sparse`, a network cut from it, and other files."""
    folder = tmp_path_factory.mktemp("home")
    config = tiny(folder, workdir=str(folder / "sparse"), epochs=2)
    fields = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(config).items())
    (folder / "config.py").write_text(f"{IMPORT}\nconfig = TrainConfig({fields})\n")
    loop.train(config)
    save_cut(folder / "sparse", folder / "pruned", 0.5)
    module, variables, _ = checkpoint.load(folder / "pruned")
    checkpoint.save(folder / "bare", module, variables)
    write_data(folder / "ten.npz", classes=10)
    (folder / "wrong.json").write_text('{"conv9": 0.5}')
    (folder / "link").symlink_to(folder / "nowhere")
    return folder


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command line such as `prune sparse --ratio 0.5` in this process."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda line: invoke(capsys, every_command, *shlex.split(line))


def assert_refused(done, message):
    """Exit code 2 and one message, short and without a traceback, in a frame where the options cannot be parsed."""
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert not re.sub(r"No CONFIG given: .*\n", "", done.out)
    if "For full helptext" in done.err:
        assert message in flat(done.err), done.err
    else:
        assert flat(done.err).startswith(f"jaxslim: {message}"), done.err
        assert lines(done.err) <= 4  # with the reason that another library gives


def lines(message):
    """How many a terminal of 100 columns shows, apart from commands on lines of their own and the folders of pytest."""
    short = re.sub(r"\S*/pytest-\d+/(popen-gw\d+/)?|x{99,}", "", message)
    return sum(math.ceil(len(line) / 100) for line in short.splitlines() if not line.startswith("  "))


# At the command line

NO_CHECKPOINT = "is not a checkpoint of jaxslim (no meta and variables in it) and not a run that has saved one; give"
NOT_OVERWRITTEN = "exists already and checkpoints are never overwritten; choose another"
NO_FOLDER = "cannot be a folder, since a file is in its place; choose another --out."
CLASSES = "tells 3 classes apart and {home}/ten.npz has 10; give the data set that it was trained on."
NEW = "train config.py --workdir new"
CUT = "prune sparse --out new --ratio 0.5"
COMMAND_LINES = {
    "no such command": (
        "nonsense",
        "There is no command 'nonsense'; the commands are train, sweep, sensitivity, prune, ",
    ),
    "misspelt command": ("prun sparse", "There is no command 'prun'; did you mean prune?"),
    "misspelt option": ("train --epoch 3", "Unrecognized options: --epoch, 3 Perhaps you meant: --epochs NUMBER"),
    "value after a switch": (f"{NEW} --tensorboard yes", "Unrecognized options: yes"),
    "config after options": ("train --epochs 1 config.py", "The config comes before the options: jaxslim train config"),
    "absent config": ("train no.py", "There is no config no.py; give a Python file, or the name of a packaged config."),
    "misspelt config": ("train cifar10-spars", "There is no config cifar10-spars; did you mean cifar10-sparse?"),
    "data as config": ("train data.npz", "There is no config data.npz; give a Python file"),
    "no integer": ("train --epochs 2.5", "Error parsing --epochs: invalid literal for int() with base 10: '2.5'"),
    "no choice": (f"{NEW} --schedule linear", "invalid choice 'linear' for argument '--schedule'. Expected one of ("),
    "no epochs": ("train --epochs 0", "epochs is 0; it must lie in [1, 2147483647]."),
    "epochs as drops": ("train --lr-drops 80 120", "lr_drops is (80.0, 120.0); it must lie in (0, 1)."),
    "rate that is none": ("train --learning-rate nan", "learning_rate is nan; it must lie in (0, 1e+30]."),
    "more steps than numbers": (f"{NEW} --epochs 2000000000", "2000000000 epochs take 12000000000 steps, more than "),
    "name that is a path": ("train --name runs/a", "name is 'runs/a'; it must be a plain folder name, for example"),
    "empty workdir": ("train --workdir ''", "workdir is empty; give a path, or leave it out."),
    "unknown model": (f"{NEW} --model resnet19", "There is no model 'resnet19'; the models are densenet, densenet22, "),
    "misspelt argument": (f"{NEW} --model-args width=3,M", "model vgg does not take the model_args {'width': (3, 'M')"),
    "argument by order": (f"{NEW} --model-args 8,M", "'8,M' is not of the form NAME=VALUE"),
    "one width": (
        f"{NEW} --model-args widths=16",
        "model vgg does not take the model_args {'widths': 16}: 'int' object is not iterable; a list takes commas, for "
        "example widths=16,",
    ),
    "a width of none": (f"{NEW} --model-args widths=8,0", "widths hold 0; each must be a positive number of channels"),
    "a small m": (f"{NEW} --model-args widths=8,m", "widths hold 'm'; each must be a positive number of channels or"),
    "no convolution": (
        f"{NEW} --model-args widths=M,",
        "VGG has no scales that L1 could pull on; train it with group_l",
    ),
    "small images": (f"{NEW} --image-size 1", "1 poolings shrink images of 1x1 pixels to nothing; use larger images"),
    "two means": ("train --channels 3 --mean 0 0", "mean has 2 numbers for 3 channels; give one a channel."),
    "unknown augmentation": (
        f"{NEW} --augment mixup",
        "There is no augmentation 'mixup'; use crop, flip, or no name at all.",
    ),
    "unknown optimizer": (f"{NEW} --optimizer sdg", "optimizer is 'sdg'; it must be one of optax's, for example sgd o"),
    "other function of optax": (f"{NEW} --optimizer join_schedules", "optimizer is 'join_schedules'; it must be one o"),
    "argument of another": (
        f"{NEW} --optimizer-args b1=1",
        "optimizer sgd cannot be used with the optimizer_args {'b1': 1}",
    ),
    "misspelt data": (f"{NEW} --dataset CIFAR10", "There is no data set called CIFAR10; did you mean cifar10 "),
    "absent data": (f"{NEW} --dataset ./no", "There is no file or folder ./no; check the path."),
    "no data": (f"{NEW} --dataset ''", "The name of the data set is empty; give a name such as cifar10 or digits, or"),
    "text as data": (f"{NEW} --dataset imdb_reviews", "imdb_reviews holds no labelled images; give an image classific"),
    "source as data": (f"{NEW} --dataset config.py", "{home}/config.py is no data set; give an image folder, an .npz"),
    "data not prepared": (f"{NEW} --dataset cifar100 --data-dir tfds", "cifar100 is not prepared in {home}/tfds. Prep"),
    "small holdout": (f"{NEW} --holdout 0.001", "A holdout of 0.001 of 48 images leaves none on one side; give a "),
    "large batch": (f"{NEW} --batch-size 49", "A batch of 49 is larger than the training set of 48; use a smaller one"),
    "large images": (f"{NEW} --image-size 100000", "48 images of 100000x100000x1 bytes take 447 GiB of memory; lower"),
    "absent start": (f"{NEW} --init-from no", "There is no checkpoint {home}/no; check the path."),
    "start of other classes": (f"{NEW} --init-from pruned --dataset ten.npz", "{home}/pruned " + CLASSES),
    "absent teacher": (f"{NEW} --distill-from no", "There is no checkpoint {home}/no; check the path."),
    "teacher of other classes": (f"{NEW} --distill-from pruned --dataset ten.npz", "{home}/pruned " + CLASSES),
    "teacher without weight": (f"{NEW} --distill-from no --distill-weight 0", "There is no checkpoint {home}/no; chec"),
    "per cent of a teacher": (f"{NEW} --distill-weight 90", "distill_weight is 90.0; it must lie in [0, 1]."),
    "other network": ("train --init-from pruned --model vgg11", "model is vgg11, and the network of {home}/pruned was"),
    "other normalisation": (f"{NEW} --init-from pruned --mean 0.4", "mean is (0.4,), and the network of {home}/pruned"),
    "start without a recipe": ("train --init-from bare", "{home}/bare names no training configuration; give a CONFIG"),
    "another run": ("train config.py --seed 1", "{home}/sparse holds another run (seed 0 there, 1 here); choose anot"),
    "workdir of other files": ("train config.py --workdir .", "{home} holds other files and no run; choose another --"),
    "workdir below a file": ("train config.py --workdir data.npz/x", "{home}/data.npz/x: Not a directory. Check that"),
    "long workdir": (f"train config.py --workdir {'x' * 300}", "{home}/" + "x" * 300 + "/config.json: File name too l"),
    "workdir of odd bytes": ("train config.py --workdir \udcff", "The path '{home}/\\udcff' is not valid UTF-8; choos"),
    "no out": ("prune sparse --ratio 0.5", "Missing from jaxslim prune: --out FOLDER"),
    "empty out": ("prune sparse --ratio 0.5 --out ''", "--out is empty; give a folder to make."),
    "no ratio": ("prune sparse --out new", "Give one of ratio, threshold, macs, params and latency, for example a"),
    "ratio and threshold": (
        f"{CUT} --threshold 0.1",
        "Give one of ratio, threshold, macs, params and latency, not ratio and threshold together",
    ),
    "per cent": ("prune sparse --out new --ratio 70", "The ratio is 70.0; it must lie in [0, 1): 0.7 cuts 70 % of the"),
    "per cent with a sign": ("prune sparse --out new --ratio 70%", "could not convert string to float: '70%'"),
    "everything": ("prune sparse --out new --ratio 0.99", "A ratio of 0.99 cannot be met: with min_channels=1 and the"),
    "nothing may go": (f"{CUT} --leave bn0 bn1", "A ratio of 0.5 cannot be met: with min_channels=1 and the layers"),
    "negative threshold": ("prune sparse --out new --threshold -1", "The threshold is -1.0; it must be a number of at"),
    "share of a layer": (f"{CUT} --max-layer-ratio 0", "max_layer_ratio is 0.0; it must be a share in (0, 1], for ex"),
    "negative batches": (f"{CUT} --recalibrate -1", "recalibrate is -1; it must be a number of batches, 0 or more."),
    "no such layer": (f"{CUT} --leave conv0", "There is no layer conv0; the layers are bn0, bn1."),
    "no channels": (f"{CUT} --min-channels 0", "min_channels is 0; it must be at least 1."),
    "multiple of nothing": (f"{CUT} --multiple-of 0", "multiple_of is 0; it must be at least 1."),
    "statistics of others": (f"{CUT} --recalibrate 2 --dataset ten.npz", "{home}/sparse/checkpoints/12 " + CLASSES),
    "out exists": ("prune sparse --out pruned --ratio 0.5", "pruned " + NOT_OVERWRITTEN),
    "out is a link": ("prune sparse --out link --ratio 0.5", "{home}/link " + NOT_OVERWRITTEN),
    "out in a run": ("prune sparse --out sparse/checkpoints/9 --ratio 0.5", "{home}/sparse/checkpoints/9 lies among a"),
    "out below a file": ("prune sparse --out data.npz/x --ratio 0.5", "{home}/data.npz/x " + NO_FOLDER),
    "absent checkpoint": ("evaluate sparse/checkpoints/7", "There is no checkpoint {home}/sparse/checkpoints/7; check"),
    "file as checkpoint": ("prune data.npz --out new --ratio 0.5", "{home}/data.npz " + NO_CHECKPOINT),
    "no image shape": ("prune bare --out new --ratio 0.5", "{home}/bare does not name its images' shape; save it with"),
    "empty checkpoint": ("prune '' --out new --ratio 0.5", "The path '' is empty; choose another name."),
    "nothing to evaluate": ("evaluate", "Missing from jaxslim evaluate: CHECKPOINT"),
    "two to evaluate": ("evaluate sparse pruned", "Unrecognized options: pruned"),
    "folder of checkpoints": ("evaluate sparse/checkpoints", "{home}/sparse/checkpoints " + NO_CHECKPOINT),
    "no such name": ("evaluate sparse/newest", "There is no checkpoint {home}/sparse/newest; check the path."),
    "batch of none": ("evaluate sparse --batch-size 0", "batch_size is 0; it must be at least 1."),
    "empty data folder": ("evaluate sparse --data-dir ''", "data_dir is empty; give a path, or leave it out."),
    "evaluated on others": ("evaluate sparse --dataset {home}/ten.npz", "{home}/sparse/checkpoints/12 " + CLASSES),
    "no configuration": ("evaluate bare", "{home}/bare names no training configuration; give a checkpoint that jaxsli"),
    "against alone": (
        "evaluate sparse --against pruned",
        "--against names the network that --latency compares with; giv",
    ),
    "uncut network": (
        "evaluate sparse --latency",
        "{home}/sparse/checkpoints/12 names no network that it was cut from;",
    ),
    "class of no image": (
        "predict sparse",
        "There is no image; give files, or a folder: jaxslim predict CHECKPOINT IM",
    ),
    "class of an absent image": ("predict sparse no.png", "There is no image no.png; check the path."),
    "class of data": ("predict sparse data.npz", "Cannot decode the image data.npz (cannot identify image file"),
    "classes of none": ("predict sparse data.npz --top 0", "top is 0; it must be at least 1."),
    "classes by nothing": (
        "predict bare data.npz",
        "{home}/bare does not name its images' shape; save it with meta={'i",
    ),
    "ratio 1 in a sweep": ("sweep sparse --ratios 1.0", "The ratio is 1.0; it must lie in [0, 1): 0.7 cuts 70 % of th"),
    "ratios with commas": ("sweep sparse --ratios 0,0.5", "Error parsing --ratios: "),
    "no ratios": ("sweep sparse --ratios", "The ratios are []; give at least one, each once, for example 0 0.5 0.7."),
    "a ratio twice": ("sweep sparse --ratios 0.5 0.5", "The ratios are [0.5, 0.5]; give at least one, each once, for"),
    "negative tuning": ("sweep sparse --finetune-epochs -1", "finetune_epochs is -1; it must be at least 0."),
    "rate of no tuning": ("sweep sparse --learning-rate 0.1", "learning_rate is of fine-tuning; give --finetune-epoch"),
    "rate of 0": ("sweep sparse --finetune-epochs 1 --learning-rate 0", "learning_rate is 0.0; it must lie in (0, 1e+"),
    "many channels stay": ("sweep sparse --min-channels 5", "A ratio of 0.4 cannot be met: with min_channels=5 and th"),
    "file as baseline": (
        "sweep sparse --baseline config.py",
        "{home}/config.py is neither a checkpoint nor a network that jaxslim exported; give a folder",
    ),
    "file as report": ("sweep sparse --out data.npz", "{home}/data.npz " + NO_FOLDER),
    "run as report": ("sweep pruned --out sparse", "{home}/sparse holds a training run; choose another --out."),
    "ratio 1 of a layer": ("sensitivity sparse --ratios 1.0", "The ratio is 1.0; it must lie in [0, 1): 0.7 cuts 70 %"),
    "no ratios of layers": (
        "sensitivity sparse --ratios",
        "The ratios are []; give at least one, each once, for examp",
    ),
    "tolerance in points": (
        "sensitivity sparse --tolerance 1",
        "tolerance is 1.0; it must lie in [0, 1): 0.01 allows ",
    ),
    "layers that keep all": (
        "sensitivity sparse --min-channels 8",
        "No layer of {home}/sparse/checkpoints/12 loses a",
    ),
    "empty analysis": ("sensitivity sparse --out ''", "--out is empty; give a folder for the report."),
    "file as analysis": ("sensitivity sparse --out data.npz", "{home}/data.npz " + NO_FOLDER),
    "run as analysis": ("sensitivity pruned --out sparse", "{home}/sparse holds a training run; choose another --out."),
    "analysis in itself": ("sensitivity pruned --out pruned", "{home}/pruned holds a checkpoint; choose another --out"),
    "analysis of nothing": (
        "sensitivity bare",
        "{home}/bare names no training configuration; give a checkpoint that j",
    ),
    "absent ratios": ("prune sparse --out new --ratios no.json", "There is no file no.json; give the sensitivity.json"),
    "ratios of no layer": (
        "prune sparse --out new --ratios wrong.json",
        "There is no layer conv9; the layers are bn0, ",
    ),
    "ratios in a picture": (
        "prune sparse --out new --ratios data.npz",
        "data.npz is no JSON; give the sensitivity.jso",
    ),
    "sweep of nothing": ("sweep bare", "{home}/bare names no training configuration; give a checkpoint that jaxslim"),
}


@pytest.mark.parametrize(("line", "message"), COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_at_the_command_line(call, home, monkeypatch, line, message):
    monkeypatch.chdir(home)
    before, names = contents(home), sorted(home.iterdir())
    assert_refused(call(line.replace("{home}", str(home))), message.replace("{home}", str(home)))
    assert contents(home) == before
    assert sorted(home.iterdir()) == names


@pytest.mark.parametrize("line", ["sweep {home}/sparse", "prune {home}/sparse --ratio 0.5 --recalibrate 2"])
def test_out_where_nothing_can_be_written(call, home, tmp_path, monkeypatch, line):
    """As the system answers for a read-only mount, and for a folder of someone else."""
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != tmp_path)
    monkeypatch.setattr("jaxslim.storage.checkpoint.load", None)  # the work
    done = call(f"{line.format(home=home)} --out {tmp_path}/new")
    assert_refused(done, f"{tmp_path} cannot be written to; choose another --out.")
    assert not (tmp_path / "new").exists()


OUT_OF_MEMORY = {
    "device": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore"),
    "host": MemoryError("Unable to allocate 99 GiB"),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_too_little_memory(call, monkeypatch, error):
    def train(config):
        raise error

    monkeypatch.setattr(loop, "train", train)
    message = f"the memory is too small ({str(error).splitlines()[0]}); lower the batch size or the image size"
    assert_refused(call("train"), message)


# In a config file: its text after the import of TrainConfig

NO_CONFIG = "config.py defines no config; end it with `config = TrainConfig(...)`."
CONFIG_FILES = {
    "no config": ("settings = TrainConfig()", NO_CONFIG),
    "a dict": ("config = dict(epochs=3)", NO_CONFIG),
    "misspelt field": ("config = TrainConfig(epoch=3)", "config.py does not run: TypeError: TrainConfig.__init__() go"),
    "fields by order": ("config = TrainConfig('x')", "config.py does not run: TypeError: TrainConfig.__init__() takes"),
    "syntax": ("config = TrainConfig(", "config.py does not run: SyntaxError: '(' was never closed (config.py, line 2"),
    "absent module": ("import nowhere", "config.py does not run: ModuleNotFoundError: No module named 'nowhere'. Corr"),
    "absent file": ("open('no')", "config.py does not run: FileNotFoundError: [Errno 2] No such file or directory: 'n"),
    "endless": ("def f(): f()\nf()", "config.py does not run: RecursionError: maximum recursion depth exceeded"),
    "exit": ("raise SystemExit", "config.py does not run: SystemExit: SystemExit. Correct it; `jaxslim train --help`"),
    "wrong value": ("config = TrainConfig(momentum=9)", "config.py: momentum is 9; it must lie in [0, 1)."),
    "wrong type": ("config = TrainConfig(epochs='3')", "config.py: epochs is '3'; it must be of type int."),
    "one mean": ("config = TrainConfig(mean=0.5)", "config.py: mean is 0.5; it must be of type tuple[float, ...]."),
    "means of bytes": ("config = TrainConfig(std=(0, 1, 1))", "config.py: std is (0, 1, 1); it must lie in [1e-6, 1e+"),
    "no choice": ("config = TrainConfig(dtype='float16')", "config.py: dtype is 'float16'; it must be of type Literal"),
    "large crop": ("config = TrainConfig(pad=99)", "config.py: pad is 99; it must be at most image_size, 32."),
}


@pytest.mark.parametrize(("text", "message"), CONFIG_FILES.values(), ids=CONFIG_FILES)
def test_in_a_config_file(call, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(f"{IMPORT}\n{text}\n")
    before = contents(tmp_path)
    assert_refused(call("train config.py"), message)
    assert contents(tmp_path) == before


# In the environment

BACKENDS = [("cuda", "train config.py"), ("cuda", "sweep sparse"), ("nonsense", "prune sparse --ratio 0.5 --out new")]


@pytest.mark.parametrize(("platform", "line"), BACKENDS)
def test_a_backend_that_cannot_start(home, platform, line):
    """No checkpoint is damaged because of it."""
    before = contents(home)
    done = python("-m", "jaxslim", *line.split(), cwd=home, JAX_PLATFORMS=platform, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"jaxslim: JAX cannot start the backend '{platform}' that JAX_PLATFORMS asks for")
    assert "unset JAX_PLATFORMS." in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert contents(home) == before


@pytest.mark.parametrize("values", [("foo", "2", "0"), ("a:65536", "2", "0"), ("a:1", "", "0"), ("a:1", "2", "2")])
def test_processes_that_are_not_described(call, home, tmp_path, monkeypatch, values):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    monkeypatch.setattr(os, "_exit", sys.exit)  # by which a process among others ends
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)
    message = "JAX_COORDINATOR_ADDRESS is {!r}, JAX_NUM_PROCESSES {!r} and JAX_PROCESS_ID {!r}; give".format(*values)
    assert_refused(call(f"train {home}/config.py --workdir {tmp_path}/new"), message)
    assert not (tmp_path / "new").exists()


# In a data set: its name, and how to make it


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


def without(name):
    def remove(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def cut_short(folder):
    cifar()(folder)
    (folder / "cifar.tar.gz").write_bytes((folder / "cifar.tar.gz").read_bytes()[:200])


def for_python(folder):
    save_tar(folder / "cifar.tar.gz", {"data_batch_1": b"x"})


FLOATS, TURNED = np.zeros((48, 8, 8, 1)), np.zeros((48, 5, 8, 8), np.uint8)
NO_TESTS = {"test_images": np.zeros((0, 8, 8, 1), np.uint8), "test_labels": np.zeros(0, int)}
NAMED, ONE_HOT, NEGATIVE = np.array(["ant"] * 24), np.eye(48, dtype=int), np.full(48, -1)
DATA = {
    "floats": ("data.npz", npz(train_images=FLOATS), "train_images of {data} is float64 of shape (4"),
    "PyTorch's order": ("data.npz", npz(train_images=TURNED), "train_images of {data} is uint8 of shape (48, 5"),
    "one label short": ("data.npz", npz(train_labels=ONE_HOT[0, :47]), "{data} has 48 train_images but 47 train_la"),
    "one-hot labels": ("data.npz", npz(train_labels=ONE_HOT), "train_labels of {data} is int64 of shape (48, 48)"),
    "named labels": ("data.npz", npz(test_labels=NAMED), "test_labels of {data} is <U3 of shape (24"),
    "labels below 0": ("data.npz", npz(train_labels=NEGATIVE), "{data} has train labels from -1 to -1; number the cl"),
    "few class names": ("data.npz", npz(class_names=["a", "b"]), "{data} has train labels from 0 to 2; number the cl"),
    "pickled names": ("data.npz", npz(class_names=np.array(["a"], object)), "class_names of {data} is a pickled arra"),
    "no test images": ("data.npz", npz(test_images=None), "{data} lacks test_images; save it with numpy.savez(path"),
    "empty test set": ("data.npz", npz(**NO_TESTS), "{data} has no images in its test split; training needs at least"),
    "empty file": ("data.npz", file_of("data.npz", b""), "{data} is no .npz archive, or it is damaged ("),
    "a single array": ("data.npy", file_of("data.npy", b"x"), "{data} is no data set; give an image folder, an .npz"),
    "no train folder": ("photos", photos(without("train")), "{data} has no folder train;"),
    "no test folder": ("photos", photos(without("test")), "{data} has no folder test (or"),
    "a split alone": ("photos/train", photos(lambda _: None), "{data} has no folder train; lay images out as train"),
    "class without images": ("photos", photos(empty_class), "The class folder {data}/test/cat has no images ("),
    "class in one split": ("photos", photos(extra_class), "{data}: class cat is in test but not in train; both need"),
    "damaged image": ("photos", photos(break_image), "Cannot decode the image {data}/train/bee/1.png ("),
    "link that leads out": ("photos", photos(link_file_out), "{data}/train/bee/4.png is a symbolic link that leads ou"),
    "CIFAR in part": ("cifar.tar.gz", cifar(test_batch=None), "{data} lacks test_batch.bin; give the binary ver"),
    "CIFAR for Python": ("cifar.tar.gz", for_python, "{data} lacks data_batch_1.bin, data_batch_2.bin, data_batch_3."),
    "CIFAR cut off": ("cifar.tar.gz", cifar(test_batch=bytes(99)), "test_batch.bin of {data} has 99 bytes, no multipl"),
    "archive cut short": ("cifar.tar.gz", cut_short, "{data} is no tar archive, or it is damaged ("),
}


@pytest.mark.parametrize(("name", "make", "message"), DATA.values(), ids=DATA)
def test_in_a_data_set(call, home, tmp_path, monkeypatch, name, make, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    before = contents(tmp_path)
    done = call(f"train {home}/config.py --workdir new --dataset {name}")
    assert_refused(done, message.replace("{data}", f"{tmp_path}/{name}"))
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


# In a checkpoint that was damaged or edited: what happened to it


def edit_meta(folder, change):
    """Change the JSON of a checkpoint, and make checksums that fit."""
    file = folder / "meta" / "metadata"
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))
    seal(folder)


def meta(**changes):
    return lambda folder: edit_meta(folder, lambda meta: meta.update(changes))


def fields(**changes):
    return lambda folder: edit_meta(folder, lambda meta: meta["module"]["fields"].update(changes))


def change_byte(folder):
    file = max((file for file in (folder / "variables").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def meta_of(content):
    def write(folder):
        (folder / "meta" / "metadata").write_bytes(content)
        seal(folder)

    return write


VGG = "jaxslim.models.vgg.VGG"
TERABYTE = {"params/a": [[2**38], "float32"]}
CHECKPOINTS = {
    "changed byte": (change_byte, "{copy} is damaged: its file variables/"),
    "no checksums": (without("checksums.json"), "{copy} is damaged: its checksums.json is missing; take another"),
    "bad checksums": (file_of("checksums.json", b"{"), "{copy} is damaged: its checksums.json holds no checksums; tak"),
    "no variables": (without("variables"), "{copy} " + NO_CHECKPOINT),
    "no meta": (without("meta"), "{copy} " + NO_CHECKPOINT),
    "half a meta": (meta_of(b'{"format": 2, "mo'), "{copy} is damaged: its meta cannot be read ("),
    "another program's": (meta_of(b'{"step": 1}'), "{copy} is not a checkpoint of jaxslim; give a folder that jaxslim"),
    "newer": (meta(format=4), "{copy} was written by a newer jaxslim (format 4); update jaxslim."),
    "edited digest": (meta(digest="0"), "{copy} is damaged: its variables have the digest "),
    "edited shape": (meta(image_shape=[8, 8]), "{copy} is unusable: its image_shape is [8, 8], not three whole number"),
    "huge images": (meta(image_shape=[200_000] * 3), "{copy} is unusable: its image_shape is [200000, 200000, 200000]"),
    "no arrays": (meta(variables=["bn0"]), "{copy} is damaged: its meta describes no arrays ("),
    "array type": (meta(variables={"a": [[3], "zzz"]}), "{copy} is damaged: its meta describes no arrays ("),
    "a terabyte": (meta(variables=TERABYTE), "{copy} is damaged: its meta claims 1,099,511,627,776 bytes of arrays"),
    "other arrays": (meta(variables={"a": [[3], "int8"]}), "{copy} cannot be read here, though its files are as they"),
    "no module": (meta(module=None), "{copy} is damaged: its meta describes no module; take another checkpoint."),
    "another network": (meta(module={"type": "x.Net", "fields": {}}), "The checkpoint holds a x.Net, which is not jax"),
    "another field": (fields(depth=3), f"The checkpoint's {VGG} cannot be built from its fields: "),
    "no width": (fields(widths=[0]), f"The checkpoint's {VGG} cannot be built from its fields: widths hold 0;"),
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


@pytest.mark.parametrize("line", ["evaluate copy", "prune copy --ratio 0.1 --out new --recalibrate 2", "sweep copy"])
def test_images_that_the_network_does_not_see(call, home, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "pruned", tmp_path / "copy")
    changes = {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    edit_meta(tmp_path / "copy", lambda meta: meta["config"].update(changes))
    before = contents(tmp_path)
    assert_refused(call(line), f"{tmp_path}/copy cannot be applied to images of shape (8, 8, 3) (")
    assert contents(tmp_path) == before


def test_what_looks_like_markup_is_shown_as_it_is(call, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "pruned", tmp_path / "a[red]" / "b[" / "c]")
    meta(kind="[/x]")(tmp_path / "a[red]" / "b[" / "c]")
    shutil.copy(home / "data.npz", tmp_path / "data[blue].npz")
    done = call("evaluate 'a[red]/b[/c]' --dataset 'data[blue].npz'")
    assert (done.code, done.err) == (0, "")
    assert f"{tmp_path}/a[red]/b[/c] ([/x])\n" in done.out
    assert "data[blue].npz\n" in done.out


# In a run that was damaged or edited, and is then continued


def unfinished(*changes):
    """A run that has done one of its epochs, with changes to the checkpoint."""

    def change(run):
        shutil.rmtree(run / "checkpoints" / "12")
        for one in changes:
            one(run / "checkpoints" / "6")

    return change


def edit_config(**changes):
    def change(run):
        (run / "config.json").write_text(json.dumps(json.loads((run / "config.json").read_text()) | changes))

    return change


def file_for_folder(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")


def folder_for_file(run):
    (run / "config.json").unlink()
    (run / "config.json").mkdir()


SIX = "{copy}/checkpoints/6"
RUNS = {
    "half a configuration": (file_of("config.json", b"{"), "{copy}/config.json is not readable (Expecting property na"),
    "list as configuration": (file_of("config.json", b"[1]"), "{copy}/config.json is not readable ("),
    "other configuration": (edit_config(seed=3), "{copy} holds another run (seed 3 there, 0 here); choose another --w"),
    "earlier version": (edit_config(version="0.1.0"), "{copy} holds a run of jaxslim 0.1.0, which this version cannot"),
    "no configuration": (without("config.json"), "{copy} holds other files and no run; choose another --workdir."),
    "folder for its file": (folder_for_file, "{copy}/config.json is no file; choose another --workdir."),
    "file for its folder": (file_for_folder, "{copy}/checkpoints is a file and no folder; choose another --workdir."),
    "all damaged": (unfinished(without("checksums.json")), SIX + " is damaged: its checksums.json is missing; no othe"),
    "part of a checkpoint": (unfinished(without("training")), SIX + " is damaged: its file training/"),
    "no state": (unfinished(without("training"), seal), SIX + " cannot be read here, though its files are as they wer"),
    "no step": (unfinished(meta(step=None)), SIX + " is damaged: it is the checkpoint of step None; no other"),
    "other epoch": (unfinished(meta(epoch=9)), SIX + " is damaged: its meta tells step 6 after epoch 9; no other"),
}


@pytest.mark.parametrize(("change", "message"), RUNS.values(), ids=RUNS)
def test_in_a_run(call, home, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "sparse", tmp_path / "copy")
    change(tmp_path / "copy")
    before = contents(tmp_path)
    assert_refused(call(f"train {home}/config.py --workdir copy"), message.replace("{copy}", f"{tmp_path}/copy"))
    assert contents(tmp_path) == before


def test_a_run_at_which_another_process_is_at_work(call, home, tmp_path):
    shutil.copytree(home / "sparse", tmp_path / "copy")
    unfinished()(tmp_path / "copy")
    before = contents(tmp_path)
    with locked(tmp_path / "copy"):
        done = call(f"train {home}/config.py --workdir {tmp_path}/copy")
    assert_refused(done, f"{tmp_path}/copy is in use by another process; wait for it, or choose another --workdir.")
    assert contents(tmp_path) == before


ONE, TWO, THREE, FOUR = (b'{"epoch": %d}\n' % number for number in (1, 2, 3, 4))
METRICS = [(b"\xff\n", b""), (ONE + THREE + FOUR, ONE + THREE), (ONE + TWO + b"{\n", ONE + TWO), (b"[" * 99999, b"")]


@pytest.mark.parametrize(("text", "rows"), METRICS, ids=["bytes", "a row", "half a row", "endless"])
def test_metrics_that_lack_rows_are_kept_aside(tmp_path, caplog, text, rows):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(text)
    keep_rows(file, 3)
    assert file.read_bytes() == rows
    (aside,) = tmp_path.glob("metrics.jsonl.*.damaged")
    assert aside.read_bytes() == text
    assert re.search(r"metrics.jsonl lacks the rows of epoch [123, ]+; it is kept as metrics", caplog.text)


def test_rows_of_lost_epochs_are_dropped_and_none_is_counted_twice(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(ONE + TWO + b'{"epoch": 2, "again": 1}\n' + THREE + b'{"epo')
    keep_rows(file, 2)
    assert file.read_bytes() == ONE + TWO
    assert (caplog.text, list(tmp_path.iterdir())) == ("", [file])


# In a call from Python: n has the network of `sparse` with its graph and scores


@pytest.fixture(scope="module")
def network(home):
    module, variables, _ = jaxslim.load(home / "sparse")
    params, alone, kind = variables["params"], {"params": variables["params"]}, type(module)
    images, colour = np.zeros((1, 8, 8, 1), np.float32), np.zeros((1, 8, 8, 3), np.float32)
    graph, scores = jaxslim.trace(module.apply, variables, images), jaxslim.bn_scales(variables)
    return types.SimpleNamespace(**locals())


def save(variables):
    return lambda n: jaxslim.save(n.home / "new", n.module, variables)


ONES = np.ones(2, np.float32)
NOT_APPLIED = "The network cannot be applied ("
CALLS = {
    "trace a module": (lambda n: jaxslim.trace(n.module, n.variables, n.images), NOT_APPLIED + "Can't call compact"),
    "trace a class": (lambda n: jaxslim.trace(n.kind.apply, n.variables, n.images), NOT_APPLIED + "Can only call ini"),
    "trace params": (lambda n: jaxslim.trace(n.module.apply, n.params, n.images), NOT_APPLIED + "Tried to access "),
    "no means": (lambda n: jaxslim.trace(n.module.apply, n.alone, n.images), NOT_APPLIED + 'Tried to access "mean" '),
    "trace colour": (lambda n: jaxslim.trace(n.module.apply, n.variables, n.colour), NOT_APPLIED + "For parameter "),
    "trace an image": (lambda n: jaxslim.trace(n.module.apply, n.variables, n.images[0]), "The images have shape (8,"),
    "count no images": (lambda n: jaxslim.count(n.module.apply, n.variables, None), "The images have shape (); pass "),
    "count a module": (lambda n: jaxslim.count(n.module, n.variables, n.images), NOT_APPLIED + "Can't call compact me"),
    "scales of params": (lambda n: jaxslim.bn_scales(n.params), "The variables have no params; pass all that module."),
    "prune a class": (lambda n: jaxslim.prune(n.kind, n.variables, 0.5, n.images), "VGG is a class; pass a model"),
    "save over another": (lambda n: jaxslim.save(n.home / "pruned", n.module, n.variables), "{home}/pruned exists"),
    "save a class": (lambda n: jaxslim.save(n.home / "new", n.kind, n.variables), "The module is of type type; pass"),
    "save words": (save({"a": np.array(["x"])}), "The variables hold an array of <U1; turn it into numbers."),
    "save nothing": (save({}), "There are no arrays to save; pass the variables as"),
    "save lists": (save([ONES]), "A checkpoint holds nested dicts of arrays; con"),
    "save 64 bits": (save({"a": {"b": np.ones(2)}}), "JAX would read a/b, of float64, as float32; convert it"),
    "save holes": (save({"a": ONES, "batch_stats": {}}), "The variables hold nothing at batch_stats; leave it out."),
    "save slashes": (save({"a/b": ONES}), "The variables hold the key 'a/b'; use printable strings without slashes."),
    "save dots": (save({"a": {"b": ONES}, "a.b": ONES}), "Two arrays have one name, but for dots that stand for level"),
    "load a zero byte": (lambda n: jaxslim.load("a\0b"), "The path 'a\\x00b' is not valid UTF-8; choose another name."),
    "load as another": (lambda n: jaxslim.load(n.home / "pruned", nn.Dense), f"The checkpoint's {VGG} cannot be built"),
}


@pytest.mark.parametrize(("act", "message"), CALLS.values(), ids=CALLS)
def test_in_a_call(home, network, act, message):
    before = contents(home)
    with pytest.raises(InputError) as caught:
        act(network)
    assert str(caught.value).startswith(message.replace("{home}", str(home)))
    assert "\n" not in str(caught.value)
    assert lines(str(caught.value)) <= 4
    assert contents(home) == before
    assert not (home / "new").exists()
