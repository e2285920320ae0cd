"""The commands: what they print, what fine-tuning inherits, and that a mistake gets one message and changes nothing."""

import dataclasses
import functools
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_loop import contents, handled, rows, tiny, write_data

import jaxslim
from jaxslim.commands import cli, evaluate, importing
from jaxslim.commands import export as export_command
from jaxslim.commands import main as every_command
from jaxslim.commands import multipass as multipass_command
from jaxslim.commands import predict as predict_command
from jaxslim.commands import prune as prune_command
from jaxslim.commands import sensitivity as sensitivity_command
from jaxslim.commands import sweep as sweep_command
from jaxslim.commands import train as train_command
from jaxslim.commands.arguments import parse
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import save_cut
from jaxslim.experiments.finetuning import check_unchanged, finetuning
from jaxslim.experiments.passes import multipass
from jaxslim.slim.criteria.scales import scale_values
from jaxslim.storage import checkpoint
from jaxslim.training.config import DIGITS, TrainConfig
from jaxslim.training.loop import train
from jaxslim.training.run import Trained

HOME = Path(__file__).resolve().parents[1]
COMMANDS = {
    "train": train_command,
    "sweep": sweep_command,
    "sensitivity": sensitivity_command,
    "prune": prune_command,
    "multipass": multipass_command,
    "evaluate": evaluate,
    "predict": predict_command,
    "export": export_command,
    "import": importing,
}


