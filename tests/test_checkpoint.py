"""Checkpoints: they come back exactly, in any process, say when they are damaged, and never replace one another."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop import assert_same_arrays, contents, tiny

import jaxslim
from jaxslim.errors import InputError
from jaxslim.models import VGG
from jaxslim.slim.prune import save_cut
from jaxslim.storage import checkpoint
from jaxslim.storage.integrity import digest, seal
from jaxslim.storage.metadata import describe
from jaxslim.training import run as runs
from jaxslim.training.loop import train


class Odd(nn.Module):
    """A module that jaxslim does not provide."""

    width: int = 3

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.width)(images.mean((1, 2)))


@pytest.fixture(scope="module")
def network():
    module = VGG((2, "M", 3), 4)
    return module, jax.jit(module.init)(jax.random.key(0), np.zeros((1, 4, 4, 1)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, network):
    """A sound checkpoint, not to be changed."""
    return jaxslim.save(tmp_path_factory.mktemp("saved") / "network", *network, {"kind": "dense"})


# Round trips


def arrays(draw):
    dtype = draw(st.sampled_from([np.float32, jnp.bfloat16, np.int32]))
    shape = draw(st.lists(st.integers(1, 3), max_size=3).map(tuple))
    numbers = np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape) * 100
    return numbers.astype(dtype)


@st.composite
def trees(draw, depth=2):
    names = st.text("abz09_ .-é", min_size=1, max_size=4)
    keys = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    return {key: draw(trees(depth=depth - 1)) if depth and draw(st.booleans()) else arrays(draw) for key in keys}


widths = st.lists(st.integers(1, 9) | st.just("M"), min_size=1).map(tuple)
modules = st.builds(VGG, widths, st.integers(1, 9), st.sampled_from([jnp.float32, jnp.bfloat16]))
values = st.recursive(st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(), st.lists)


@settings(max_examples=25)
@given(modules, trees(), st.dictionaries(st.text("abc"), values, max_size=3))
def test_what_is_saved_comes_back(module, variables, meta):
    with tempfile.TemporaryDirectory() as folder:
        loaded = jaxslim.load(jaxslim.save(Path(folder) / "a" / "b", module, variables, meta))
    assert loaded.module == module.clone(dtype=np.dtype(module.dtype))
    assert {name: loaded.meta[name] for name in meta} == meta
    assert_same_arrays(loaded.variables, variables)
    for left, right in zip(jax.tree.leaves(loaded.variables), jax.tree.leaves(variables), strict=True):
        assert left.dtype == right.dtype
        assert isinstance(left, jax.Array)


def test_a_checkpoint_names_format_and_versions(saved):
    meta = jaxslim.load(saved).meta
    assert (meta["format"], meta["kind"]) == (1, "dense")
    assert meta["versions"]["jax"] == jax.__version__
    assert meta["versions"].keys() >= {"jaxslim", "flax", "orbax-checkpoint", "python"}
    assert meta["variables"]["params/conv0/kernel"] == [[3, 3, 1, 2], "float32"]


def test_modules_of_others_need_their_class(tmp_path):
    module = Odd(5)
    variables = module.init(jax.random.key(0), np.zeros((1, 2, 2, 3)))
    path = jaxslim.save(tmp_path / "odd", module, variables)
    with pytest.raises(
        InputError, match=r"holds a test_checkpoint\.Odd, .* pass its class, load\(path, module_type=\.\.\.\)"
    ):
        jaxslim.load(path)
    loaded = jaxslim.load(path, Odd)
    assert loaded.module == module
    assert_same_arrays(loaded.variables, variables)
    with pytest.raises(InputError, match=r"Odd cannot be built from its fields: .*width"):
        jaxslim.load(path, nn.BatchNorm)


def test_what_a_checkpoint_cannot_hold(tmp_path, network):
    module, variables = network
    with pytest.raises(InputError, match="holds nested dicts of arrays; convert the variables to dicts first"):
        jaxslim.save(tmp_path / "list", module, {"params": [np.zeros(2)]})
    with pytest.raises(InputError, match=r"field dtype holds <object .* cannot describe; use numbers, strings, dtypes"):
        jaxslim.save(tmp_path / "field", module.clone(dtype=object()), variables)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_ever_overwritten(tmp_path, saved, network):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in (saved, tmp_path / "file", tmp_path / "folder"):
        before = contents(path.parent)
        with pytest.raises(
            InputError, match=re.escape(f"{path} exists already and checkpoints are never overwritten; ")
        ):
            jaxslim.save(path, *network)
        assert contents(path.parent) == before


def test_a_file_in_the_way_of_a_folder(tmp_path, network):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError):  # of which a command makes one message
        jaxslim.save(tmp_path / "file" / "network", *network)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# A fresh process


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    train(tiny(folder, workdir=str(folder / "dense"), l1=0.0, epochs=1))
    train(tiny(folder, workdir=str(folder / "sparse"), epochs=1))
    save_cut(folder / "sparse", folder / "pruned", 0.5)
    tuned = {"workdir": str(folder / "fine-tuned"), "init_from": str(folder / "pruned"), "widths": None, "l1": 0.0}
    train(tiny(folder, **tuned, epochs=1))
    return folder


READ = """
import sys, numpy, jaxslim
logits = {}
for path in sys.argv[2:]:
    module, variables, meta = jaxslim.load(path)
    images = numpy.random.default_rng(0).normal(size=(5, *meta["image_shape"])).astype("float32")
    logits[meta["kind"]] = module.apply(variables, images)
