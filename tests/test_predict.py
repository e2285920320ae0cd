"""`jaxslim predict`: images as folders of images are read, probabilities against NumPy, and one message a mistake."""

import dataclasses
import functools
import json
import os
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_commands import assert_one_message, flat, invoke, make_home
from test_loop import contents

import jaxslim
from jaxslim import data
from jaxslim.commands import main as every_command
from jaxslim.data import Form
from jaxslim.data.folders import decode, image_files
from jaxslim.training.config import TrainConfig
from jaxslim.training.prediction import BATCH, predictor


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.getbasetemp())


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return functools.partial(invoke, capsys, every_command, "predict")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several sizes and kinds, two that a camera turned, in class folders of both splits."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)

    def noise(height, width, *channels):
        return Image.fromarray(rng.integers(0, 256, (height, width, *channels), np.uint8))

    turned = Image.Exif()
    turned[0x0112] = 6
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
        noise(8, 8).save(folder / split / "ant" / "grey.png")
        noise(20, 30, 3).save(folder / split / "ant" / "colour.png")
        noise(9, 7, 4).save(folder / split / "ant" / "clear.png")
        noise(16, 12, 3).save(folder / split / "bee" / "turned.jpg", exif=turned)
    (folder / "test" / "ant" / ".hidden.png").write_bytes(b"")
    (folder / "test" / "ant" / "notes.txt").write_text("x")
    return folder


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def expected(home, pixels, name="sparse"):
    """Probabilities of uint8 images in NumPy, normalised as `home` says."""
    module, variables, _ = jaxslim.load(home / name)
    return softmax(np.asarray(module.apply(variables, (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5))))


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (8, 3), (13, 3)])
def test_images_are_read_as_a_data_set_of_folders_is(photos, size, channels, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = data.load(str(photos), image_size=size, channels=channels).test_images
    files = [file for name in ("ant", "bee") for file in image_files(str(photos / "test" / name))]
    assert [file.rpartition("/")[2] for file in files] == ["clear.png", "colour.png", "grey.png", "turned.jpg"]
    np.testing.assert_array_equal(decode(files, Form(size, channels)), wanted)


def test_the_table_has_the_most_probable_classes(call, home, photos, monkeypatch):
    monkeypatch.chdir(photos / "test")
    shares = expected(home, decode(image_files("ant") + image_files("bee/turned.jpg"), Form(8, 1)))
    done = call(home / "sparse", "ant", "bee/turned.jpg", "--top", 2)
    assert (done.code, done.err) == (0, "")
    rows = re.findall(r"^(\S+)? +(\d) +(\d+\.\d\d)% *$", done.out, re.M)
    assert [row[0] for row in rows] == [
        "ant/clear.png",
        "",
        "ant/colour.png",
        "",
        "ant/grey.png",
        "",
        "bee/turned.jpg",
        "",
    ]
    order = np.argsort(-shares, axis=1)[:, :2]
    assert [int(row[1]) for row in rows] == order.ravel().tolist()
    np.testing.assert_allclose(
        [float(row[2]) for row in rows], 100 * np.take_along_axis(shares, order, 1).ravel(), atol=0.006
    )


def test_json_has_all_classes_in_order(call, home, photos):
    file = str(photos / "test" / "ant" / "grey.png")
    (share,) = expected(home, decode([file], Form(8, 1)))
    done = call(home / "sparse", file, "--json")
    (found,) = json.loads(done.out)
    assert found["image"] == file
    assert [one["name"] for one in found["classes"]] == [str(one) for one in np.argsort(-share)]
    np.testing.assert_allclose([one["probability"] for one in found["classes"]], np.sort(share)[::-1], rtol=1e-5)


def test_many_images_go_in_several_calls(home):
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH + 3, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(predictor(home / "sparse").probabilities(pixels), expected(home, pixels), rtol=1e-4)


def save(home, path, **changes):
    """The cut network of `home` with other meta; without what is None."""
    module, variables, meta = jaxslim.load(home / "pruned")
    known = {name: meta[name] for name in ("config", "class_names", "image_shape")} | changes
    return jaxslim.save(path, module, variables, {name: value for name, value in known.items() if value is not None})


def test_names_of_classes_and_of_none(call, home, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos / "test" / "ant")
    file = "grey.png"
    named = call(save(home, tmp_path / "named", class_names=["[red]ant", "bee with a long name", "cat"]), file)
    for name in (r"\[red\]ant", "bee with a long name", "cat"):
        assert re.search(rf" {name} +\d+\.\d\d%", named.out)
    for path, names in (("none", None), ("few", ["ant"])):
        done = call(save(home, tmp_path / path, class_names=names), file)
        assert sorted(re.findall(r" (\S+) +\d+\.\d\d% *$", done.out, re.M)) == ["0", "1", "2"]


def test_a_cut_network_that_was_saved_as_a_program(call, home, photos, tmp_path):
    """It takes any number of images, and its meta needs no more than sizes and normalisation."""
    module, variables, meta = jaxslim.load(home / "sparse")
    small = jaxslim.prune(module.apply, variables, 0.5, np.zeros((1, 8, 8, 1), np.float32))
    config = {"channels": 1, "mean": [0.5], "std": [0.5]}
    jaxslim.save(tmp_path / "program", small, meta={"config": config, "image_shape": meta["image_shape"]})
    assert isinstance(jaxslim.load(tmp_path / "program").module, jaxslim.Program)
    done = call(tmp_path / "program", photos / "test" / "ant", "--json")
    assert done.code == 0, done.err
    pixels = decode(image_files(str(photos / "test" / "ant")), Form(8, 1))
    wanted = softmax(np.asarray(small.module(small.variables, (pixels / np.float32(255) - np.float32(0.5)) * 2)))
    for found, share in zip(json.loads(done.out), wanted, strict=True):
        np.testing.assert_allclose([one["probability"] for one in found["classes"]], np.sort(share)[::-1], rtol=1e-4)


COLOUR = dataclasses.asdict(TrainConfig())
META = {
    "no config": (
        {"config": None},
        "names no training configuration, whose mean and std images are normalised by; give",
    ),
    "no shape": (
        {"image_shape": None},
        "does not name its images' shape; save it with meta={'image_shape': [32, 32, 3]",
    ),
    "other channels": (
        {"config": COLOUR},
        "sees images of 8x8x1, and its config has 3 channels; save it with a config",
    ),
    "oblong": (
        {"image_shape": [8, 9, 1]},
        "sees images of 8x9x1, and its config has 1 channels; save it with a config",
    ),
    "small images": (
        {"image_shape": [1, 1, 1]},
        "1 poolings shrink images of 1x1 pixels to nothing; use larger images",
    ),
}


@pytest.mark.parametrize(("changes", "message"), META.values(), ids=META)
def test_a_checkpoint_that_does_not_tell_enough(call, home, photos, tmp_path, changes, message):
    done = call(save(home, tmp_path / "saved", **changes), photos / "test" / "ant")
    assert_one_message(done, message)
    assert done.out == ""


def test_a_network_whose_outputs_are_no_numbers(call, home, photos, tmp_path):
    module, variables, meta = jaxslim.load(home / "pruned")
    params = {
        **variables["params"],
        "classifier": {"kernel": variables["params"]["classifier"]["kernel"], "bias": jnp.full(3, jnp.nan)},
    }
    jaxslim.save(
        tmp_path / "nan",
        module,
        {**variables, "params": params},
        {name: meta[name] for name in ("config", "image_shape")},
    )
    file = photos / "test" / "ant" / "grey.png"
    assert_one_message(
        call(tmp_path / "nan", file, "--json"), f"gives {file} outputs that are not finite; take another"
    )


@pytest.mark.parametrize("options", ["", "--uint8", "--weights beside", "--uint8 --weights beside"])
def test_an_exported_file_gives_what_its_checkpoint_gives(call, capsys, home, photos, tmp_path, options):
    file, images = tmp_path / "net.stablehlo", photos / "test" / "ant"
    made = invoke(capsys, every_command, "export", home / "sparse", "--out", file, *options.split())
    assert made.code == 0, made.err
    done = call(file, images, "--json")
    assert (done.code, done.err) == (0, "")
    shares = expected(home, decode(image_files(str(images)), Form(8, 1)))
    for found, own in zip(json.loads(done.out), shares, strict=True):
        assert [one["name"] for one in found["classes"]] == [str(one) for one in np.argsort(-own)]
        np.testing.assert_allclose([one["probability"] for one in found["classes"]], np.sort(own)[::-1], rtol=1e-4)
    assert f"Classes by {file}" in flat(call(file, images).out)


GREY = ([0.5], [0.5])


def exported(home, path, meta=None, **how):
    """The cut network of `home` as a file that names the shape of its images and their classes, or other meta."""
    module, variables, _ = jaxslim.load(home / "pruned")
    known = {"image_shape": [8, 8, 1], "class_names": ["ant", "bee", "cat"]} | (meta or {})
    images = np.zeros((2, 8, 8, 1), np.float32)
    return jaxslim.export(path, module, variables, images, meta=known, **how).path


def test_a_file_of_ones_own_export(call, home, photos, tmp_path):
    image = photos / "test" / "ant" / "grey.png"
    (share,) = expected(home, decode([str(image)], Form(8, 1)), "pruned")
    done = call(exported(home, tmp_path / "net", normalisation=GREY), image, "--top", 1)
    best = int(share.argmax())
    assert re.search(rf" {['ant', 'bee', 'cat'][best]} +{100 * share[best]:.2f}% *$", done.out, re.M)


PIXELS = "does not tell how square images of {}x1 are normalised; export it with normalisation, or export a checkpoint"
FILES = {
    "classes": (
        {"normalisation": GREY, "argmax": True},
        "gives classes and no logits, which probabilities are made",
    ),
    "platform": (
        {"normalisation": GREY, "platforms": ["cuda"]},
        "is for cuda, and JAX runs on cpu here; export it",
    ),
    "no normalisation": ({}, PIXELS.format("8x8")),
    "oblong": ({"normalisation": GREY, "meta": {"image_shape": [8, 9, 1]}}, PIXELS.format("8x9")),
    "odd pixels": ({"meta": {"pixels": {"mean": 0.5, "std": [0.5], "inside": False}}}, PIXELS.format("8x8")),
    "other channels": (
        {"meta": {"pixels": {"mean": [0.5] * 3, "std": [0.5] * 3, "inside": False}}},
        PIXELS.format("8x8"),
    ),
    "other images": (
        {"normalisation": GREY, "meta": {"image_shape": [9, 9, 1]}},
        "The program takes an input of uint8[batch,8,8,1] and was given uint8[1,9,9,1]",
    ),
    "odd shape": (
        {"normalisation": GREY, "meta": {"image_shape": [8, 8]}},
        "its image_shape is [8, 8], not three",
    ),
}


@pytest.mark.parametrize(("how", "message"), FILES.values(), ids=FILES)
def test_a_file_that_tells_not_enough_or_something_else(call, home, photos, tmp_path, how, message):
    done = call(exported(home, tmp_path / "net", **how), photos / "test" / "ant")
    assert_one_message(done, message)
    assert done.out == ""


MISTAKES = {
    "absent image": ("{home}/sparse no.png", "There is no image no.png; check the path."),
    "no image": ("{home}/sparse", "There is no image; give files, or a folder: jaxslim predict CHECKPOINT IMAGE..."),
    "text": (
        "{home}/sparse test/ant/notes.txt",
        "Cannot decode the image test/ant/notes.txt (cannot identify image fi",
    ),
    "broken image": ("{home}/sparse test/ant/grey.png broken.png", "Cannot decode the image broken.png ("),
    "folder without images": ("{home}/sparse test", "The folder test has no images (.png, .jpg, .jpeg, .webp, .bmp,"),
    "pipe": ("{home}/sparse pipe", "pipe is no regular file; replace or remove it."),
    "no classes": ("{home}/sparse test/ant --top 0", "top is 0; it must be at least 1."),
    "absent checkpoint": ("{home}/no test/ant", "There is no checkpoint {home}/no; check the path."),
    "data": ("{home}/data.npz test/ant", "{home}/data.npz is no file of jaxslim export, but another zip archive; give"),
    "config": (
        "{home}/config.py test/ant",
        "{home}/config.py is neither a checkpoint nor a network that jaxslim",
    ),
    "nothing": ("", "Missing from jaxslim predict: CHECKPOINT"),
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(call, home, photos, tmp_path, monkeypatch, line, message):
    shutil.copytree(photos / "test", tmp_path / "test")
    (tmp_path / "broken.png").write_bytes((tmp_path / "test" / "ant" / "colour.png").read_bytes()[:100])
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    before = contents(home)
    done = call(*line.replace("{home}", str(home)).split())
    assert_one_message(done, message.replace("{home}", str(home)))
    assert done.out == ""
    assert contents(home) == before
