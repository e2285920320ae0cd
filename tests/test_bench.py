"""The benchmark script, rehearsed with a tiny network: what it writes, and what it says about bad input."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxslim.errors import InputError

SCRIPTS = Path(__file__).parents[1] / "scripts"


def rehearse(file, *options, **environment):
    command = [sys.executable, str(SCRIPTS / "bench.py"), "--quick", "--rounds", "1", "--json", str(file), *options]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done, json.loads(file.read_text())


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """With a PyTorch that cannot be imported, so that the machine's own does not matter."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "torch.py").write_text("raise ImportError('there is none')\n")
    return rehearse(folder / "bench.json", "--batches", "2", "--peer", "torch", PYTHONPATH=str(folder))


def test_a_missing_peer_is_named_and_left_out(rehearsal):
    done, result = rehearsal
    assert "PyTorch is left out (there is none); to compare with it: pip install torch" in done.stderr.splitlines()
    assert all(list(row["seconds"]) == ["jaxslim"] for row in result["rows"])


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
        share = flop / row["seconds"]["jaxslim"] / row["matmul_flop_per_second"]
        assert row["share_of_matmul_rate"] == pytest.approx(share)
    assert set(result["epoch"]["seconds"]) == {"jaxslim", "jaxslim, bare steps", "arithmetic alone"}
    assert set(result["first_step"]) == {"cold", "with the cache"}
    assert all(set(run) == {"imports", "init", "first step", "whole process"} for run in result["first_step"].values())
    assert {"cutting", "sweep"} <= result.keys()
    speed = next(line.split("|") for line in done.stdout.splitlines() if line.startswith("| pruned float32 2 train"))
    dense, pruned = (
        next(row["seconds"]["jaxslim"] for row in result["rows"] if (row["network"], row["kind"]) == (name, "train"))
        for name in ("dense", "pruned")
    )
    assert [float(cell) for cell in speed[2:4]] == pytest.approx([2 / pruned, dense / pruned], abs=0.006)


def test_pytorch_takes_part(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    done, result = rehearse(tmp_path / "bench.json", "--batches", "2", "--peer", "torch")
    assert all({"torch eager", "torch channels_last"} <= row["seconds"].keys() for row in result["rows"])
    assert {"torch with DataLoader, 1 worker", "torch tuned"} <= result["epoch"]["seconds"].keys()
    assert result["machine"]["torch_device"] == "cpu"
    assert "| / torch eager |" in done.stdout


@pytest.mark.parametrize("option", ["--rounds", "--batches"])
def test_bad_input(option, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    with pytest.raises(InputError, match="--rounds and --batches must be at least 1, for example --rounds 7 --batches"):
        importlib.import_module("bench").main([option, "0"])