numpy.savez(sys.argv[1], **logits)
"""


def test_every_kind_loads_in_a_fresh_process(kinds, tmp_path):
    names = ("dense", "sparse", "pruned", "fine-tuned")
    paths = [str(kinds / name) for name in names]
    subprocess.run([sys.executable, "-c", READ, "logits.npz", *paths], cwd=tmp_path, check=True)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    with np.load(tmp_path / "logits.npz") as logits:
        assert set(logits) == set(names)
        for name in names:
            module, variables, _ = jaxslim.load(kinds / name)
            np.testing.assert_array_equal(logits[name], module.apply(variables, images))


def test_kinds_lie_side_by_side(kinds):
    dense, sparse, pruned, tuned = (jaxslim.load(kinds / name) for name in ("dense", "sparse", "pruned", "fine-tuned"))
    assert dense.module.widths == sparse.module.widths == (4, "M", 8)
    assert sum(width for width in pruned.module.widths if width != "M") == 6
    assert tuned.module == pruned.module
    assert pruned.meta["parent"]["path"] == str(kinds / "sparse" / "checkpoints" / "1")


# Damage


def damaged_copies(source, target):
    """Copies of a checkpoint, each with one of its files cut short, changed in one bit, or gone."""
    for file in sorted(path for item in ("meta", "variables") for path in (source / item).rglob("*") if path.is_file()):
        raw = file.read_bytes()
        for content in (raw[: len(raw) // 2], raw[:-1] + bytes([raw[-1] ^ 1]) if raw else b"x", None):
            if content == raw:
                continue
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            broken = target / file.relative_to(source)
            broken.unlink()
            if content is not None:
                broken.write_bytes(content)
            yield broken


def test_no_damage_goes_unseen(saved, tmp_path):
    seen = []
    for file in damaged_copies(saved, tmp_path / "copy"):
        with pytest.raises(
            InputError, match=r"copy is damaged: its file \S+ is missing or changed; take another"
        ) as caught:
            jaxslim.load(tmp_path / "copy")
        seen.append(str(file.relative_to(tmp_path / "copy")))
        assert f" {seen[-1]} " in str(caught.value)
    assert len(seen) > 3 * len(set(seen)) - 3 > 20  # an empty file cannot be cut short


def test_missing_checksums_are_damage(saved, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copy / "checksums.json").unlink()
    with pytest.raises(InputError, match=r"copy is damaged: its checksums\.json is missing; take another"):
        jaxslim.load(copy)


@pytest.mark.parametrize("name", ["added", "meta/added", "variables/d/added", "variables/checksums.json"])
def test_a_file_without_a_checksum_is_damage(saved, tmp_path, name):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copy / name).write_text("{}")
    with pytest.raises(InputError, match=rf"copy is damaged: its file {name} is not one of its checksums; take anoth"):
        jaxslim.load(copy)


def test_links_are_not_followed(saved, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    file = copy / "meta" / "metadata"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="copy is damaged: its file meta/metadata is a symbolic link; take another"):
        jaxslim.load(copy)


def test_damage_under_right_checksums_is_seen_too(saved, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    meta = json.loads((copy / "meta" / "metadata").read_text())
    (copy / "meta" / "metadata").write_text(json.dumps({**meta, "digest": "0" * 64}))
    seal(copy)
    with pytest.raises(InputError, match=r"copy is damaged: its variables have the digest \w{12}, not the one saved"):
        jaxslim.load(copy)
    for file in (copy / "meta").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    seal(copy)
    with pytest.raises(InputError, match=r"copy is damaged: its meta cannot be read \(.+\); take another checkpoint"):
        jaxslim.load(copy)


def test_damaged_checksums(saved, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copy / "checksums.json").write_text("{")
    with pytest.raises(InputError, match=r"copy is damaged: its checksums\.json cannot be read; take another"):
        jaxslim.load(copy)


def test_an_emptied_item(saved, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    shutil.rmtree(copy / "variables")
    with pytest.raises(InputError, match="copy is not a checkpoint of jaxslim"):
        jaxslim.load(copy)
    (copy / "variables").mkdir()
    with pytest.raises(InputError, match="copy is damaged: its file variables/"):
        jaxslim.load(copy)


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("file", "folder", "run", "run/checkpoints"):
        with pytest.raises(
            InputError, match=rf"{name} is not a checkpoint of jaxslim \(.*; give a folder that jaxslim"
        ):
            jaxslim.load(tmp_path / name)
    for name in ("absent", "run/latest", "run/best", "file/latest"):
        with pytest.raises(InputError, match=rf"There is no checkpoint {tmp_path / name}; check the path\."):
            jaxslim.load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"was written by a newer jaxslim \(format 2\); update jaxslim\."),
        ({"format": None}, "is not a checkpoint of jaxslim; give a folder that jaxslim made."),
    ],
)
def test_other_formats(saved, tmp_path, change, message):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (file,) = (path for path in (copy / "meta").iterdir() if path.read_bytes().startswith(b"{"))
    meta = {name: value for name, value in (json.loads(file.read_bytes()) | change).items() if value is not None}
    file.write_text(json.dumps(meta))
    seal(copy)
    with pytest.raises(InputError, match=message):
        jaxslim.load(copy)


# Runs


def save_epochs(run, network, accuracies, first=1, name="accuracy"):
    module, variables = network
    saver = runs.Saver(run)
    for epoch, accuracy in enumerate(accuracies, first):
        marked = jax.tree.map(lambda leaf, epoch=epoch: jnp.full_like(leaf, epoch), variables)
        described = describe(module, marked, {"metrics": {"accuracy": 0.5, name: accuracy}, "epoch": epoch})
        saver.save(epoch, marked, {"momentum": jnp.full(3, epoch)}, described)
    saver.close()


def epoch_of(path):
    loaded = jaxslim.load(path)
    values = {float(value) for leaf in jax.tree.leaves(loaded.variables) for value in np.ravel(leaf)}
    assert values == {loaded.meta["epoch"]}
    return loaded.meta["epoch"]


@pytest.mark.parametrize("name", ["accuracy", "holdout_accuracy"])
def test_the_best_and_the_latest_two_are_kept(tmp_path, network, name):
    save_epochs(tmp_path, network, [0.2, 0.9, 0.8, 0.3, 0.4, 0.1], name=name)
    assert checkpoint.finished(tmp_path) == [2, 5, 6]
    assert [epoch_of(tmp_path / which) for which in ("best", "latest", "")] == [2, 6, 6]
    assert epoch_of(tmp_path / "checkpoints" / "5") == 5

    save_epochs(tmp_path, network, [0.95, 0.1, 0.1], first=7, name=name)  # as a run that goes on
    assert checkpoint.finished(tmp_path) == [7, 8, 9]
    assert [epoch_of(tmp_path / which) for which in ("best", "latest")] == [7, 9]
    files = os.listdir(tmp_path / "checkpoints")
    assert sorted(files) == ["7", "8", "9"]  # no rests


def test_the_latest_of_equals_is_the_best(tmp_path, network):
    save_epochs(tmp_path, network, [0.5, 0.5])
    assert epoch_of(tmp_path / "best") == 2
    save_epochs(tmp_path, network, [0.1], first=3)
    assert epoch_of(tmp_path / "best") == 2


@pytest.mark.parametrize("item", ["meta", "variables"])
def test_an_older_checkpoint_that_is_damaged_is_moved_aside(tmp_path, network, caplog, item):
    save_epochs(tmp_path, network, [0.9, 0.4, 0.3])
    file = max((tmp_path / "checkpoints" / "1" / item).rglob("*"), key=lambda path: path.is_file())
    file.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"checkpoints/1 is damaged: its (file|meta) .*; take \S+/checkpoints/3, which is whole;"
    ):
        jaxslim.load(tmp_path / "best")
    save_epochs(tmp_path, network, [0.2, 0.1, 0.1], first=4)
    (said,) = caplog.messages
    assert re.match(r".*/1 is damaged: its file \S+ is missing or changed; going on from .*/checkpoints/4\.", said)
    assert checkpoint.finished(tmp_path) == [2, 5, 6]
    assert [epoch_of(tmp_path / which) for which in ("best", "latest")] == [2, 6]
    (aside,) = (tmp_path / "checkpoints").glob("1.*.damaged")
    assert (aside / file.relative_to(tmp_path / "checkpoints" / "1")).read_bytes() == b""


def test_the_optimizer_comes_back(tmp_path, network):
    save_epochs(tmp_path, network, [0.5, 0.6])
    restored = checkpoint.restore_optimizer(checkpoint.find(tmp_path), {"momentum": jnp.zeros(3, jnp.int32)})
    assert_same_arrays(restored, {"momentum": jnp.full(3, 2)})
    latest = tmp_path / "checkpoints" / "2"
    for file in (latest / "optimizer").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert epoch_of(tmp_path) == 2  # the network is whole
    with pytest.raises(
        InputError, match=r"2 is damaged: its file optimizer/\S+ is missing or changed; take .*/1, which is whole;"
    ):
        checkpoint.restore_optimizer(latest, {"momentum": jnp.zeros(3, jnp.int32)})


def test_a_run_sweeps_up_what_a_killed_one_left(tmp_path, network):
    save_epochs(tmp_path, network, [0.5])
    for rest in (tmp_path / ".unfinished-1", tmp_path / "checkpoints" / ".unfinished-2"):
        shutil.copytree(tmp_path / "checkpoints" / "1", rest)
    assert checkpoint.finished(tmp_path) == [1]
    runs.Saver(tmp_path).close()
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []
    assert epoch_of(tmp_path) == 1


def test_a_save_that_fails_leaves_nothing(tmp_path, network, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "seal", full)
    with pytest.raises(OSError, match="No space left on device"):
        jaxslim.save(tmp_path / "out", *network)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_has_everything_before_a_checkpoint_takes_its_place(tmp_path, network, monkeypatch):
    events, rename, fsync = [], os.rename, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (fsync(number), events.append(os.fstat(number).st_ino)))
    monkeypatch.setattr(os, "rename", lambda *paths: (rename(*paths), events.append(Path(paths[1]).name)))
    saved = jaxslim.save(tmp_path / "out", *network)
    moved = events.index("out")
    assert {path.stat().st_ino for path in (saved, *saved.rglob("*"))} <= set(events[:moved])
    assert events[moved + 1 :] == [tmp_path.stat().st_ino]


def test_a_disk_that_reports_an_error_late(tmp_path, network, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        jaxslim.save(tmp_path / "out", *network)
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_of_names_types_shapes_and_values(saved):
    variables = {"a": {"b": np.arange(6, dtype=np.float32)}}
    changed = [
        {"a": {"c": np.arange(6, dtype=np.float32)}},
        {"a": {"b": np.arange(6, dtype=np.int32)}},
        {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}},
        {"a": {"b": np.arange(1, 7, dtype=np.float32)}},
    ]
    assert digest(variables) == digest(jax.tree.map(jnp.asarray, variables))
    assert len({digest(tree) for tree in (variables, *changed)}) == 5
    assert jaxslim.load(saved).meta["digest"] == digest(jaxslim.load(saved).variables)