def invoke(capsys, module, *argv):
    """Run a command in this process: its exit code, output and messages."""
    capsys.readouterr()
    code = 0
    try:
        cli.run(module.main, [str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    return types.SimpleNamespace(code=code, **capsys.readouterr()._asdict())


@pytest.fixture
def call(capsys, monkeypatch):
    """`invoke`, on a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    return functools.partial(invoke, capsys)


def flat(text):
    """Without the line breaks and frames that suit a terminal's width."""
    return " ".join(re.sub("[╭╮╰╯│─]|-{9,}", " ", text).split())


def python(*argv, cwd, **variables):
    words, environment = [sys.executable, *map(str, argv)], os.environ | variables
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def text(value):
    """A value of NAME=VALUE."""
    return ",".join(map(str, value)) + "," * (len(value) == 1) if isinstance(value, tuple) else str(value)


def options(config):
    """A configuration as words of the command line."""
    words = []
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        if value == getattr(TrainConfig(), field.name):
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            words += [flag, *(f"{name}={text(item)}" for name, item in value.items())]
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


@functools.cache
def make_home(base):
    """A folder that the tests of a session share and leave as it is.

    It holds a config file, its finished run `sparse`, a run `dense` without L1, the network `pruned` that was cut from
    `sparse`, a damaged copy `broken`, a `link` to nothing, and a data set `ten.npz` of other classes.
    """
    folder = base / "home"
    config = tiny(folder, workdir=str(folder / "sparse"), epochs=12)  # enough to learn what a cut spoils
    fields = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(config).items())
    (folder / "config.py").write_text(
        f"from jaxslim.training.config import TrainConfig\nconfig = TrainConfig({fields})\n"
    )
    train(config)
    train(tiny(folder, workdir=str(folder / "dense"), epochs=1, l1=0.0))
    save_cut(folder / "sparse", folder / "pruned", 0.5)
    write_data(folder / "ten.npz", classes=10)
    (folder / "link").symlink_to(folder / "nowhere")
    for file in (folder / "pruned").rglob("*"):
        if file.is_file():
            raw, target = file.read_bytes(), folder / "broken" / file.relative_to(folder / "pruned")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(raw[: len(raw) // 2] if file.parent.name == "d" else raw)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.getbasetemp())


def assert_one_message(done, message, code=2):
    """One message, a cause with its fix, and no traceback."""
    assert done.code == code
    assert message in flat(done.err), done.err
    assert "Traceback" not in done.err
    assert done.err.count("jaxslim: ") + done.err.count("For full helptext") == 1


# All commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_does_not_wait_for_jax(tmp_path, name):
    done = python("-X", "importtime", "-m", "jaxslim", name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert not re.search(r"\| +(jax|flax|numpy|orbax)$", done.stderr, re.MULTILINE)
    assert f"\nExamples:\n  jaxslim {name}" in done.stdout
    assert not re.search(r"None|\bSTR\b|\bINT\b|\bFLOAT\b", done.stdout)
    assert {len(line) for line in done.stdout.splitlines() if line[0:1] in "│╭╰" and line} == {80}
    kind = TrainConfig if name == "train" else COMMANDS[name].Options
    for field in dataclasses.fields(kind):
        assert re.search(rf"--{field.name.replace('_', '-')}\b|\b{field.name.upper()}\b", done.stdout), field.name


def test_the_command_that_finds_the_others(call):
    assert "\n  prune        cut channels" in call(every_command, "--help").out
    alone = call(every_command)
    assert (alone.code, alone.out) == (2, "")
    assert alone.err.startswith("usage: jaxslim COMMAND")
    assert call(every_command, "--version").out == f"jaxslim {jaxslim.__version__}\n"
    assert_one_message(call(every_command, "evaluate", "no"), "There is no checkpoint")


def test_a_backend_that_does_not_exist(home):
    done = python("-m", "jaxslim", "evaluate", "sparse", cwd=home, JAX_PLATFORMS="nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"jaxslim: JAX cannot start the backend 'nonsense' that JAX_PLATFORMS asks for \(.+\); unset JAX_PLATFORMS\. "
        r"A GPU needs a build for it: pip install 'jax\[cuda\]'\.\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("name", "words"), [("train", ["config.py", "--workdir", "new"]), ("prune", ["sparse", "--ratio=0.5", "--out=new"])]
)
def test_devices_that_cannot_be_started(call, home, monkeypatch, name, words):
    """As by JAX's plugin for CUDA, which raises an AssertionError without text where there is no GPU."""

    def absent():
        raise AssertionError

    monkeypatch.chdir(home)
    monkeypatch.setattr(jax, "devices", absent)
    monkeypatch.delenv("JAX_PLATFORMS")
    before = contents(home)
    assert_one_message(call(COMMANDS[name], *words), "JAX cannot start its devices; end the process that holds them")
    assert contents(home) == before


def test_the_printed_commands_lead_from_training_to_evaluation(call, tmp_path, monkeypatch):
    """From another folder, for data of one's own, with names that a shell would split."""
    folder, elsewhere = tmp_path / "my data", tmp_path / "elsewhere"
    config = tiny(folder, workdir="my run", dataset="data.npz", epochs=1)
    elsewhere.mkdir()
    monkeypatch.chdir(folder)
    done = call(train_command, *options(config))
    seen = []
    while found := re.findall(r"^(?:Next|or): +jaxslim (.+)$", done.out, re.MULTILINE):
        monkeypatch.chdir(elsewhere)
        name, *words = shlex.split(found[-1])
        seen.append(name)
        done = call(COMMANDS[name], *words)
        assert done.code == 0, done.err
    assert seen == ["prune", "train", "evaluate"]
    assert not list(elsewhere.iterdir())
    tuned = checkpoint.load(folder / "my run-pruned-finetuned").meta
    assert tuned["parent"]["path"] == str(folder / "my run-pruned")
    assert f"test images of {folder}/data.npz" in done.out


# Train


def test_train_in_a_process_of_its_own(tmp_path):
    """Without CONFIG: the digits, with sparsity, here into a smaller network."""
    small = ["--epochs", 1, "--image-size", 8, "--model-args", "widths=4,M,8", "--tensorboard"]
    done = python("-m", "jaxslim.train", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *_, sweep, prune = done.stdout.splitlines()
    assert first.startswith("No CONFIG given: training on the digits of scikit-learn with sparsity")
    assert sweep == f"Next: jaxslim sweep {tmp_path}/runs/digits-sparse"
    assert prune.startswith(f"or:   jaxslim prune {tmp_path}/runs/digits-sparse --ratio 0.7 --out {tmp_path}/runs/")
    assert re.search(r"^epoch 1/1  loss .* images/s$", done.stderr.strip())
    meta = checkpoint.load(tmp_path / "runs" / "digits-sparse" / "best").meta
    assert (meta["kind"], meta["config"]["dataset"], meta["config"]["l1"]) == ("sparse", "digits", 0.01)
    (events,) = (tmp_path / "runs" / "digits-sparse" / "tensorboard").iterdir()
    assert b"small_scales" in events.read_bytes()


@pytest.fixture
def trained(monkeypatch):
    """The configurations that the command hands to the training loop, which does nothing."""
    configs = []

    def record(config):
        configs.append(config)
        return Trained(Path(config.folder), {}, {})

    monkeypatch.setattr(importlib.import_module("jaxslim.training.loop"), "train", record)
    return configs


def test_configs_by_name_and_path(call, trained, home):
    listed = call(train_command, "--list").out
    assert re.search(r"^cifar10-sparse +VGG-19 on CIFAR-10 with the L1 pull", listed, re.MULTILINE)
    assert len(listed.splitlines()) == len(list((HOME / "configs").glob("*.py")))
    assert call(train_command).code == call(train_command, "digits-baseline").code == 0
    assert call(train_command, "cifar10_sparse", "--epochs", 7).code == 0
    assert call(train_command, home / "config.py", "--workdir", home / "new", "--lr-drops", 0.25).code == 0
    assert [config.name for config in trained] == ["digits-sparse", "digits-baseline", "cifar10-sparse", "tiny"]
    assert trained[0] == DIGITS
    assert (trained[2].model, trained[2].epochs) == ("vgg19", 7)
    assert trained[3] == tiny(home, workdir=str(home / "new"), epochs=12, lr_drops=(0.25,))


def test_data_of_ones_own_without_a_config(call, trained, home, monkeypatch):
    monkeypatch.chdir(home)
    call(train_command, "--dataset", "data.npz", "--image-size", 24)
    call(train_command, "--dataset", "data.npz", "--channels", 1)
    call(train_command, "--channels", 3)
    colour, grey, digits = trained
    assert (colour.dataset, colour.name, colour.channels, colour.image_size) == (
        f"{home}/data.npz",
        "data-sparse",
        3,
        24,
    )
    assert (grey.channels, grey.mean, grey.std) == (1, (0.5,), (0.5,))
    assert (digits.dataset, digits.channels, digits.mean) == ("digits", 3, (0.5, 0.5, 0.5))


def test_another_model_does_not_take_the_arguments_of_the_config_s(call, trained):
    call(train_command, "--model", "vgg11")
    call(train_command, "--model", "vgg", "--model-args", "widths=4,M")
    assert [(config.model, config.model_args) for config in trained] == [("vgg11", {}), ("vgg", {"widths": (4, "M")})]


def test_every_field_has_its_option(call, trained):
    config = TrainConfig(
        name="other",
        workdir="some/where",
        dataset="cifar100",
        data_dir="/data",
        image_size=24,
        channels=1,
        holdout=0.2,
        mean=(0.25,),
        std=(0.25,),
        augment=("flip", "crop"),
        pad=3,
        model="vgg",
        model_args={"widths": (3, "M", 5)},
        dtype="bfloat16",
        epochs=3,
        batch_size=32,
        loss="focal",
        label_smoothing=0.1,
        distill_from="/some/teacher",
        distill_temperature=2.0,
        distill_weight=0.5,
        optimizer="adamw",
        optimizer_args={"b2": 0.95, "nesterov": True},
        learning_rate=0.5,
        schedule="cosine",
        warmup=0.1,
        fit="crop",
        stream="always",
        workers=3,
        skip_broken=True,
        accumulate=2,
        ema=0.99,
        lr_drops=(0.1, 0.2, 0.3),
        lr_drop_factor=0.5,
        momentum=0.8,
        weight_decay=0.0,
        decay_scales=False,
        l1=1e-3,
        l1_method="proximal",
        group_lasso=1e-4,
        group_lasso_growth=0.5,
        progressive=0.5,
        progressive_steps=3,
        progressive_schedule="linear",
        save_every=3,
        seed=7,
        eval_batch_size=32,
        compilation_cache=False,
        tensorboard=True,
    )
    for name, value in dataclasses.asdict(TrainConfig()).items():
        assert getattr(config, name) != value or name == "init_from"
    assert call(train_command, *options(config)).code == 0
    assert trained == [config]


_name = st.text("abcdefg_", min_size=1)
_plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _name


@given(st.dictionaries(_name, _plain | st.lists(_plain, min_size=1).map(tuple)))
def test_arguments_by_name_come_back(arguments):
    words = ["--optimizer-args", *(f"{name}={text(value)}" for name, value in arguments.items())]
    assert parse(TrainConfig, words, prog="", examples=(), default=DIGITS).optimizer_args == arguments


MISTAKES = {
    "a second config": ("train config.py --seed 0 more.py", "Give one config: jaxslim train config.py [OPTIONS]."),
    "no start": ("train --init-from --epochs 3", "Missing value for argument '--init-from'"),
    "channels of another": ("train --init-from pruned --channels 3", "channels is 3, and the network of {home}/pruned"),
    "other arguments": ("train --init-from pruned --model-args a=3", "model_args is {'a': 3}, and the network of"),
    "cut over a link": ("prune sparse --ratio 0.5 --out link", "{home}/link exists already and checkpoints are never"),
    "cut in a checkpoint": ("prune sparse --ratio 0.5 --out pruned/x", "{home}/pruned/x lies among a run's own"),
    "cut called checkpoints": ("prune sparse --ratio 0.5 --out new/checkpoints", "{home}/new/checkpoints holds a ch"),
    "report in itself": ("sweep pruned --out pruned", "{home}/pruned holds a checkpoint; choose another --out."),
    "report in a step": ("sweep sparse --out sparse/checkpoints/72", "{home}/sparse/checkpoints/72 holds a checkpoint"),
    "report in steps": ("sweep sparse --out sparse/checkpoints", "{home}/sparse/checkpoints holds a checkpoint; choo"),
    "report among steps": ("sweep sparse --out sparse/checkpoints/new", "{home}/sparse/checkpoints/new lies among a r"),
    "empty report": ("sweep sparse --out ''", "--out is empty; give a folder for the report."),
    "endless tuning": ("sweep sparse --finetune-epochs 1000000000", "1000000000 epochs take 6000000000 steps, more th"),
    "batches of a sweep": ("sweep sparse --recalibrate -1", "recalibrate is -1; it must be a number of batches, 0 or"),
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(call, home, monkeypatch, line, message):
    """More of them are in test_mistakes.py. No work comes before the message."""
    monkeypatch.chdir(home)
    monkeypatch.setattr("jaxslim.slim.prune.cut", None)
    before, names = contents(home), sorted(home.iterdir())
    done = call(every_command, *shlex.split(line))
    assert_one_message(done, message.replace("{home}", str(home)))
    assert contents(home) == before
    assert sorted(home.iterdir()) == names


def test_a_diverged_run_exits_with_1(call, tmp_path):
    config = tiny(tmp_path, learning_rate=1e30)
    done = call(train_command, *options(config))
    assert_one_message(done, "The training diverged in epoch 1, step 2, at learning rate 1e+30; lower", code=1)
    assert "No checkpoint was saved." in done.err
    assert rows(tmp_path / "run") == []


def test_ctrl_c_says_how_to_go_on(call, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("jaxslim.training.loop"), "train", stopped)
    done = call(train_command)
    assert_one_message(done, "stopped; run the same command again. A training run goes on", code=130)


def test_ctrl_c_that_an_import_turns_into_another_error(capsys):
    """As extension modules do that are interrupted while they are imported."""

    def main(argv):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("Encountered an error while initializing the extension.") from None

    with handled(signal.SIGINT, signal.default_int_handler):
        with pytest.raises(SystemExit) as caught:
            cli.run(main, [])
        after = signal.getsignal(signal.SIGINT)
    assert caught.value.code == 130
    assert capsys.readouterr().err.startswith("jaxslim: stopped; run the same command again")
    assert after is signal.default_int_handler


def test_ctrl_c_in_a_callback_is_not_lost(tmp_path):
    """As one during garbage collection, whose exceptions Python prints and drops."""
    code = (
        "import os, signal, time\n"
        "from jaxslim.commands import cli\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.01)\n"
        "def main(argv):\n"
        "    Last()\n"
        "    time.sleep(20)\n"
        "    print('went on')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.run(main, [])\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    assert (
        done.stderr
        == "jaxslim: stopped; run the same command again. A training run goes on from its latest checkpoint.\n"
    )


# Fine-tuning


def test_fine_tuning_takes_data_and_recipe_from_the_checkpoint(home):
    original = tiny(home, workdir=str(home / "sparse"), epochs=12)
    changes = {"l1": 0.0, "schedule": "cosine", "learning_rate": 0.01}
    for path, name in (("pruned", "pruned"), ("sparse/best", "sparse"), ("sparse/checkpoints/66", "sparse")):
        place = {"name": f"{name}-finetuned", "workdir": f"{home}/{name}-finetuned", "init_from": str(home / path)}
        assert finetuning(home / path) == dataclasses.replace(original, **changes, **place)
    named = finetuning(home / "pruned", name="other", epochs=3)
    assert (named.workdir, named.epochs) == (f"{home}/other", 3)


def test_fine_tuning_by_a_recipe_takes_the_data_from_the_checkpoint(home):
    recipe = TrainConfig(name="mine", batch_size=12, l1=1e-5)
    mine = finetuning(home / "pruned", recipe)
    known = {"dataset", "image_size", "channels", "mean", "std", "model", "model_args"}
    original = dataclasses.asdict(tiny(home))
    for name, value in dataclasses.asdict(mine).items():
        expected = original[name] if name in known else getattr(recipe, name)
        assert value == (str(home / "pruned") if name == "init_from" else expected), name


def test_a_checkpoint_that_was_fine_tuned_keeps_its_rate(home, tmp_path):
    module, variables, _ = checkpoint.load(home / "pruned")
    config = dataclasses.asdict(finetuning(home / "pruned"))
    jaxslim.save(tmp_path / "tuned", module, variables, {"config": config})
    again = finetuning(tmp_path / "tuned")
    assert (again.learning_rate, again.schedule, again.workdir) == (0.01, "cosine", f"{tmp_path}/tuned-finetuned")


def test_fine_tuning_goes_on_without_the_pull_on_channels(home, tmp_path):
    """A run from a checkpoint that pulls still is no fine-tuning: the next one lowers its rate."""
    module, variables, _ = checkpoint.load(home / "pruned")
    config = dataclasses.replace(finetuning(home / "pruned"), group_lasso=0.25, learning_rate=0.5)
    jaxslim.save(tmp_path / "sparse", module, variables, {"config": dataclasses.asdict(config)})
    tuned = finetuning(tmp_path / "sparse")
    assert (tuned.group_lasso, tuned.l1, tuned.learning_rate) == (0.0, 0.0, 0.05)


def test_a_checkpoint_without_a_configuration(call, home, tmp_path):
    module, variables, meta = checkpoint.load(home / "pruned")
    jaxslim.save(tmp_path / "bare", module, variables, {"image_shape": meta["image_shape"]})
    with pytest.raises(InputError, match="names no training configuration; give a CONFIG"):
        finetuning(tmp_path / "bare")
    mine = finetuning(tmp_path / "bare", tiny(home))
    assert mine == dataclasses.replace(tiny(home), init_from=str(tmp_path / "bare"))
    check_unchanged(dataclasses.replace(mine, model="vgg11"), tmp_path / "bare")  # nothing is known
    assert_one_message(call(evaluate, tmp_path / "bare"), "bare names no training configuration")
    done = call(prune_command, tmp_path / "bare", "--ratio", 0.2, "--out", tmp_path / "cut")
    assert done.code == 0
    assert "accuracy    not measured: " in done.out
    assert done.out.endswith(f"Saved {tmp_path}/cut.\n")


def test_the_command_fine_tunes_a_checkpoint(call, trained, home, monkeypatch):
    monkeypatch.chdir(home)
    assert call(train_command, "--init-from", "pruned", "--epochs", 5, "--dataset", "ten.npz").code == 0
    assert call(train_command, "--init-from=pruned", "--name", "other", "--channels", 1).code == 0
    assert call(train_command, "digits-finetune", "--init-from", home / "pruned").code == 0
    plain, named, recipe = trained
    assert plain == finetuning(home / "pruned", epochs=5, dataset=f"{home}/ten.npz")
    assert named == finetuning(home / "pruned", name="other")
    assert (recipe.name, recipe.dataset, recipe.image_size, recipe.epochs) == (
        "digits-finetuned",
        f"{home}/data.npz",
        8,
        12,
    )
    assert recipe.learning_rate == 0.1


# Prune


def layers(out):
    """Rows of the table that prune prints: name, channels before and after, share cut, protected."""
    return re.findall(r"^(\S+) +(\d+) +(\d+) +(\d+)% *(\S*)$", out, re.MULTILINE)


def test_prune_prints_sizes_and_accuracies(call, home, tmp_path):
    done = call(prune_command, home / "sparse", "--ratio", 0.7, "--out", tmp_path / "cut")
    assert (done.code, done.err) == (0, "")
    loaded = checkpoint.load(tmp_path / "cut")
    a, b = (width for width in loaded.module.widths if width != "M")
    assert a + b == 12 - 8  # int(12 * 0.7)
    share = [str(round(100 - 100 * kept / width)) for kept, width in ((a, 4), (b, 8))]
    assert [row[:4] for row in layers(done.out)] == [("bn0", "4", str(a), share[0]), ("bn1", "8", str(b), share[1])]
    params, macs = 9 * a + 2 * a + 9 * a * b + 2 * b + 3 * b + 3, 64 * 9 * a + 16 * 9 * a * b + 3 * b
    said = flat(done.out)
    assert "channels requested 70.00%, cut 66.67%" in said
    assert f"parameters 375 -> {params:,} ({params / 375:.1%})" in said
    assert f"MACs 6,936 -> {macs:,} ({macs / 6936:.1%})" in said
    assert re.search(r"check logits within \d\.\de-0[6-9] of the full network's with those channels at zero", said)
    assert "absorbed constants into" in said
    assert (loaded.meta["kind"], loaded.meta["cost"]) == ("pruned", {"params": params, "macs": macs})
    images = np.load(home / "data.npz")
    pixels = (images["test_images"] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    accuracy = np.mean(np.asarray(loaded.module.apply(loaded.variables, pixels)).argmax(-1) == images["test_labels"])
    full = rows(home / "sparse")[-1]["accuracy"]
    assert f"accuracy {full:.2%} -> {accuracy:.2%} on 24 test images of {home}/data.npz, before fine-tuning" in said
    assert done.out.endswith(f"Saved {tmp_path}/cut.\nNext: jaxslim train --init-from {tmp_path}/cut\n")


def test_options_of_prune(call, home, tmp_path, monkeypatch):
    scales = jax.tree.leaves(jaxslim.bn_scales(jaxslim.load(home / "sparse").variables))
    threshold = sorted(float(score) for layer in scales for score in layer)[4]
    done = call(prune_command, home / "sparse", "--threshold", threshold, "--no-absorb", "--out", tmp_path / "a")
    assert (done.code, sum(int(row[2]) for row in layers(done.out))) == (0, 12 - 5)
    assert "channels by threshold, cut 41.67%" in flat(done.out)
    assert "absorbed" not in done.out
    words = "sparse --ratio 0.2 --leave bn1 --min-channels 2 --multiple-of 3 --max-layer-ratio 0.5 --recalibrate 2"
    monkeypatch.chdir(home)
    done = call(prune_command, *shlex.split(words), "--out", tmp_path / "b")
    assert [int(row[2]) for row in layers(done.out)] == [3, 8]  # 2 stay of bn0, which is no multiple of 3
    assert "statistics of 2 training batches" in flat(done.out)
    asked = {"leave": ["bn1"], "min_channels": 2, "multiple_of": 3, "max_layer_ratio": 0.5, "recalibrate": 2}
    made = checkpoint.load(tmp_path / "b").meta["plan"]
    assert {name: made[name] for name in asked} == asked


def test_prune_without_the_data(call, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    cut = functools.partial(call, prune_command, "sparse", "--ratio", 0.5, "--out")
    data = (home / "data.npz").rename(tmp_path / "moved.npz")
    try:
        absent, moved = cut(tmp_path / "a"), cut(tmp_path / "b", "--dataset", os.path.relpath(data))
        other, needed = cut(tmp_path / "c", "--dataset", "ten.npz"), cut(tmp_path / "d", "--recalibrate", 1)
    finally:
        data.rename(home / "data.npz")
    assert f"accuracy    not measured: There is no file or folder {home}/data.npz; check the path.\n" in absent.out
    assert f"on 24 test images of {data}" in moved.out
    assert moved.out.endswith(f"Next: jaxslim train --init-from {tmp_path}/b --dataset {data}\n")
    assert "not measured: sparse tells 3 classes apart" in other.out
    assert other.out.endswith(f"Next: jaxslim train --init-from {tmp_path}/c\n")
    assert_one_message(needed, "There is no file or folder")
    assert not (tmp_path / "d").exists()


def test_a_damaged_checkpoint_in_a_process_of_its_own(home):
    """Orbax reads in threads, which would print tracebacks of their own."""
    done = python("-m", "jaxslim", "evaluate", "broken", cwd=home)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"jaxslim: \S+ is damaged: its file \S+ is missing or changed; take another checkpoint\.\n", done.stderr
    )


# Evaluate


def test_evaluate(call, home):
    done = call(evaluate, home / "sparse" / "latest", "--batch-size", 7)
    assert (done.code, done.err) == (0, "")
    row = rows(home / "sparse")[-1]
    found = dict(line.split(maxsplit=1) for line in done.out.partition("\n\n")[0].splitlines())
    assert found["checkpoint"] == f"{home}/sparse/checkpoints/72 (sparse)"
    assert found["network"] == "VGG [4, 'M', 8]"
    assert found["accuracy"] == f"{row['accuracy']:.2%} on 24 test images of {home}/data.npz"
    assert re.fullmatch(r"\d\.\d{4}", found["loss"])
    assert found["parameters"] == "375"
    assert found["MACs"] == "6,936 multiply-accumulates an image"
    for what in ("1 image", "64 images"):
        assert re.search(rf"^latency +\d+\.\d\d ms for {what} \(median of 20, ", done.out, re.MULTILINE)


def test_a_disk_that_takes_no_more_is_one_line_a_save(tmp_path):
    """Each file may have two kilobytes; orbax would print tracebacks from its threads."""
    words = shlex.join(options(tiny(tmp_path, epochs=2, compilation_cache=False, model_args={"widths": (8, "M", 8)})))
    limited = f"ulimit -f 2; exec '{sys.executable}' -m jaxslim.train {words}"
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("A checkpoint could not be saved: [Errno ") == 2
    assert len(done.stderr.splitlines()) == 2 * 2 + 1  # a row and a line for each epoch, and the last
    assert re.search(r"^jaxslim: \S+/run/checkpoints/12: .*has room\.$", done.stderr, re.MULTILINE)
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*")) == []
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 2


# Several passes, and targets


def test_each_pass_cuts_up_to_the_median_and_trains_on(call, home, tmp_path):
    done = call(multipass_command, home / "sparse", "--passes", 2, "--epochs", 1, "--out", tmp_path / "passes")
    assert done.code == 0, done.err
    rows = re.findall(r"^ *(\d) +([\d.]+)%(?: +([\d,]+) +([\d,]+))?$", done.out, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "1", "2"]
    source, layers = home / "sparse", []
    for number in (1, 2):
        cut = checkpoint.load(tmp_path / "passes" / f"pass-{number}-cut")
        scales = np.sort(scale_values(checkpoint.load(source).variables))
        assert cut.meta["plan"]["threshold"] == float(scales[len(scales) // 2 - 1])
        assert all(layer["after"] >= layer["before"] / 2 for layer in cut.meta["plan"]["layers"])
        source = tmp_path / "passes" / f"pass-{number}"
        config = json.loads((source / "config.json").read_text())
        assert config["l1"] == checkpoint.load(home / "sparse").meta["config"]["l1"] > 0
        layers.append([layer["after"] for layer in cut.meta["plan"]["layers"]])
        assert rows[number][2] == f"{cut.meta['cost']['params']:,}"
    assert sum(layers[1]) < sum(layers[0])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "passes").rglob("checksums.json")}
    again = call(multipass_command, home / "sparse", "--passes", 2, "--epochs", 1, "--out", tmp_path / "passes")
    assert again.out.splitlines()[-4:] == done.out.splitlines()[-4:]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "passes").rglob("checksums.json")} == before


def test_the_scheme_needs_sparsity(home, tmp_path):
    with pytest.raises(jaxslim.InputError, match="was not trained with L1, which the scheme needs; train with --l1"):
        next(multipass(home / "dense", tmp_path / "out"))
    with pytest.raises(jaxslim.InputError, match="passes is 0; it must be at least 1"):
        next(multipass(home / "sparse", tmp_path / "out", 0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--macs", "0.5"), r"channels    macs: [1-4]\d\.\d\d% left, 50\.00% wanted, cut"),
        (
            ("--params", "0.6", "--criterion", "magnitude", "--scope", "layer"),
            r"params: [3-5]\d\.\d\d% left, 60\.00% wa",
        ),
        (("--macs", "0.6", "--criterion", "taylor"), r"macs: [2-5]\d\.\d\d% left, 60\.00% wanted"),
        (("--ratio", "0.5", "--criterion", "activation"), r"requested 50\.00%, cut"),
        (("--latency", "100s"), r"latency: [\d.]+ ms, 100s wanted, cut 0\.00%"),
    ],
)
def test_prune_meets_targets_by_any_criterion(call, home, tmp_path, words, said):
    done = call(prune_command, home / "sparse", *words, "--out", tmp_path / "cut")
    assert (done.code, done.err) == (0, "")
    assert re.search(said, done.out), done.out
    made = checkpoint.load(tmp_path / "cut").meta["plan"]
    assert made.get("criterion") == (words[words.index("--criterion") + 1] if "--criterion" in words else None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--macs", "0.00001"), "jaxslim: macs=1e-05 cannot be met: with min_channels=1 and the layers left alone"),
        (("--latency", "soon"), "jaxslim: The latency is 'soon'; give a share such as 0.5, or a time such as"),
        (("--macs", "2"), "jaxslim: macs is 2.0; it must be a share in (0, 1): 0.5 leaves half."),
    ],
)
def test_targets_that_cannot_be_met(call, home, tmp_path, words, message):
    done = call(prune_command, home / "sparse", *words, "--out", tmp_path / "cut")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(message)
    assert not (tmp_path / "cut").exists()
