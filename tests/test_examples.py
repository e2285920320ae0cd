"""The examples run as their own lines say, and what they print holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
