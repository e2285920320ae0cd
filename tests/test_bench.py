"""The benchmark script, rehearsed with a tiny network: what it writes, and what it says about bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts/bench.py"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """With a PyTorch that cannot be imported, so that the machine's own does not matter."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "torch.py").write_text("raise ImportError\n")
    file = folder / "bench.json"
    options = ["--quick", "--rounds", "1", "--batches", "2", "--peer", "torch", "--json", str(file)]
    done = bench(*options, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    return done, json.loads(file.read_text())


def test_a_missing_peer_is_named_and_left_out(rehearsal):
    done, result = rehearsal
    said = "PyTorch is not installed, so it is left out; to compare with it: pip install torch"
    assert said in done.stderr.splitlines()
    assert all(list(row["seconds"]) == ["jaxslim"] for row in result["rows"])


def test_everything_is_measured(rehearsal):
    done, result = rehearsal
    assert {"hardware", "versions", "devices"} <= result["machine"].keys()
    assert {(row["network"], row["kind"]) for row in result["rows"]} == {
        (network, kind) for network in ("dense", "pruned", "rounded") for kind in ("train", "infer")
    }
    macs = {row["network"]: row["macs"] for row in result["rows"]}
    sizes = [32, 32, 16, 8]  # heights and widths of the maps
    for network, widths in result["networks"].items():
        channels = [3, *(width for width in widths if width != "M")]
        by_hand = sum(9 * s * s * a * b for s, a, b in zip(sizes, channels, channels[1:], strict=False))
        assert macs[network] == by_hand + channels[-1] * 10
    for row in result["rows"]:
        flop = 2 * row["macs"] * row["batch"] * (3 if row["kind"] == "train" else 1)
        share = flop / row["seconds"]["jaxslim"] / row["matmul_flop_per_second"]
        assert row["share_of_matmul_rate"] == pytest.approx(share)
    assert {row["network"] for row in result["against_dense"]} == {"pruned", "rounded"}
    assert all(row["macs"] == macs["dense"] / macs[row["network"]] for row in result["against_dense"])
    epoch = result["epoch"]
    assert set(epoch["seconds"]) == {"jaxslim", "jaxslim, bare steps"}
    assert epoch["times_the_floor"] == pytest.approx(epoch["seconds"]["jaxslim"] / epoch["arithmetic_floor_seconds"])
    assert set(result["first_step"]) == {"cold", "with the cache"}
    assert all(set(run) == {"imports", "init", "first step", "whole process"} for run in result["first_step"].values())
    assert {"cutting", "sweep"} <= result.keys()
    assert "dense" in done.stdout


def test_pytorch_takes_part(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    options = ["--quick", "--rounds", "1", "--batches", "2", "2", "--peer", "torch", "--json", str(tmp_path / "b.json")]
    done = bench(*options)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert len(result["rows"]) == 6
    for row in result["rows"]:
        assert {"torch eager", "torch channels_last"} <= row["times_as_fast_as"].keys()
        for peer, ratio in row["times_as_fast_as"].items():
            assert ratio == row["seconds"][peer] / row["seconds"]["jaxslim"]
    assert {"torch with DataLoader, 1 worker", "torch tuned"} <= result["epoch"]["times_as_fast_as"].keys()
    assert result["machine"]["torch_device"] == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds and --batches must be at least 1, for example --rounds 7 --batches 1 64."),
        (["--batches", "0"], "--rounds and --batches must be at least 1, for example --rounds 7 --batches 1 64."),
        (["--json", "."], ". is a folder; give a file, for example bench.json."),
    ],
)
def test_bad_input(options, message):
    done = bench(*options)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"jaxslim: {message}\n")
