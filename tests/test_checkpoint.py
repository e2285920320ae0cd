"""Checkpoints: they come back exactly, in any process, and tell damage from all other failures to read them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loop import assert_same_arrays, contents

import jaxslim
from jaxslim.errors import InputError
from jaxslim.models import VGG
from jaxslim.storage import checkpoint, history, integrity
from jaxslim.storage.integrity import damage, digest, seal
from jaxslim.storage.metadata import describe
from jaxslim.training.evaluation import evaluator
from jaxslim.training.feed import device_mesh
from jaxslim.training.network import load_trained
from jaxslim.training.saver import Saver


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


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder, **changes):
    """Change the meta of a checkpoint, and seal it again."""
    file = folder / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    seal(folder)


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
    assert (meta["format"], meta["kind"]) == (2, "dense")
    assert meta["versions"]["jax"] == jax.__version__
    assert meta["versions"].keys() >= {"jaxslim", "flax", "orbax-checkpoint", "python"}
    assert meta["variables"]["params/conv0/kernel"] == [[3, 3, 1, 2], "float32"]


def test_orbax_alone_reads_it(saved):
    items = ocp.args.Composite(meta=ocp.args.JsonRestore(), variables=ocp.args.StandardRestore())
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(saved, args=items)
    loaded = jaxslim.load(saved)
    assert restored.meta == loaded.meta
    assert_same_arrays(restored.variables, loaded.variables)


def test_modules_of_others_need_their_class(tmp_path):
    module = Odd(5)
    variables = module.init(jax.random.key(0), np.zeros((1, 2, 2, 3)))
    path = jaxslim.save(tmp_path / "odd", module, variables)
    with pytest.raises(
        InputError, match=r"holds a test_checkpoint\.Odd, .* its class, load\(path, module_type=\.\.\.\)"
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
    with pytest.raises(TypeError, match="not JSON serializable"):
        jaxslim.save(tmp_path / "meta", module, variables, {"kind": object()})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_ever_overwritten(tmp_path, saved, network):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in (saved, tmp_path / "file", tmp_path / "folder"):
        before = contents(path.parent)
        with pytest.raises(InputError, match=re.escape(f"{path} exists already and checkpoints are never overwritten")):
            jaxslim.save(path, *network)
        assert contents(path.parent) == before
    with pytest.raises(FileExistsError) as caught:
        jaxslim.save(tmp_path / "file" / "network", *network)
    assert caught.value.filename == str(tmp_path / "file")


READ = """
import sys, numpy, jaxslim
module, variables, _ = jaxslim.load(sys.argv[1])
images = numpy.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype("float32")
numpy.save("logits", module.apply(variables, images))
"""


def test_a_fresh_process_computes_the_same(saved, network, tmp_path):
    subprocess.run([sys.executable, "-c", READ, saved], cwd=tmp_path, check=True)
    module, variables = network
    images = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), module.apply(variables, images))


# Other formats


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """Two and a bit epochs of training, stopped by a signal: made by jaxslim 0.1.0."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).with_name("format1.tar.gz")) as file:
        file.extractall(folder, filter="data")
    return folder / "format1"


@pytest.mark.parametrize(
    ("name", "epoch"), [("", 2), ("latest", 2), ("best", 1), ("checkpoints/1", 1), ("interrupted", 3)]
)
def test_a_run_of_version_0_1_loads(old_run, name, epoch):
    _, variables, meta = jaxslim.load(old_run / name)
    assert (meta["format"], meta["versions"]["jaxslim"], meta["epoch"]) == (1, "0.1.0", epoch)
    assert meta["digest"] == digest(variables)


@pytest.mark.parametrize("name", ["best", "latest"])
def test_a_network_of_version_0_1_is_as_accurate_as_then(old_run, name):
    loaded, config, images = load_trained(old_run / name)
    measure = evaluator(config, loaded.module, device_mesh(), images.test_images, images.test_labels)
    assert measure(loaded.variables).accuracy == loaded.meta["metrics"]["accuracy"] > 0.24


