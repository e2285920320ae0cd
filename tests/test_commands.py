"""The commands: what they print, and that each mistake gets one message, an exit code, and changes nothing."""

import dataclasses
import functools
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest
from test_loop import contents, handled, rows, tiny, write_data

import jaxslim
from jaxslim.commands import cli, evaluate
from jaxslim.commands import train as train_command
from jaxslim.storage import checkpoint
from jaxslim.training.config import DIGITS, TrainConfig
from jaxslim.training.loop import train

HOME = Path(__file__).resolve().parents[1]
prune_command = importlib.import_module("jaxslim.commands.prune")
FIRST_LINE = (
    "No CONFIG given: training on the built-in digits with sparsity. For CIFAR-10: configs/cifar10_baseline.py, "
    "configs/cifar10_sparse.py, configs/cifar10_finetune.py"
)


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


def options(config):
    """A configuration as words of the command line."""
    words = []
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        if value != field.default and isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif value != field.default:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return [*words, *([] if config.flip else ["--no-flip"])]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config file, its finished run `sparse`, and a network cut from it, `pruned`."""
    folder = tmp_path_factory.mktemp("home")
    config = tiny(folder, workdir=str(folder / "sparse"), epochs=2)
    fields = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(config).items())
    (folder / "config.py").write_text(
        f"from jaxslim.training.config import TrainConfig\nconfig = TrainConfig({fields})\n"
    )
    train(config)
    prune_command.save_cut(folder / "sparse", folder / "pruned", 0.5)
    return folder


@pytest.fixture(scope="module")
def damaged(home):
    """`home`, with a checkpoint cut short, an empty file, and a data set of other classes."""
    write_data(home / "ten.npz", classes=10)
    (home / "empty").write_text("")
    for file in (home / "pruned").rglob("*"):
        if file.is_file():
            raw = file.read_bytes()
            target = home / "broken" / file.relative_to(home / "pruned")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(raw[: len(raw) // 2] if file.parent.name == "d" else raw)
    return home


# Train


def test_help_is_complete_and_does_not_wait_for_jax(tmp_path):
    done = python("-X", "importtime", "-m", "jaxslim.train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert not re.search(r"\| +(jax|flax|numpy|orbax)$", done.stderr, re.MULTILINE)
    assert re.search(r"\| +tyro$", done.stderr, re.MULTILINE)
    assert "configs/cifar10_sparse.py" in done.stdout
    assert "Strength of the L1 pull on the BatchNorm scales" in flat(done.stdout)
    for field in dataclasses.fields(TrainConfig):
        assert re.search(rf"--{field.name.replace('_', '-')}\b.*\n", done.stdout)
    assert max(len(line) for line in done.stdout.splitlines() if line.startswith("│")) == 80


def test_train_in_a_process_of_its_own(tmp_path):
    """Without CONFIG: the digits, with sparsity, here into a smaller network."""
    small = ["--epochs", 1, "--image-size", 8, "--widths", 4, "M", 8, "--tensorboard"]
    done = python("-m", "jaxslim.train", *small, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, FIRST_LINE)
    assert re.search(r"^epoch 1/1  loss .* images/s$", done.stderr.strip())
    meta = checkpoint.load(tmp_path / "runs" / "digits-sparse" / "best").meta
    assert (meta["kind"], meta["config"]["dataset"], meta["config"]["l1"]) == ("sparse", "digits", 0.01)
    (events,) = (tmp_path / "runs" / "digits-sparse" / "tensorboard").iterdir()
    assert b"small_scales" in events.read_bytes()


@pytest.fixture
def trained(monkeypatch):
    """The configurations that the command hands to the training loop, which does nothing."""
    configs = []
    monkeypatch.setattr(importlib.import_module("jaxslim.training.loop"), "train", configs.append)
    return configs


def test_train_without_a_config(call, trained):
    done = call(train_command)
    assert (done.code, done.out, done.err, trained) == (0, FIRST_LINE + "\n", "", [DIGITS])


def test_train_with_a_config_and_overrides(call, trained, home):
    new = ("--workdir", home / "new")
    done = call(train_command, home / "config.py", "--epochs", 7, "--lr-drops", 0.25, "--widths", 2, "M", *new)
    config = tiny(home, workdir=str(home / "new"), epochs=7, lr_drops=(0.25,), widths=(2, "M"))
    assert (done.code, done.out, done.err, trained) == (0, "", "", [config])


# Each field: words, what they mean, words of another type (none where everything is a text).
FIELDS = {
    "name": (["other"], "other", None),
    "workdir": (["some/where"], "some/where", None),
    "dataset": (["cifar100"], "cifar100", None),
    "data_dir": (["data"], "data", None),
    "image_size": (["24"], 24, "large"),
    "channels": (["3", "--mean", "0", "0", "0", "--std", "1", "1", "1"], 3, "2"),
    "holdout": (["0.2"], 0.2, "some"),
    "mean": (["0.25"], (0.25,), "dark"),
    "std": (["0.25"], (0.25,), "dark"),
    "pad": (["3"], 3, "1.5"),
    "flip": ([], True, None),
    "model": (["vgg11"], "vgg11", "vgg12"),
    "widths": (["3", "M", "5"], (3, "M", 5), "X"),
    "init_from": (["runs/x"], "runs/x", None),
    "dtype": (["bfloat16"], "bfloat16", "int8"),
    "epochs": (["3"], 3, "three"),
    "batch_size": (["32"], 32, "3.5"),
    "learning_rate": (["0.5"], 0.5, "fast"),
    "lr_drops": (["0.1", "0.2", "0.3"], (0.1, 0.2, 0.3), "half"),
    "lr_drop_factor": (["0.5"], 0.5, "half"),
    "momentum": (["0.8"], 0.8, "some"),
    "weight_decay": (["0"], 0.0, "none"),
    "decay_scales": ([], False, None),
    "schedule": (["one-cycle"], "one-cycle", "linear"),
    "l1": (["1e-3"], 0.001, "some"),
    "l1_method": (["proximal"], "proximal", "huber"),
    "save_every": (["3"], 3, "often"),
    "seed": (["7"], 7, "random"),
    "eval_batch_size": (["32"], 32, "all"),
    "compilation_cache": ([], False, None),
    "tensorboard": ([], True, None),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainConfig)])
def test_every_field_has_its_option(call, trained, name):
    words, value, wrong = FIELDS[name]
    flag = ("--no-" if value is False else "--") + name.replace("_", "-")
    assert call(train_command, flag, *words).code == 0
    assert getattr(trained[0], name) == value != getattr(DIGITS, name)
    if wrong:
        done = call(train_command, flag, wrong)
        assert (done.code, len(trained)) == (2, 1)
        assert flag in flat(done.err)
        assert re.search(rf"\b{wrong}\b", flat(done.err))
        assert "--help" in done.err


NEW = ["--workdir", "{home}/new"]
TRAIN_MISTAKES = {
    "unknown field": (["--epoch", 3], "Unrecognized options: --epoch, 3 Perhaps you meant: --epochs INT"),
    "another argument": (["more.py"], "Unrecognized options: more.py"),
    "negative epochs": (["--epochs", -1], "epochs is -1; it must be a number of at least 1."),
    "no convolution": (["--widths", "M", "M"], "widths ('M', 'M') hold no convolution; give channel counts"),
    "too many poolings": (
        ["--widths", 4, *"MMMM"],
        "4 poolings shrink images of 8 pixels to nothing; raise image_s",
    ),
    "too deep a model": (
        [*NEW, "--widths", "None"],
        "4 poolings shrink images of 8 pixels to nothing; raise image_",
    ),
    "absent file": (
        [*NEW, "--dataset", "{home}/no.npz"],
        "There is no file or folder {home}/no.npz; check the path.",
    ),
    "unknown data": ([*NEW, "--dataset", "cifar11"], "no data set called cifar11; did you mean cifar1"),
    "unprepared data": (
        [*NEW, "--dataset", "cifar100", "--data-dir", "{home}/tfds"],
        "cifar100 is not prepared in {home}/tfds. Preparing it needs TensorFlow once; training does not: pip install",
    ),
    "large batch": (
        [*NEW, "--batch-size", 49],
        "A batch of 49 is larger than the training set of 48; use a smaller",
    ),
    "no start": ([*NEW, "--init-from", "{home}/no"], "There is no checkpoint {home}/no; check the path."),
    "odd start": ([*NEW, "--init-from", "{home}/config.py"], "config.py is not a checkpoint of jaxslim"),
    "other classes": (
        [*NEW, "--init-from", "{home}/pruned", "--dataset", "{home}/ten.npz"],
        "{home}/pruned tells 3 classes apart and {home}/ten.npz has 10; start from a checkpoint of the same data set.",
    ),
    "another run": (
        ["--seed", 1],
        "{home}/sparse holds another run (seed 0 there, 1 here); choose another --workdir",
    ),
    "other files": (["--workdir", "{home}"], "{home} holds other files and no run; choose another --workdir."),
    "a file": (["--workdir", "{home}/ten.npz"], "ten.npz holds other files and no run; choose another --workdir."),
    "below a file": (
        ["--workdir", "{home}/ten.npz/x"],
        "Not a directory. Check that the place exists, can be writt",
    ),
}


def assert_one_message(done, message, code=2):
    """One message, a cause with its fix, and no traceback."""
    assert done.code == code
    assert message in flat(done.err), done.err
    assert "Traceback" not in done.err
    assert done.err.count("jaxslim: ") + done.err.count("For full helptext") == 1


def filled(words, home):
    return [str(word).format(home=home) for word in words]


@pytest.mark.parametrize(("words", "message"), TRAIN_MISTAKES.values(), ids=TRAIN_MISTAKES)
def test_mistakes_in_training(call, damaged, words, message):
    before = contents(damaged)
    done = call(train_command, damaged / "config.py", *filled(words, damaged))
    assert_one_message(done, message.format(home=damaged))
    assert contents(damaged) == before
    assert not (damaged / "new").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no config file {}; give a Python file such as configs/cifar10_sparse.py."),
        ("", "{} defines no config; end it with `config = TrainConfig(...)`."),
        (
            "config = TrainConfig(epoch=3)",
            "unexpected keyword argument 'epoch'. Correct it; `python -m jaxslim.train --he",
        ),
        ("config = TrainConfig(epochs=2.5)", "{}: epochs is 2.5; it must be of type int."),
    ],
)
def test_mistakes_in_config_files(call, tmp_path, text, message):
    file = tmp_path / "config.py"
    if text is not None:
        file.write_text(f"from jaxslim.training.config import TrainConfig\n{text}\n")
    assert_one_message(call(train_command, file), message.format(file))


def test_a_diverged_run_exits_with_1(call, tmp_path):
    config = tiny(tmp_path, learning_rate=1e30)
    done = call(train_command, *options(config))
    said = "The training diverged in epoch 1, step 2, at learning rate 1e+30 (last finite loss 1."
    assert_one_message(done, said, code=1)
    assert "lower --learning-rate. No checkpoint was saved." in done.err
    assert rows(tmp_path / "run") == []


def test_ctrl_c_says_how_to_go_on(call, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("jaxslim.training.loop"), "train", stopped)
    done = call(train_command)
    assert_one_message(done, "stopped; run the same command again, and training goes on from its latest", code=130)


# Prune


def layers(out):
    """Rows of the table that prune prints: name, channels before and after, share cut, protected."""
    return re.findall(r"│ (\S+) +│ +(\d+) │ +(\d+) │ +(\d+)% │ (\S*)", out)


def test_prune_in_a_process_of_its_own(home, tmp_path):
    done = python("-m", "jaxslim", "prune", home / "sparse", "--ratio", 0.7, "--out", "cut", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    loaded = jaxslim.load(tmp_path / "cut")
    kept = [width for width in loaded.module.widths if width != "M"]
    table = layers(done.stdout)
    assert [(row[0], int(row[1]), int(row[2])) for row in table] == [("bn0", 4, kept[0]), ("bn1", 8, kept[1])]
    assert [int(row[3]) for row in table] == [round(100 - 100 * kept[0] / 4), round(100 - 100 * kept[1] / 8)]
    assert sum(kept) == 12 - 8  # int(12 * 0.7)
    assert "channels requested 70.00%, cut 66.67%" in flat(done.stdout)
    a, b = kept
    params = 9 * a + 2 * a + 9 * a * b + 2 * b + 3 * b + 3
    macs = 64 * 9 * a + 16 * 9 * a * b + 3 * b
    assert f"parameters 375 -> {params:,} ({params / 375:.1%})" in flat(done.stdout)
    assert f"MACs 6,936 -> {macs:,} ({macs / 6936:.1%})" in flat(done.stdout)
    assert re.search(
        r"check logits within \d\.\de-0[6-9] of the full network's with those channels at zero", flat(done.stdout)
    )
    assert re.search(r"^Saved cut\b.* python -m jaxslim\.train \S+ --init-from cut$", done.stdout, re.MULTILINE)
    assert (loaded.meta["kind"], loaded.meta["cost"]) == ("pruned", {"params": params, "macs": macs})


def test_options_of_prune(call, home, tmp_path):
    def cut(*words):
        done = call(prune_command, home / "sparse", *words, "--out", tmp_path / str(len(list(tmp_path.iterdir()))))
        assert (done.code, done.err) == (0, "")
        return [int(row[2]) for row in layers(done.out)], flat(done.out)

    scales = jax.tree.leaves(jaxslim.bn_scales(jaxslim.load(home / "sparse").variables))
    scores = sorted(float(score) for layer in scales for score in layer)
    kept, out = cut("--threshold", scores[4])
    assert sum(kept) == 12 - 5
    assert "channels by threshold, cut 41.67%" in out
    assert sum(cut("--ratio", 0.5)[0]) == 6
    assert sum(cut("--ratio", 0.5, "--reference-ties")[0]) == 5
    assert cut("--ratio", 0.25, "--leave", "bn1")[0] == [1, 8]
    assert all(width % 4 == 0 for width in cut("--ratio", 0.5, "--multiple-of", 4)[0])
    kept, out = cut("--ratio", 0.5, "--min-channels", 3)
    assert sum(kept) == 6
    assert min(kept) == 3
    assert cut("--ratio", 0)[0] == [4, 8]


OUT = ["--out", "{home}/new"]
HALF = ["--ratio", 0.5, *OUT]
SPARSE = "{home}/sparse"
PRUNE_MISTAKES = {
    "ratio 1": (
        [SPARSE, "--ratio", 1, *OUT],
        "The ratio is 1.0; it must lie in [0, 1): 0.7 cuts 70 % of the channels.",
    ),
    "negative": ([SPARSE, "--ratio", -0.1, *OUT], "The ratio is -0.1; it must lie in [0, 1): 0.7 cuts 70 %"),
    "NaN": ([SPARSE, "--ratio", "nan", *OUT], "The ratio is nan; it must lie in [0, 1): 0.7 cuts 70 %"),
    "no number": ([SPARSE, "--ratio", "most", *OUT], "could not convert string to float: 'most'"),
    "too much": (
        [SPARSE, "--ratio", 0.95, *OUT],
        "A ratio of 0.95 cannot be met: with min_channels=1 and the layers left alone, 10 of 12 channels can go; "
        "the largest ratio is 0.8333.",
    ),
    "neither": ([SPARSE, *OUT], "Give either a ratio or a threshold, for example"),
    "both": ([SPARSE, *HALF, "--threshold", 0.1], "Give either a ratio or a threshold, for example"),
    "threshold": ([SPARSE, "--threshold", -1, *OUT], "The threshold is -1.0; it must be a number of at least 0"),
    "no channels": ([SPARSE, *HALF, "--min-channels", 0], "min_channels is 0; it must be at least 1."),
    "multiple": ([SPARSE, *HALF, "--multiple-of", 0], "multiple_of is 0; it must be at least 1."),
    "layer": ([SPARSE, *HALF, "--leave", "bn7"], "There is no layer bn7 to leave alone; the layers are bn0, bn1."),
    "out exists": (
        [SPARSE, "--ratio", 0.5, "--out", "{home}/pruned"],
        "{home}/pruned exists already and checkpoints are never overwritten; choose another --out.",
    ),
    "out is a file": (
        [SPARSE, "--ratio", 0.5, "--out", "{home}/empty"],
        "exists already and checkpoints are never",
    ),
    "below a file": (
        [SPARSE, "--ratio", 0.5, "--out", "{home}/empty/x"],
        "{home}/empty/x cannot be a folder, since a file is in its place; choose another --out.",
    ),
    "no out": ([SPARSE, "--ratio", 0.5], "Missing from jaxslim prune: --out STR"),
    "absent": (["{home}/no", *HALF], "There is no checkpoint {home}/no; check the path."),
    "a file": (
        ["{home}/empty", *HALF],
        "{home}/empty is not a checkpoint of jaxslim (no meta and variables in it)",
    ),
    "other files": (
        ["{home}", *HALF],
        "and not a run that has saved one; give a folder that jaxslim.train or jaxslim.prune",
    ),
    "damaged": (["{home}/broken", *HALF], "{home}/broken is damaged: its file variables/d/"),
}


@pytest.mark.parametrize(("words", "message"), PRUNE_MISTAKES.values(), ids=PRUNE_MISTAKES)
def test_mistakes_in_pruning(call, damaged, words, message):
    before = contents(damaged)
    assert_one_message(call(prune_command, *filled(words, damaged)), message.format(home=damaged))
    assert contents(damaged) == before
    assert not (damaged / "new").exists()


def test_a_damaged_checkpoint_in_a_process_of_its_own(damaged):
    """Orbax reads in threads, which would print tracebacks of their own."""
    done = python("-m", "jaxslim", "evaluate", "broken", cwd=damaged)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"jaxslim: \S+ is damaged: its file \S+ is missing or changed; take another checkpoint\.\n", done.stderr
    )


# Evaluate


def test_evaluate_in_a_process_of_its_own(home):
    done = python("-m", "jaxslim", "evaluate", "sparse/latest", "--batch-size", 7, cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    row = rows(home / "sparse")[-1]
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert found["checkpoint"] == f"{home}/sparse/checkpoints/2 (sparse)"
    assert found["network"] == "VGG [4, 'M', 8]"
    assert found["accuracy"] == f"{row['accuracy']:.2%} on 24 test images of {home}/data.npz"
    assert re.fullmatch(r"\d\.\d{4}", found["loss"])
    assert found["parameters"] == "375"
    assert found["MACs"] == "6,936 multiply-accumulates an image"
    assert re.search(r"latency +\d+\.\d\d ms for 1 image", done.stdout)
    assert re.search(r"latency +\d+\.\d\d ms for 64 image", done.stdout)


@pytest.mark.parametrize(
    "script", [["-m", "jaxslim", "evaluate"], [HOME / "scripts" / "ratio_sweep.py", "--ratios", 0.5]]
)
def test_a_data_set_whose_name_is_not_utf8(home, tmp_path, script):
    dataset = tmp_path / os.fsdecode(b"d\xff.npz")
    train(tiny(tmp_path, dataset=write_data(dataset), epochs=1))
    done = python(*script, "run", cwd=tmp_path, PYTHONIOENCODING="utf-8:strict")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "d\\udcff.npz" in done.stdout


def test_evaluate_a_pruned_network(call, home):
    done = call(evaluate, home / "pruned")
    params = jaxslim.load(home / "pruned").meta["cost"]["params"]
    assert done.code == 0
    assert re.search(r"^checkpoint .*\(pruned\)$", done.out, re.MULTILINE)
    assert re.search(rf"^parameters  {params}$", done.out, re.MULTILINE)


EVALUATE_MISTAKES = {
    "absent": (["{home}/no"], "There is no checkpoint {home}/no; check the path."),
    "a file": (["{home}/empty"], "{home}/empty is not a checkpoint of jaxslim"),
    "damaged": (["{home}/broken"], "{home}/broken is damaged: its file variables/d/"),
    "batch": ([SPARSE, "--batch-size", 0], "batch_size is 0; it must be at least 1."),
    "data": ([SPARSE, "--dataset", "no.npz"], "There is no file or folder no.npz; check the path."),
    "classes": (
        [SPARSE, "--dataset", "{home}/ten.npz"],
        "{home}/sparse tells 3 classes apart and {home}/ten.npz has 10; give the data set it was trained on with "
        "--dataset.",
    ),
    "nothing": ([], "Missing from jaxslim evaluate"),
}


@pytest.mark.parametrize(("words", "message"), EVALUATE_MISTAKES.values(), ids=EVALUATE_MISTAKES)
def test_mistakes_in_evaluating(call, damaged, words, message):
    before = contents(damaged)
    assert_one_message(call(evaluate, *filled(words, damaged)), message.format(home=damaged))
    assert contents(damaged) == before


def test_a_checkpoint_without_a_configuration(call, home, tmp_path):
    module, variables, _ = jaxslim.load(home / "pruned")
    jaxslim.save(tmp_path / "bare", module, variables)
    message = "The checkpoint names no training configuration ('config'); jaxslim.train writes one."
    assert_one_message(call(evaluate, tmp_path / "bare"), message)
    assert json.loads((tmp_path / "bare" / "checksums.json").read_text())


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


def test_a_disk_that_takes_no_more_is_one_line_a_save(tmp_path):
    """Each file may have two kilobytes; orbax would print tracebacks from its threads."""
    options = "--widths 8 M 8 --epochs 2 --image-size 8 --batch-size 64 --no-compilation-cache --workdir run"
    limited = f"ulimit -f 2; exec '{sys.executable}' -m jaxslim.train {options}"
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("A checkpoint could not be saved: [Errno ") == 2
    assert len(done.stderr.splitlines()) == 2 * 2 + 1  # a row and a line for each epoch, and the last
    assert re.search(r"^jaxslim: \S+/run/checkpoints/2: .*has room\.$", done.stderr, re.MULTILINE)
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*")) == []
