"""The benchmark script, rehearsed with tiny networks and layers: what it writes, and what it says about bad input."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import lax

from jaxslim.errors import InputError

SCRIPTS = Path(__file__).parents[1] / "scripts"


def rehearse(file, *options, rounds=1, first_on_path=""):
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--quick", "--json", str(file), *options]
    command += ["--rounds", str(rounds)]
    path = os.pathsep.join(filter(None, (str(first_on_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done, json.loads(file.read_text())


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory):
    """A folder with a PyTorch that cannot be imported, so that the machine's own does not matter."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "torch.py").write_text("raise ImportError('there is none')\n")
    return folder


@pytest.fixture(scope="module")
def rehearsal(no_torch):
    return rehearse(no_torch / "bench.json", "--batches", "2", "--peer", "torch", first_on_path=no_torch)


@pytest.fixture(scope="module")
def layers_rehearsal(no_torch):
    return rehearse(no_torch / "layers.json", "--layers", "--peer", "torch", rounds=3, first_on_path=no_torch)


@pytest.fixture
def bench_layers(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("bench_layers")


def cells(done, row):
    """The cells of a row of a table by the names of its columns."""
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    number = next(number for number, line in enumerate(lines) if line[0] == row)
    rule = max(before for before, line in enumerate(lines[:number]) if line[0] == "---")
    return dict(zip(lines[rule - 1], lines[number][1:], strict=True))


def spread(seconds, who):
    ratios = [other / ours for other, ours in zip(seconds[who], seconds["jaxslim"], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


@pytest.mark.parametrize(("rehearsed", "own"), [("rehearsal", ["jaxslim"]), ("layers_rehearsal", ["jaxslim", "XLA"])])
def test_a_missing_peer_is_named_and_left_out(rehearsed, own, request):
    done, result = request.getfixturevalue(rehearsed)
    assert "PyTorch is left out (there is none); to compare with it: pip install torch" in done.stderr.splitlines()
    assert all(list(row["seconds"]) == own for row in result["rows"])


def test_everything_is_measured(rehearsal):
    done, result = rehearsal
    assert {"hardware", "versions", "devices"} <= result["machine"].keys()
    assert {(row["network"], row["kind"]) for row in result["rows"]} == {
        (network, kind) for network in ("dense", "pruned", "rounded") for kind in ("train", "infer")
    }
    macs = {row["network"]: row["macs"] for row in result["rows"]}
    sizes = [32, 16]  # heights and widths of the maps
    for network, widths in result["networks"].items():
        channels = [3, *(width for width in widths if width != "M")]
        by_hand = sum(9 * s * s * a * b for s, a, b in zip(sizes, channels, channels[1:], strict=False))
        assert macs[network] == by_hand + channels[-1] * 10
    for row in result["rows"]:
        flop = 2 * row["macs"] * row["batch"] * (3 if row["kind"] == "train" else 1)
        share = flop / median(row["seconds"]["jaxslim"]) / row["matmul_flop_per_second"]
        assert row["share_of_matmul_rate"] == pytest.approx(share)
    assert set(result["epoch"]["seconds"]) == {"jaxslim", "jaxslim, bare steps", "arithmetic alone"}
    assert set(result["first_step"]) == {"cold", "with the cache"}
    assert all(set(run) == {"imports", "init", "first step", "whole process"} for run in result["first_step"].values())
    assert {"cutting", "sweep"} <= result.keys()
    dense, pruned = (
        next(row["seconds"]["jaxslim"] for row in result["rows"] if (row["network"], row["kind"]) == (name, "train"))
        for name in ("dense", "pruned")
    )
    speed = cells(done, "pruned float32 2 train")
    assert float(speed["images/s"]) == pytest.approx(2 / pruned[0], abs=0.006)
    assert float(speed["/ dense"]) == pytest.approx(dense[0] / pruned[0], abs=0.006)
    assert cells(done, "arithmetic alone")["/ jaxslim"] == spread(result["epoch"]["seconds"], "arithmetic alone")


def test_layers_are_measured_in_place_of_networks(layers_rehearsal):
    done, result = layers_rehearsal
    assert result.keys() == {"machine", "rows"}
    names = [row.get("layer") or f"{row['network']}, batch {row['batch']}" for row in result["rows"]]
    assert [(name, row["kind"]) for name, row in zip(names, result["rows"], strict=True)] == [
        (name, kind)
        for name in (
            "3x3, 6x6, 3 -> 4, batch 2",
            "depthwise 3x3 stride 2, 6x6, 4 -> 4, batch 2",
            "transposed 4x4 stride 2, 3x3, 4 -> 3, batch 2",
            "ResNet-18, batch 2",
            "MobileNetV2, batch 2",
        )
        for kind in ("infer", "train")
    ]
    for name, row in zip(names, result["rows"], strict=True):
        assert all(len(times) == 3 and min(times) > 0 for times in row["seconds"].values())
        told = cells(done, name)
        assert list(told) == ["infer (ms)", "infer / XLA", "train (ms)", "train / XLA"]
        assert told[f"{row['kind']} (ms)"] == f"{1000 * median(row['seconds']['jaxslim']):.2f}"
        assert told[f"{row['kind']} / XLA"] == spread(row["seconds"], "XLA")
    last = next(row for row in reversed(result["rows"]) if "layer" in row)
    assert (last["size"], last["window"], last["stride"], last["transposed"], last["batch"]) == (3, 4, 2, True, 2)
    assert done.stdout.count("\n## ") == 2  # one table, and the notes


def test_layers_keep_the_size_or_change_it_by_their_stride(bench_layers):
    layers = bench_layers.LAYERS
    assert len({layer.name for layer in layers}) == len(layers)
    for layer in layers:
        images = jax.ShapeDtypeStruct((layer.batch, layer.size, layer.size, layer.channels), "float32")
        kernel = jax.ShapeDtypeStruct(
            (layer.window, layer.window, layer.channels // layer.groups, layer.features), "f4"
        )
        output = jax.eval_shape(
            lambda x, w, one=layer: bench_layers.convolve(one, lax.conv_general_dilated, x, w), images, kernel
        )
        size = layer.size * layer.stride if layer.transposed else layer.size // layer.stride
        assert output.shape == (layer.batch, size, size, layer.features), layer.name


def test_a_transposed_layer_lays_the_rotated_kernel_side_by_side(bench_layers):
    layer = bench_layers.Layer(size=3, channels=1, features=1, window=2, stride=2, transposed=True, batch=1)
    image, kernel = np.arange(9, dtype=np.float32).reshape(3, 3), np.float32([[1, 10], [100, 1000]])
    output = bench_layers.convolve(layer, lax.conv_general_dilated, image[None, :, :, None], kernel[:, :, None, None])
    np.testing.assert_array_equal(output[0, :, :, 0], np.kron(image, kernel[::-1, ::-1]))


def stranger(change):
    """A peer whose outputs are those of XLA, changed."""

    def layer_calls(layer, images, kernel, cotangent):
        output = importlib.import_module("bench_layers").convolve(layer, lax.conv_general_dilated, images, kernel)
        return {"stranger": (lambda: change(np.asarray(output)), lambda: None)}

    return SimpleNamespace(layer_calls=layer_calls, channels_last=np.asarray)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda output: output[:, ::-1],
            r"^depthwise 3x3 stride 2.*, stranger: outputs differ from jaxslim's by [\d.]+;",
        ),
        (lambda output: output + 2e-3 * np.abs(output).max(), "stranger: outputs differ"),
        (lambda output: output * np.nan, "stranger: outputs differ from jaxslim's by nan"),
        (lambda output: output[:, :1], r"outputs have the shape \(2, 1, 3, 4\), jaxslim's \(2, 3, 3, 4\)"),
    ],
)
def test_a_peer_that_computes_another_layer_is_refused(change, said, bench_layers):
    with pytest.raises(RuntimeError, match=said):
        next(bench_layers.measure(bench_layers.QUICK[1], 1, stranger(change)))


def test_a_peer_may_round(bench_layers):
    peer = stranger(lambda output: output + 5e-4 * np.abs(output).max())
    found = list(bench_layers.measure(bench_layers.QUICK[1], 2, peer))
    assert [row["kind"] for row in found] == ["infer", "train"]
    assert all([len(times) for times in row["seconds"].values()] == [2, 2, 2] for row in found)


def test_pytorch_computes_the_same_layers(bench_layers):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    peer = importlib.import_module("bench_torch")
    for layer in (*bench_layers.LAYERS, *bench_layers.QUICK):
        width = 4 * layer.groups if 1 < layer.groups < layer.channels else layer.channels
        small = dataclasses.replace(layer, size=min(layer.size, 8), channels=width, batch=2)
        seconds = next(bench_layers.measure(small, 1, peer))["seconds"]  # raises where outputs differ
        assert list(seconds) == ["jaxslim", "XLA", "torch eager", "torch channels_last"]


def test_pytorch_takes_part_layer_by_layer(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    done, result = rehearse(tmp_path / "layers.json", "--layers", "--peer", "torch", rounds=2)
    for row in (row for row in result["rows"] if "layer" in row):
        assert list(row["seconds"]) == ["jaxslim", "XLA", "torch eager", "torch channels_last"]
        ratio = cells(done, row["layer"])[f"{row['kind']} / torch channels_last"]
        assert ratio == spread(row["seconds"], "torch channels_last")
    assert result["machine"]["torch_device"] == "cpu"


def test_pytorch_takes_part(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    done, result = rehearse(tmp_path / "bench.json", "--batches", "2", "--peer", "torch")
    assert all({"torch eager", "torch channels_last"} <= row["seconds"].keys() for row in result["rows"])
    assert {"torch with DataLoader, 1 worker", "torch tuned"} <= result["epoch"]["seconds"].keys()
    assert result["machine"]["torch_device"] == "cpu"
    row = next(row for row in result["rows"] if (row["network"], row["kind"]) == ("rounded", "infer"))
    assert cells(done, "rounded float32 2 infer")["/ torch eager"] == spread(row["seconds"], "torch eager")


@pytest.mark.parametrize("option", ["--rounds", "--batches"])
def test_bad_input(option, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    with pytest.raises(InputError, match="--rounds and --batches must be at least 1, for example --rounds 7 --batches"):
        importlib.import_module("bench").main([option, "0"])
