"""The examples run as their own lines say, and what they print holds."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxslim
from jaxslim.data.sources import Form, fit_one

EXAMPLES = Path(__file__).resolve().parents[1] / "scripts" / "examples"


def run(*command, **variables):
    env = os.environ | {"JAX_NUMPY_RANK_PROMOTION": "allow"} | variables  # as it is for users
    env["XLA_FLAGS"] = env["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")  # for so many steps
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["own_linen.py", "own_nnx.py"])
def test_network_of_ones_own(name):
    printed = run(sys.executable, EXAMPLES / name)
    line = r"^(\S+) +([\d.]+)% right, +([\d,]+) parameters, +([\d,]+) MACs, widths \(([\d, ]+)\)$"
    rows = {stage: values for stage, *values in re.findall(line, printed, re.M)}
    assert [*rows] == ["trained", "cut", "fine-tuned", "loaded"]
    trained, small, tuned, loaded = ([float(v.replace(",", "")) for v in row[:3]] for row in rows.values())
    assert trained[0] > 95
    assert tuned[0] > 95
    assert small[1:] == tuned[1:]
    assert all(after < 0.3 * before for before, after in zip(trained[1:], tuned[1:], strict=True))
    assert loaded == tuned
    assert rows["cut"][3] == rows["fine-tuned"][3] == rows["loaded"][3] != rows["trained"][3]
    assert "A fresh process predicts the same." in printed


def test_images_of_ones_own(tmp_path):
    small = ("--model-args", "widths=32,M,64", "--batch-size", "32")
    printed = run(EXAMPLES / "own_data.sh", tmp_path, *small, XDG_CACHE_HOME=str(tmp_path / "cache"))
    accuracy = dict(re.findall(r"^(photos-\S+): accuracy ([\d.]+)%", printed, re.M))
    assert [*accuracy] == ["photos-sparse", "photos-pruned-finetuned"]
    assert min(map(float, accuracy.values())) > 90
    full, small = (
        int(n.replace(",", "")) for n in re.search(r"^parameters +([\d,]+) -> ([\d,]+)", printed, re.M).groups()
    )
    assert small < 0.3 * full
    evaluated = printed.partition("\ncheckpoint ")[2]
    assert (
        f"accuracy    {accuracy['photos-pruned-finetuned']}% on 360 test images of {tmp_path / 'photos'}" in evaluated
    )
    assert f"parameters  {small:,}\n" in evaluated


def test_picture_of_readme(tmp_path):
    file = tmp_path / "picture.png"
    shortly = (
        "import own_linen, how_slimming_works as works; own_linen.TRAIN = own_linen.FINETUNE = 1; works.main({!r})"
    )
    run(sys.executable, "-c", shortly.format(str(file)), PYTHONPATH=str(EXAMPLES))
    assert file.read_bytes().startswith(b"\x89PNG")


CLASSIFY = """
const ort = require("onnxruntime-web");
const fs = require("node:fs");
const { module, file, images } = JSON.parse(fs.readFileSync(0));
import(module).then(async ({ classify, fit, load, probabilities }) => {
  const network = await load(ort, new Uint8Array(fs.readFileSync(file)));
  const found = [];
  for (const [bytes, width, height] of images) {
    const data = new Uint8ClampedArray(fs.readFileSync(bytes));
    const logits = [...await classify(ort, network, { data, width, height })];
    found.push({ pixels: [...fit(data, width, height, network)], logits, shares: probabilities(logits) });
  }
  console.log(JSON.stringify({ names: network.names, found }));
}).catch((error) => console.log(JSON.stringify({ error: error.message })));
"""


@pytest.fixture(scope="module")
def classify():
    """`classify(file, images)` -> what classify.mjs makes in Node of an ONNX file and Pillow's images."""
    if not shutil.which("node"):
        pytest.skip("There is no node.")
    if subprocess.run(["node", "-e", "require('onnxruntime-web')"], capture_output=True).returncode:
        pytest.skip("node finds no onnxruntime-web; npm install it, and set NODE_PATH to node_modules.")
    pytest.importorskip("onnx")

    def classify(file, images=()):
        raw = []
        for number, image in enumerate(images):
            raw.append((str(file.with_name(f"{number}.bytes")), *image.size))
            Path(raw[-1][0]).write_bytes(image.convert("RGBA").tobytes())
        job = {"module": str(EXAMPLES / "classify.mjs"), "file": str(file), "images": raw}
        done = subprocess.run(["node", "-e", CLASSIFY], input=json.dumps(job), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return classify


def exported(file, channels=3, **how):
    """A network of 16x16 images with variables between 0 and 0.25, as an ONNX file."""
    module, rng = jaxslim.VGG(widths=(4, "M", 8), num_classes=4), np.random.default_rng(0)
    images = np.zeros((2, 16, 16, channels), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) / 4, shapes)
    jaxslim.export(file, module, variables, images, **how)
    return file


@pytest.mark.parametrize("channels", [1, 3])
def test_classes_without_python(classify, tmp_path, channels):
    onnxruntime = pytest.importorskip("onnxruntime")
    names, rng = ["ant", "bee", "Käfer", "ox"], np.random.default_rng(0)
    normalisation = ([0.4] * channels, [0.2] * channels)
    file = exported(tmp_path / "net.onnx", channels, normalisation=normalisation, meta={"class_names": names})
    sizes = [(16, 16), (40, 30), (30, 40), (5, 90), (16, 7), (300, 16)]
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    made = classify(file, images)
    assert made["names"] == names
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for found, image in zip(made["found"], images, strict=True):
        pixels = np.array(found["pixels"], np.uint8).reshape(1, 16, 16, channels)
        fitted = fit_one(image, Form(16, channels))
        np.testing.assert_allclose(pixels[0], fitted.astype(int), atol=1)  # Pillow takes axes in either order
        (logits,) = session.run(None, {"input": pixels})
        np.testing.assert_allclose([found["logits"]], logits, rtol=1e-4)
        np.testing.assert_allclose([found["shares"]], jax.nn.softmax(logits), rtol=1e-4, atol=1e-6)


def test_a_file_that_tells_no_names_or_takes_no_pixels(classify, tmp_path):
    grey = ([0.4], [0.2])
    plain = exported(tmp_path / "plain.onnx", 1, normalisation=grey)
    assert classify(plain)["names"] == ["0", "1", "2", "3"]
    other = exported(tmp_path / "float.onnx")
    wanted = "The network takes float32[batch,16,16,3] and no uint8 images; export it with --uint8."
    assert classify(other) == {"error": wanted}
    classes = exported(tmp_path / "classes.onnx", 1, normalisation=grey, argmax=True)
    wanted = "The network gives int32[batch] and no logits; export a classifier without --argmax."
    assert classify(classes) == {"error": wanted}
