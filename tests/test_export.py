"""Exported networks as StableHLO: one file that loads without the network's code."""

import json
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import linen as nn
from flax import nnx

import jaxslim
from jaxslim.commands.main import main
from jaxslim.storage.integrity import digest

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.2)


@pytest.fixture(scope="module")
def cut():
    module, images = jaxslim.VGG((8, "M", 16)), zoo.normal(4, 8, 8, 3)
    variables = zoo.filled(jax.eval_shape(module.init, jax.random.key(0), images))
    return jaxslim.prune(module, variables, 0.5, images)


@pytest.fixture(scope="module")
def file(cut, tmp_path_factory):
    """A file with its weights beside the program."""
    path = tmp_path_factory.mktemp("exported") / "net"
    jaxslim.export(path, cut, weights="beside", derivative=True, meta={"class_names": ["a", "b"]})
    return path


@pytest.mark.parametrize("weights", ["inside", "beside"])
def test_a_file_runs_without_the_code(cut, tmp_path, weights):
    done = jaxslim.export(tmp_path / "net", cut, weights=weights, meta={"image_shape": [8, 8, 3]})
    assert done.inputs == ("float32[batch,8,8,3]",)
    assert done.difference < 1e-6
    assert done.size == (tmp_path / "net").stat().st_size
    np.save(tmp_path / "images.npy", zoo.normal(3, 8, 8, 3, seed=3))
    code = (
        "import numpy as np, jaxslim\n"
        "program, variables, meta = jaxslim.load('net')\n"
        "assert meta['image_shape'] == [8, 8, 3] and len(meta['digest']) == 64, meta\n"
        "np.save('out.npy', program.apply(variables, np.load('images.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    wanted = cut.module.apply(cut.variables, np.load(tmp_path / "images.npy"))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=1e-5, atol=1e-6)
    held = jax.tree.leaves(jaxslim.load(tmp_path / "net").variables)
    assert len(held) == (len(jax.tree.leaves(cut.variables)) if weights == "beside" else 0)


def test_what_was_shipped_can_be_fine_tuned(cut, file):
    program, variables, meta = jaxslim.load(file)
    assert meta["class_names"] == ["a", "b"]
    images = zoo.normal(6, 8, 8, 3, seed=4)
    labels = jnp.arange(6) % 10

    def loss(apply):
        def of(variables):
            return optax.softmax_cross_entropy_with_integer_labels(apply(variables, images), labels).mean()

        return of

    gradient = jax.jit(jax.grad(loss(program.apply)))(variables)
    wanted = jax.grad(loss(cut.module.apply))(cut.variables)
    assert zoo.difference(wanted, gradient) < 1e-5


def test_a_program_without_derivative_says_so(cut, tmp_path):
    jaxslim.export(tmp_path / "net", cut, weights="beside")
    program, variables, _ = jaxslim.load(tmp_path / "net")
    with pytest.raises(ValueError, match="No VJP is available"):
        jax.grad(lambda variables: program.apply(variables, zoo.normal(1, 8, 8, 3)).sum())(variables)


def test_pixels_in_and_classes_out(cut, tmp_path):
    done = jaxslim.export(tmp_path / "net", cut, normalisation=(MEAN, STD), argmax=True)
    assert done.inputs == ("uint8[batch,8,8,3]",)
    pixels = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
    images = ((pixels / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    program, _, meta = jaxslim.load(tmp_path / "net")
    np.testing.assert_array_equal(program(pixels), jnp.argmax(cut.module.apply(cut.variables, images), -1))
    assert meta["pixels"] == {"mean": [*MEAN], "std": [*STD], "inside": True}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_platforms_that_are_not_here(cut, tmp_path, platform):
    done = jaxslim.export(tmp_path / "net", cut, platforms=[platform])
    assert done.difference is None
    assert jaxslim.load(tmp_path / "net").module.platforms == (platform,)


def test_a_cut_model_is_exported_as_it_is_now(tmp_path):
    """A cut NNX module holds its variables: those after training are written, not those of the cut."""
    model, x = (
        nnx.Sequential(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1))),
        np.ones((2, 3)),
    )
    small = jaxslim.prune(model, None, 0.5, x)
    small.module.layers[2].bias[...] += 3
    for name in ("net", "net.onnx"):
        if name.endswith("onnx"):
            pytest.importorskip("onnxruntime", reason="running ONNX files needs the package onnxruntime")
        assert jaxslim.export(tmp_path / name, small).difference < 1e-6
    np.testing.assert_allclose(jaxslim.load(tmp_path / "net").module(x), small.module(x), rtol=1e-5)


def test_a_program_for_another_platform_says_so(cut, tmp_path):
    jaxslim.export(tmp_path / "net", cut, platforms=["tpu", "tpu"])
    program = jaxslim.load(tmp_path / "net").module
    assert program.platforms == ("tpu",)
    with pytest.raises(jaxslim.InputError, match=r"The program is for tpu, and JAX runs on \w+ here"):
        program(zoo.normal(1, 8, 8, 3))


def test_a_file_of_weights_can_be_read_by_all_who_read_the_file(cut, tmp_path):
    pytest.importorskip("onnx", reason="ONNX files need the package onnx")
    jaxslim.export(tmp_path / "net.onnx", cut, weights="beside")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
    assert len([*tmp_path.iterdir()]) == 2


def test_every_kind_of_model(tmp_path):
    nnx_model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu)
    linen, x = nn.Dense(2), zoo.normal(2, 3)
    variables = linen.init(jax.random.key(0), x)
    for name, model, held, expected in (
        ("nnx", nnx_model, None, nnx_model(x)),
        ("linen", linen, variables, linen.apply(variables, x)),
        ("function", lambda w, x: {"out": x @ w}, jnp.ones((3, 2)), {"out": x @ jnp.ones((3, 2))}),
    ):
        jaxslim.export(tmp_path / name, model, held, x, weights="beside")
        program, stored, _ = jaxslim.load(tmp_path / name)
        assert zoo.difference(expected, program.apply(stored, x)) < 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def damaged(file, tmp_path, change):
    """A copy of an exported file, of which `change(entries)` has changed the entries."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(tmp_path / "damaged", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return tmp_path / "damaged"


def meta_with(**changes):
    def change(entries):
        entries["meta.json"] = json.dumps(json.loads(entries["meta.json"]) | changes).encode()

    return change


def flipped(name):
    def change(entries):
        entries[name] = bytes([entries[name][0] ^ 1]) + entries[name][1:]

    return change


def unreadable(entries):
    """Another JAX wrote the program; the digest is right."""
    meta = json.loads(entries["meta.json"])
    arrays = {
        str(number): np.frombuffer(entries[f"arrays/{number}"], dtype).reshape(shape)
        for number, (shape, dtype) in enumerate(meta["arrays"])
    }
    entries["program.bin"] = b"nonsense"
    meta["digest"] = digest({"program": np.frombuffer(b"nonsense", np.uint8), **arrays})
    entries["meta.json"] = json.dumps(meta).encode()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (flipped("arrays/3"), "its program or its arrays are not those that were saved; copy or export it again"),
        (
            lambda entries: entries.update({"program.bin": entries["program.bin"] + b"0"}),
            "its program or its arrays are",
        ),
        (lambda entries: entries.pop("arrays/0"), "is damaged: .*arrays/0"),
        (lambda entries: entries.update({"arrays/1": b"12"}), "its array 1 has not the size that its meta says"),
        (unreadable, "is damaged: its program cannot be read by jax"),
        (lambda entries: entries.update({"meta.json": b"{"}), "is damaged: "),
        (lambda entries: entries.update({"meta.json": b"[]"}), "its meta describes no exported network"),
        (lambda entries: entries.pop("meta.json"), "no file of jaxslim export, but another zip archive"),
        (meta_with(exported=99), r"written by a newer jaxslim \(format 99\); update jaxslim"),
        (meta_with(layout={"dict": [["a", 99]]}), "is damaged: "),
        (meta_with(arrays=[[[2**40], "float32"]]), "is damaged: "),
        (meta_with(program={}), "is damaged: "),
    ],
)
def test_a_damaged_file_is_named(file, tmp_path, change, match):
    broken = damaged(file, tmp_path, change)
    with pytest.raises(jaxslim.InputError, match=match) as caught:
        jaxslim.load(broken)
    assert str(broken) in str(caught.value)


def test_a_cut_off_file_is_named(file, tmp_path):
    (tmp_path / "half").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(jaxslim.InputError, match="half is damaged: its end is missing; copy or export it again"):
        jaxslim.load(tmp_path / "half")


def refused(path, *args, match, **options):
    before = sorted(path.parent.iterdir())
    with pytest.raises(jaxslim.InputError, match=match):
        jaxslim.export(path, *args, **options)
    assert sorted(path.parent.iterdir()) == before


def test_what_cannot_be_exported(cut, file, tmp_path):
    path = tmp_path / "net"
    refused(file, cut, match="exists already and is not overwritten; choose another name")
    refused(path, cut, format="pt", match="format is 'pt'; it must be")
    refused(path, cut, weights="out", match="weights is 'out'; it must be")
    refused(path, cut, platforms=["rocm"], match="There is no platform 'rocm'; use some of cpu, cuda, tpu")
    refused(path, cut, platforms=[], match="There are no platforms; use some of")
    refused(path, cut, derivative=True, match='derivative is for StableHLO.*; add weights="beside"')
    refused(path, cut, tolerance=0.0, match="the exported program differ from the model's by .* nothing is written")
    refused(path, cut, tolerance=-1.0, match="tolerance is -1.0; it must be at least 0")
    refused(path, cut, tolerance=np.nan, match="tolerance is nan; it must be at least 0")
    refused(path, cut, meta={"of": np.ones(2)}, match="meta holds no JSON at 'of' .*; use lists and dicts")
    for numbers in ((0.5, 0.5), 0.5, ((0.5,),)):
        refused(path, cut, normalisation=numbers, match="a mean and a deviation for each channel")
    refused(path, cut, normalisation=((0.5, 0.5), (1.0, 1.0)), match="a mean and a deviation for each channel")
    refused(path, lambda w, x: (x, x), jnp.ones(2), zoo.normal(2, 3), argmax=True, match="returns one array of logits")
    refused(path, cut.module, cut.variables, match="There are no inputs to trace the model with")
    refused(tmp_path / "\0", cut, match="is not valid UTF-8")


def test_what_cannot_be_exported_to_onnx(cut, tmp_path):
    pytest.importorskip("onnxruntime", reason="running ONNX files needs the package onnxruntime")
    refused(tmp_path / "net.onnx", cut, opset="18", match="opset is '18'; it must be from 13 to")
    refused(tmp_path / "net.onnx", cut, opset=5, match="opset is 5; it must be from 13 to")
    with pytest.raises(jaxslim.InputError, match="differ from the model's by"):
        jaxslim.export(tmp_path / "new" / "net.onnx", cut, tolerance=0.0)
    assert [*tmp_path.iterdir()] == []


def test_inputs_of_64_bits_are_those_that_jax_takes(cut, tmp_path):
    pytest.importorskip("onnxruntime", reason="running ONNX files needs the package onnxruntime")
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    done = jaxslim.export(tmp_path / "net.onnx", cut.module, cut.variables, images)
    assert done.inputs == ("float32[batch,8,8,3]",)
    assert done.difference < 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def checkpoint(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "cut"
    config = {"mean": [*MEAN], "std": [*STD], "dataset": "cifar10"}
    meta = {"image_shape": [8, 8, 3], "class_names": [*"abcdefghij"], "config": config, "kind": "pruned"}
    return jaxslim.save(path, cut.module, cut.variables, meta)


def test_the_command(cut, checkpoint, tmp_path, capsys):
    main(["export", str(checkpoint), "--out", str(tmp_path / "net"), "--uint8"])
    printed = capsys.readouterr().out
    assert "inputs      uint8[batch,8,8,3]" in printed
    assert "check       the file within" in printed
    assert printed.endswith(f"Saved {tmp_path / 'net'}.\n")
    program, _, meta = jaxslim.load(tmp_path / "net")
    assert meta["class_names"] == [*"abcdefghij"]
    pixels = np.random.default_rng(0).integers(256, size=(5, 8, 8, 3), dtype=np.uint8)
    images = ((pixels / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    assert zoo.difference(cut.module.apply(cut.variables, images), program(pixels)) < 1e-5


def test_the_command_writes_onnx_by_the_suffix(checkpoint, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="ONNX files need the package onnx")
    main(["export", str(checkpoint), "--out", str(tmp_path / "net.onnx")])
    found = {prop.key: prop.value for prop in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(found["pixels"]) == {"mean": [*MEAN], "std": [*STD], "inside": False}
    assert "Saved" in capsys.readouterr().out


def test_the_command_needs_a_shape_and_a_normalisation(cut, checkpoint, tmp_path):
    bare = jaxslim.save(tmp_path / "bare", cut.module, cut.variables)
    with pytest.raises(jaxslim.InputError, match=r"does not name its images' shape; save it with .*, or call jaxslim"):
        main(["export", str(bare), "--out", str(tmp_path / "net")])
    shaped = jaxslim.save(tmp_path / "shaped", cut.module, cut.variables, {"image_shape": [8, 8, 3]})
    with pytest.raises(jaxslim.InputError, match="names no normalisation of its images; leave --uint8 out"):
        main(["export", str(shaped), "--out", str(tmp_path / "net"), "--uint8"])
    assert not (tmp_path / "net").exists()


def test_the_command_takes_no_file_of_its_own(file, tmp_path):
    for name in ("net", "net.onnx"):
        with pytest.raises(jaxslim.InputError, match="is a file of jaxslim export; give the checkpoint"):
            main(["export", str(file), "--out", str(tmp_path / name)])
    assert [*tmp_path.iterdir()] == []


def test_a_network_of_your_own_code(tmp_path):
    """A checkpoint without its code is a program: StableHLO takes it, ONNX needs the code."""

    def apply(variables, x):
        return jax.nn.relu(x @ variables["a"]) @ variables["b"]

    x = zoo.normal(2, 4, 4, 3).reshape(2, 48)
    variables = {"a": zoo.normal(48, 6), "b": zoo.normal(6, 2)}
    small = jaxslim.prune(apply, variables, 0.5, x)
    saved = jaxslim.save(tmp_path / "own", small, meta={"image_shape": [48, 1, 1]})
    with pytest.raises(jaxslim.InputError, match="holds a network of your own code, which ONNX needs"):
        main(["export", str(saved), "--out", str(tmp_path / "net.onnx")])
