"""Input that no one gives on purpose: one message with the cause and the fix, and nothing written or changed."""

import dataclasses
import importlib
import json
import re
import shutil

import jax
import numpy as np
import pytest
from test_commands import flat, invoke
from test_loop import contents, tiny

from jaxslim.commands import evaluate as evaluate_command
from jaxslim.commands import train as train_command
from jaxslim.core.plan import plan
from jaxslim.errors import InputError
from jaxslim.slim.criteria import bn_scale_mask, bn_scales
from jaxslim.slim.prune import save_cut
from jaxslim.storage import checkpoint
from jaxslim.storage.integrity import seal
from jaxslim.training import loop, steps
from jaxslim.training.config import DIGITS

prune_command = importlib.import_module("jaxslim.commands.prune")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a finished `run` and a network cut from it, `pruned`."""
    folder = tmp_path_factory.mktemp("home")
    loop.train(tiny(folder, workdir=str(folder / "run"), epochs=2))
    save_cut(folder / "run", folder / "pruned", 0.5)
    return folder


CONFIGS = {
    "huge rate": ({"learning_rate": 1e308}, "learning_rate is 1e+308; it must be at most 1e+30."),
    "huge integer": ({"weight_decay": 10**400}, "it must be at most 1e+30."),
    "huge l1": ({"l1": 1e39}, "l1 is 1e+39; it must be at most 1e+30."),
    "huge factor": ({"lr_drop_factor": 1e300}, "lr_drop_factor is 1e+300; it must be at most 1e+30."),
    "huge mean": ({"mean": (1e300,)}, "means must be at most 1e6"),
    "tiny std": ({"std": (1e-45,)}, "std lie in [1e-6, 1e6]"),
    "huge pad": ({"pad": 3_000_000_000}, "pad is 3000000000; it must be at most image_size, 16."),
    "huge width": ({"widths": (10**20,)}, "each must be a positive number of channels"),
    "empty workdir": ({"workdir": ""}, "workdir is empty; give a path, or leave it out."),
    "empty init_from": ({"init_from": ""}, "init_from is empty; give a path, or leave it out."),
}


@pytest.mark.parametrize(("changes", "message"), CONFIGS.values(), ids=CONFIGS)
def test_configurations(changes, message):
    with pytest.raises(InputError) as caught:
        dataclasses.replace(DIGITS, **changes)
    assert message in str(caught.value)


def test_more_steps_than_can_be_counted():
    with pytest.raises(InputError, match="use fewer epochs"):
        steps.check_batches(dataclasses.replace(DIGITS, epochs=10**20), 1000, steps.device_mesh())


def test_plan_with_a_huge_multiple():
    with pytest.raises(InputError, match=r"multiple_of is 1\d+; it must be below 2147483648"):
        plan(None, {}, 0.5, multiple_of=10**30)


@pytest.mark.parametrize("code", ["exit()", "raise SystemExit(3)"])
def test_a_config_that_exits(capsys, tmp_path, code):
    (tmp_path / "config.py").write_text(code)
    done = invoke(capsys, train_command, tmp_path / "config.py")
    assert (done.code, done.out) == (2, "")
    assert "config.py does not run: SystemExit" in done.err


OUT_OF_MEMORY = {
    "device": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore"),
    "host": MemoryError("Unable to allocate 99 GiB"),
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_too_little_memory(capsys, monkeypatch, error):
    def train(config):
        raise error

    monkeypatch.setattr(loop, "train", train)
    done = invoke(capsys, train_command)
    assert done.code == 2
    assert done.err.startswith(f"jaxslim: the memory is too small ({str(error).splitlines()[0]}); lower the batch size")


def edit_meta(folder, change):
    """Change the JSON of a checkpoint, and make checksums that fit."""
    file = folder / "meta" / "metadata"
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))
    seal(folder)


METAS = {
    "format": (lambda meta: meta.update(format="x"), "is damaged: its format is 'x'"),
    "no module": (lambda meta: meta.update(module=None), "is damaged: its meta describes no module"),
    "no fields": (lambda meta: meta["module"].pop("fields"), "is damaged: its meta describes no module"),
    "dtype": (lambda meta: meta["module"]["fields"].update(dtype={}), "cannot be built from its fields: 'dtype'"),
    "terabyte": (
        lambda meta: meta["variables"].update({"params/a": [[2**38], "float32"]}),
        r"claims 1,099,5",
    ),
    "no arrays": (lambda meta: meta.update(variables=[1]), "is damaged: its meta describes no arrays"),
    "array type": (lambda meta: meta["variables"].update(a=[[3], "zzz"]), "is damaged: its meta describes no arrays"),
    "array shape": (lambda meta: meta["variables"].update(a=[[-3], "int8"]), "no arrays (a has the shape [-3])"),
    "widths": (lambda meta: meta["module"]["fields"].update(widths=[7]), "do not fit each other"),
    "no widths": (
        lambda meta: meta["module"]["fields"].update(widths=None),
        "cannot be built from its fields: widths is None;",
    ),
    "classes": (lambda meta: meta["module"]["fields"].update(num_classes=77), "do not fit each other"),
    "image shape": (lambda meta: meta.update(image_shape=7), "do not fit each other"),
}


@pytest.mark.parametrize(("change", "message"), METAS.values(), ids=METAS)
def test_edited_checkpoints(capsys, home, tmp_path, change, message):
    shutil.copytree(home / "pruned", tmp_path / "edited")
    edit_meta(tmp_path / "edited", change)
    before = contents(tmp_path)
    done = invoke(capsys, prune_command, tmp_path / "edited", "--ratio", 0.1, "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert message in flat(done.err)
    assert contents(tmp_path) == before


EPOCHS = {
    "none": lambda meta: meta.pop("epoch"),
    "a word": lambda meta: meta.update(epoch="x"),
    "negative": lambda meta: meta.update(epoch=-5),
    "sums": lambda meta: meta.update(sums=5),
}


@pytest.mark.parametrize("change", EPOCHS.values(), ids=EPOCHS)
def test_a_run_whose_checkpoint_tells_no_epoch(home, tmp_path, change):
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    edit_meta(tmp_path / "run" / "checkpoints" / "1", change)
    with pytest.raises(InputError, match=r"its meta tells no epoch of a training run|is the checkpoint of epoch -5;"):
        loop.train(tiny(home, workdir=str(tmp_path / "run"), epochs=2))


@pytest.mark.parametrize("text", ["[]", "5", "null"])
def test_checksums_of_another_form(home, tmp_path, text):
    shutil.copytree(home / "pruned", tmp_path / "edited")
    (tmp_path / "edited" / "checksums.json").write_text(text)
    with pytest.raises(InputError, match=r"its checksums\.json holds no checksums"):
        checkpoint.load(tmp_path / "edited")


@pytest.mark.parametrize("metrics", [None, {}, {"accuracy": "x"}])
def test_a_run_without_accuracies(capsys, home, tmp_path, metrics):
    shutil.copytree(home / "run", tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        edit_meta(folder, lambda meta: meta.update(metrics=metrics))
    config = tiny(home, workdir=str(tmp_path / "run"), epochs=2)
    with pytest.raises(InputError, match="names no accuracy"):
        loop.train(config)
    done = invoke(capsys, evaluate_command, tmp_path / "run" / "best")
    assert (done.code, done.out) == (2, "")
    assert "names no accuracy to choose the best by" in done.err


def damage_optimizer(run):
    shutil.rmtree(run / "checkpoints" / "1" / "optimizer")


def replace_checkpoints(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")


RUNS = {"optimizer": (damage_optimizer, "is damaged"), "checkpoints": (replace_checkpoints, "is a file and no folder")}


@pytest.mark.parametrize(("damage", "message"), RUNS.values(), ids=RUNS)
def test_a_damaged_run_stays_as_it_is(home, tmp_path, damage, message):
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    damage(tmp_path / "run")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=message):
        loop.train(tiny(home, workdir=str(tmp_path / "run"), epochs=2))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (b"\xff\nlost\n", b""),
        (b'{"epoch": 1}\n{"epoch": 3}\n{"epoch": 4}\n', b'{"epoch": 1}\n{"epoch": 3}\n'),
        (b'{"epoch": 1}\n{"epoch": 2}\n{"epo\n', b'{"epoch": 1}\n{"epoch": 2}\n'),
        (b"[" * 100_000, b""),
    ],
)
def test_metrics_that_lack_rows_are_kept_aside(tmp_path, caplog, text, rows):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(text)
    loop.keep_rows(file, 3)
    assert file.read_bytes() == rows
    (aside,) = tmp_path.glob("metrics.jsonl.*.damaged")
    assert aside.read_bytes() == text
    assert re.search(r"metrics.jsonl lacks the rows of epoch [123, ]+; it is kept as metrics", caplog.text)
    loop.keep_rows(tmp_path / "new.jsonl", 3)
    assert (tmp_path / "new.jsonl").read_bytes() == b""


def test_rows_of_lost_epochs_are_dropped_and_none_is_counted_twice(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"epoch": 1}\n{"epoch": 2}\n{"epoch": 2, "again": 1}\n{"epoch": 3}\n{"epo')
    loop.keep_rows(file, 2)
    assert file.read_bytes() == b'{"epoch": 1}\n{"epoch": 2}\n'
    assert (caplog.text, list(tmp_path.iterdir())) == ("", [file])


@pytest.mark.parametrize("name", ["²", "007", "٣"])
def test_folders_that_are_no_epochs(tmp_path, name):
    for item in ("meta", "variables"):
        (tmp_path / "checkpoints" / name / item).mkdir(parents=True)
    assert checkpoint.finished(tmp_path) == []


@pytest.mark.parametrize("name", ["a\0b", "\udcff"])
def test_folders_that_no_file_system_or_orbax_takes(home, tmp_path, name):
    with pytest.raises(InputError, match="is not valid UTF-8; choose another name"):
        loop.train(tiny(home, workdir=str(tmp_path / name)))
    assert list(tmp_path.iterdir()) == []


ONES = np.ones(2, np.float32)
SAVES = {
    "nothing": ({}, None, "There are no arrays to save"),
    "None": (None, None, "There are no arrays to save"),
    "number": ({"a": 1.0}, None, "A checkpoint holds nested dicts of arrays"),
    "meta": ({"a": ONES}, {"a": object()}, "The meta cannot be written as JSON"),
    "wide": ({"a": {"b": np.ones(2)}}, None, "JAX would read a/b, of float64, as float32; convert it"),
    "wide integers": ({"a": np.arange(2)}, None, "JAX would read a, of int64, as int32; convert it"),
    "byte order": ({"a": np.ones(2, ">f4")}, None, "JAX would read a, of >f4, as float32; convert it"),
    "empty": ({"a": ONES, "batch_stats": {}}, None, "The variables hold nothing at batch_stats; leave it out"),
    "none inside": ({"a": {"b": None, "c": ONES}}, None, "The variables hold nothing at a/b; leave it out"),
    "no elements": ({"a": ONES[:0]}, None, "The variables hold nothing at a; leave it out"),
    "number as key": ({1: ONES}, None, "The variables hold the key 1; use printable strings without slashes"),
    "surrogate": ({"a\udcff": ONES}, None, "The variables hold the key 'a.udcff'; use printable strings"),
    "slash": ({"a/b": ONES}, None, "The variables hold the key 'a/b'; use printable strings"),
    "dots": ({"a": {"b": ONES}, "a.b": ONES}, None, "Two arrays have one name, but for dots"),
}


@pytest.mark.parametrize(("variables", "meta", "message"), SAVES.values(), ids=SAVES)
def test_what_cannot_be_saved(home, tmp_path, variables, meta, message):
    with pytest.raises(InputError, match=message):
        checkpoint.save(tmp_path / "out", checkpoint.load(home / "pruned").module, variables, meta)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variables", [None, [1], {}, {"bn0": {"scale": np.ones(2)}}])
def test_variables_without_params(variables):
    for function in (bn_scale_mask, bn_scales):
        with pytest.raises(InputError, match="The variables have no params; pass all that"):
            function(variables)


OUTS = {"link": ("link", "exists already"), "bytes": ("\udcff", "is not valid UTF-8")}


@pytest.mark.parametrize(("name", "message"), OUTS.values(), ids=OUTS)
def test_places_that_take_no_checkpoint(home, tmp_path, name, message):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    module, variables, _ = checkpoint.load(home / "pruned")
    with pytest.raises(InputError, match=message):
        checkpoint.save(tmp_path / name, module, variables)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_cut_network_among_the_checkpoints_of_a_run(home):
    """RUN/latest would mean it."""
    with pytest.raises(InputError, match="checkpoints/9 lies among a run's own checkpoints; choose another folder"):
        save_cut(home / "run", home / "run" / "checkpoints" / "9", 0.5)
    assert checkpoint.finished(home / "run") == [1, 2]