def test_damage_to_a_run_of_version_0_1(old_run, tmp_path):
    run = Path(shutil.copytree(old_run, tmp_path / "run")) / "checkpoints"
    (run / "2").rename(run / "3")
    advice = rf"take {run}/1, which is whole; training goes on from there by itself\."
    with pytest.raises(InputError, match=rf"checkpoints/3 is damaged: it is the checkpoint of epoch 2; {advice}"):
        jaxslim.load(tmp_path / "run")


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(
        InputError, match="file is neither a checkpoint nor a network that jaxslim exported; give a fol"
    ):
        jaxslim.load(tmp_path / "file")
    for name in ("folder", "run", "run/checkpoints"):
        with pytest.raises(InputError, match=rf"{name} is not a checkpoint of jaxslim \(.*; give a folder that jax"):
            jaxslim.load(tmp_path / name)
    for name in ("absent", "run/latest", "run/best", "file/latest"):
        with pytest.raises(InputError, match=rf"There is no checkpoint {tmp_path / name}; check the path\."):
            jaxslim.load(tmp_path / name)
    with pytest.raises(InputError, match=r"The path '' is empty; choose another name\."):
        jaxslim.load("")


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
        seen.append(str(file.relative_to(tmp_path / "copy")))
        message = f"copy is damaged: its file {re.escape(seen[-1])} is missing or changed; take another checkpoint"
        with pytest.raises(InputError, match=message):
            jaxslim.load(tmp_path / "copy")
    assert len(seen) > 3 * len(set(seen)) - 3 > 20  # an empty file cannot be cut short


def link(folder):
    file = folder / "meta" / "metadata"
    file.rename(folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


def empty(folder):
    shutil.rmtree(folder / "variables")
    (folder / "variables").mkdir()


DAMAGE = {
    "no checksums": (lambda folder: (folder / "checksums.json").unlink(), r"its checksums\.json is missing"),
    "bad checksums": (
        lambda folder: (folder / "checksums.json").write_text("{"),
        r"its checksums\.json holds no checksums",
    ),
    "a link": (link, "its file meta/metadata is a symbolic link"),
    "no files": (empty, r"its file variables/\S+ is missing or changed"),
    **{
        f"added {name}": (
            lambda folder, name=name: (folder / name).write_text("{}"),
            f"its file {name} is not one of its checksums",
        )
        for name in ("added", "meta/added", "variables/d/added", "variables/checksums.json")
    },
}


@pytest.mark.parametrize(("spoil", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(copy, spoil, message):
    spoil(copy)
    with pytest.raises(InputError, match=rf"^{copy} is damaged: {message}; take another checkpoint\.$"):
        jaxslim.load(copy)


# No damage


@pytest.mark.parametrize(("platform", "error"), [("nonsense", "Unable to initialize backend 'nonsense'"), ("cuda", "")])
def test_a_backend_that_cannot_start_is_no_damage(saved, platform, error):
    """JAX's own error says why; without the CUDA plugin it is an assertion."""
    if platform == "cuda" and any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is a GPU")
    code = f"import jaxslim; jaxslim.load({str(saved)!r})"
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, "damaged" in done.stderr, "jaxslim.errors" in done.stderr) == (1, False, False)
    assert error in done.stderr.splitlines()[-1]


def wrapped(error):
    """As orbax wraps what its storage raises."""
    wrapper = Exception("Encountered error while reading array index")
    wrapper.__cause__ = error
    return wrapper


MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
FAILURES = {
    "device memory": (MEMORY, jax.errors.JaxRuntimeError, "^RESOURCE_EXHAUSTED: Out of memory"),
    "memory": (wrapped(MemoryError("no room")), MemoryError, "^no room$"),
    "disk": (
        wrapped(ValueError("INTERNAL: Error reading a: Input/output error [os_error_code='5']")),
        OSError,
        r"^\[Errno 5\] Input/output error: '{copy}'$",
    ),
    "permissions": (PermissionError(13, "Permission denied", "a"), PermissionError, r"Permission denied: 'a'$"),
    "version": (
        wrapped(ValueError("NOT_FOUND: no driver")),
        InputError,
        r"^{copy} cannot be read here, though its files are as they were written \(NOT_FOUND: no driver\); use "
        r"orbax-checkpoint 0\.99, which wrote them, or take another checkpoint\.$",
    ),
}


@pytest.mark.parametrize(("error", "kind", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_to_read_whole_files_is_no_damage(copy, monkeypatch, error, kind, message):
    def fail(*_, **__):
        raise error

    edit(copy, versions={"orbax-checkpoint": "0.99"})
    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    with pytest.raises(kind, match=message.format(copy=copy)) as caught:
        jaxslim.load(copy)
    assert "damaged" not in str(caught.value)


def test_arrays_of_another_shape_than_the_meta_says(copy):
    """Files that were edited and sealed again."""
    edit(
        copy, variables=json.loads((copy / "meta" / "metadata").read_text())["variables"] | {"params/x": [[2], "int8"]}
    )
    with pytest.raises(InputError, match=r"copy cannot be read here, though its files are as they were written \("):
        jaxslim.load(copy)


def test_a_disk_that_fails_while_checksums_are_compared(copy, monkeypatch):
    def fail(_, total):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(integrity.zlib, "crc32", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        jaxslim.load(copy)
    assert Path(caught.value.filename).is_relative_to(copy)


def test_a_folder_that_cannot_be_listed_is_no_damage(copy, monkeypatch):
    scandir = os.scandir

    def fail(path):
        if str(path).endswith("variables/d"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(PermissionError):
        damage(copy)


def test_64_bits_need_jax_to_have_them(tmp_path, network):
    module, variables = network
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype("float64"), variables)
        jaxslim.save(tmp_path / "wide", module, wide)
        assert_same_arrays(jaxslim.load(tmp_path / "wide").variables, wide)
    with pytest.raises(InputError, match=r"of float64, which JAX reads as float32; set JAX_ENABLE_X64=1\."):
        jaxslim.load(tmp_path / "wide")


# Runs


def save_epochs(run, network, accuracies, first=1, name="accuracy"):
    """Save epochs of one step each; None stands for a checkpoint in the middle of an epoch."""
    module, variables = network
    saver = Saver(run)
    for step, accuracy in enumerate(accuracies, first):
        marked = jax.tree.map(lambda leaf, step=step: jnp.full_like(leaf, step), variables)
        metrics = {} if accuracy is None else {"metrics": {"accuracy": 0.5, name: accuracy}}
        saver.save(step, marked, {"momentum": jnp.full(3, step)}, describe(module, marked, {**metrics, "step": step}))
    saver.close()


def step_of(path):
    loaded = jaxslim.load(path)
    found = {float(value) for leaf in jax.tree.leaves(loaded.variables) for value in np.ravel(leaf)}
    assert found == {loaded.meta["step"]}
    return loaded.meta["step"]


@pytest.mark.parametrize(
    ("accuracies", "kept", "best"),
    [
        ({1: 0.2}, {1}, 1),
        ({1: 0.2, 2: 0.9, 3: 0.8, 4: 0.3, 5: 0.1}, {2, 4, 5}, 2),
        ({1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1}, {2, 3, 4}, 2),  # the latest of equals
        ({1: 0.9, 2: 0.5, 3: 0.6, 4: None}, {1, 2, 3, 4}, 1),  # stopped in the middle of an epoch
        ({1: None, 2: 0.5, 3: None, 4: 0.6}, {2, 4}, 4),
        ({1: None, 2: None}, {2}, None),
    ],
)
def test_the_latest_two_epochs_the_best_and_the_latest_of_all_are_kept(accuracies, kept, best):
    assert history.steps_kept(accuracies) == kept
    assert history.best_step(accuracies) == best


@pytest.mark.parametrize("name", ["accuracy", "holdout_accuracy"])
def test_names_of_checkpoints(tmp_path, network, name):
    save_epochs(tmp_path, network, [0.2, 0.9, 0.3, 0.4, None], name=name)
    assert history.steps_saved(tmp_path) == [2, 3, 4, 5]
    assert [step_of(tmp_path / which) for which in ("best", "latest", "", "checkpoints/3")] == [2, 5, 5, 3]

    save_epochs(tmp_path, network, [0.95, 0.1], first=6, name=name)  # as a run that goes on
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["6", "7"]
    assert [step_of(tmp_path / which) for which in ("best", "latest")] == [6, 7]


def test_a_run_stopped_in_its_first_epoch(tmp_path, network):
    save_epochs(tmp_path, network, [None])
    assert [step_of(tmp_path / which) for which in ("best", "latest", "")] == [1, 1, 1]


@pytest.mark.parametrize("name", ["²", "007", "٣"])
def test_folders_that_are_no_steps(tmp_path, name):
    for item in ("meta", "variables"):
        (tmp_path / "checkpoints" / name / item).mkdir(parents=True)
    assert history.steps_saved(tmp_path) == []


@pytest.mark.parametrize("item", ["meta", "variables"])
def test_a_damaged_checkpoint_is_moved_aside_when_the_run_goes_on(tmp_path, network, caplog, item):
    save_epochs(tmp_path, network, [0.9, 0.4, 0.3])
    file = max((tmp_path / "checkpoints" / "1" / item).rglob("*"), key=lambda path: path.is_file())
    file.write_bytes(b"")
    advice = r"take \S+/checkpoints/3, which is whole; training goes on from there by itself"
    with pytest.raises(InputError, match=rf"checkpoints/1 is damaged: its file \S+ is missing or changed; {advice}"):
        jaxslim.load(tmp_path / "best")
    path, meta = history.newest(tmp_path)
    assert (path.name, meta["step"]) == ("3", 3)
    (said,) = caplog.messages
    assert re.match(r".*/1 is damaged: its file \S+ is missing or changed; going on from .*/checkpoints/3\.", said)
    (aside,) = (tmp_path / "checkpoints").glob("1.*.damaged")
    assert (aside / file.relative_to(tmp_path / "checkpoints" / "1")).read_bytes() == b""
    save_epochs(tmp_path, network, [0.1], first=4)
    assert [step_of(tmp_path / which) for which in ("best", "latest")] == [2, 4]


def test_a_run_whose_checkpoints_are_all_damaged_stays_as_it_is(tmp_path, network):
    save_epochs(tmp_path, network, [0.9, 0.4])
    for step in ("1", "2"):
        (tmp_path / "checkpoints" / step / "checksums.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(InputError, match="no other checkpoint of its run is whole: delete its folder to start over"):
        history.newest(tmp_path)
    assert contents(tmp_path) == before


def test_what_training_needs_comes_back(tmp_path, network):
    save_epochs(tmp_path, network, [0.5, 0.6])
    latest, like = checkpoint.find(tmp_path), {"momentum": jnp.zeros(3, jnp.int32)}
    assert_same_arrays(checkpoint.restore_training(latest, like), {"momentum": jnp.full(3, 2)})
    for file in (latest / "training").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert step_of(tmp_path) == 2  # the network is whole
    with pytest.raises(InputError, match=r"2 is damaged: its file training/\S+ is missing or changed; take .*/1, whi"):
        checkpoint.restore_training(latest, like)


def test_a_step_is_saved_again_when_its_epoch_is_measured(tmp_path, network, monkeypatch):
    """As after a stop during the evaluation. A failure right before the rename leaves the checkpoints before."""
    save_epochs(tmp_path, network, [0.5, None])
    rename = os.rename

    def fail(source, target):
        if Path(target).name == "2":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(KeyboardInterrupt):
            save_epochs(tmp_path, network, [0.6], first=2)
    assert step_of(tmp_path / "latest") == 1
    save_epochs(tmp_path, network, [0.6], first=2)
    assert [step_of(tmp_path / which) for which in ("best", "latest")] == [2, 2]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]


def replace_by_the_next(run):
    """As a run that goes on: the latest makes way for another."""
    (run / "2").rename(run / "gone")


def write_again(run):
    """As a run that measures its epoch: another checkpoint takes the place."""
    (run / "2").rename(run / "gone")
    shutil.copytree(run / "gone", run / "2")


@pytest.mark.parametrize(("change", "step"), [(replace_by_the_next, 1), (write_again, 2)])
def test_a_checkpoint_that_makes_way_while_it_is_read(tmp_path, network, monkeypatch, change, step):
    save_epochs(tmp_path, network, [0.5, 0.6])
    crc32, calls = integrity.zlib.crc32, []

    def late(*args):
        calls.append(args)
        if len(calls) == 5:
            change(tmp_path / "checkpoints")
            return 0
        return crc32(*args)

    monkeypatch.setattr(integrity.zlib, "crc32", late)
    assert step_of(tmp_path) == step


def test_a_run_clears_away_what_a_killed_one_left(tmp_path, network):
    save_epochs(tmp_path, network, [0.5])
    for rest in (tmp_path / ".unfinished-1", tmp_path / "checkpoints" / ".unfinished-2"):
        shutil.copytree(tmp_path / "checkpoints" / "1", rest)
    (tmp_path / ".unfinished-3").write_text("")
    assert history.steps_saved(tmp_path) == [1]
    Saver(tmp_path).close()
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []
    assert step_of(tmp_path) == 1


# The disk


@pytest.mark.parametrize("step", ["seal", "flush", "orbax"])
def test_a_save_that_fails_leaves_nothing(tmp_path, network, monkeypatch, step):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "file")

    def full_for_orbax(self, path, args):
        path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']")

    if step == "orbax":
        monkeypatch.setattr(ocp.Checkpointer, "save", full_for_orbax)
    else:
        monkeypatch.setattr(checkpoint, step, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        jaxslim.save(tmp_path / "out", *network)
    assert (caught.value.errno, bool(caught.value.filename)) == (28, True)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_has_everything_before_a_checkpoint_takes_its_place(tmp_path, network, monkeypatch):
    events, rename, fsync = [], os.rename, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (fsync(number), events.append(os.fstat(number).st_ino)))
    monkeypatch.setattr(os, "rename", lambda *paths: (rename(*paths), events.append(Path(paths[1]).name)))
    saved = jaxslim.save(tmp_path / "out", *network)
    moved = events.index("out")
    assert {path.stat().st_ino for path in (saved, *saved.rglob("*"))} <= set(events[:moved])
    assert events[moved + 1 :] == [tmp_path.stat().st_ino]


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
