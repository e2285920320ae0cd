"""The torture script in its short form, and that it can fail."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from test_loop import handled

SCRIPT = Path(__file__).parents[1] / "scripts" / "torture.py"
spec = importlib.util.spec_from_file_location("torture", SCRIPT)
assert spec is not None
assert spec.loader is not None
torture = importlib.util.module_from_spec(spec)
sys.modules["torture"] = torture
spec.loader.exec_module(torture)


def call(*options, **environment):
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_nothing_is_lost_or_passes_unseen():
    done = call("--short", "--kills", "3", "--networks", "5")
    assert (done.returncode, done.stderr) == (0, "")
    found = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert found["kills survived"] == "3"
    assert int(found["damages noticed"]) > 50
    assert sum(int(count) for what, count in found.items() if what.startswith("inputs")) == 200
    assert found["networks drawn without a broken invariant"] == "5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short", "--long"], "--short and --long exclude each other; give one of them."),
        (["--kills", "-1"], "--kills, --inputs, --networks and --seed must be at least 0."),
        (["--networks", "-1"], "--kills, --inputs, --networks and --seed must be at least 0."),
        (["--seed", "-1"], "--kills, --inputs, --networks and --seed must be at least 0."),
    ],
)
def test_bad_options(options, message):
    done = call(*options)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"jaxslim: {message}\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torture")
    config = torture._write_config(folder)
    torture._finish(config, folder / "whole")
    return folder / "whole"


def test_training_takes_ctrl_c_where_torture_itself_ignores_it(whole, tmp_path):
    """As in the background of a shell's script."""
    with handled(signal.SIGINT, signal.SIG_IGN):
        process = torture._start(whole.parent / "config.py", tmp_path / "run")
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode


@pytest.mark.parametrize("spoil", ["metrics", "arrays", "rest"])
def test_a_run_that_differs_is_found(whole, tmp_path, spoil):
    other = Path(shutil.copytree(whole, tmp_path / "other"))
    torture._compare(other, whole)
    if spoil == "metrics":
        file = other / "metrics.jsonl"
        file.write_bytes(file.read_bytes()[:-2] + b" }")
    elif spoil == "arrays":
        shutil.rmtree(other / "checkpoints" / str(torture.EPOCHS))
    else:
        (other / "checkpoints" / ".unfinished-1").mkdir()
    with pytest.raises(torture.Failure):
        torture._compare(other, whole)


def test_damage_that_is_not_seen_is_found(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxslim.storage.checkpoint.damage", lambda path: None)
    with pytest.raises(torture.Failure, match="was answered with None"):
        torture._damage(whole, tmp_path, np.random.default_rng(0))


def test_a_reader_that_breaks_is_found(whole, tmp_path, monkeypatch):
    shutil.copy(whole.parent / "data.npz", tmp_path)

    def broken(path):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("jaxslim.storage.checkpoint.load", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where it keeps what broke the reader
    with pytest.raises(torture.Failure, match="raised ZeroDivisionError: of all things"):
        torture._feed(whole, tmp_path, 5, np.random.default_rng(0))


DRAWN = """
from hypothesis import given, strategies as st

@given(st.integers(0, 9999))
def test_drawn(number):
    with open({file!r}, "a") as file:
        print(number, file=file)
    assert number >= {least}
"""


def drawing(monkeypatch, folder, text, **names):
    """Make `_draw` run another property test, which writes down what it drew."""
    (folder / "tests").mkdir()
    (folder / "scripts").symlink_to(SCRIPT.parent)
    shutil.copy(Path(__file__).with_name("conftest.py"), folder / "tests")
    (folder / "tests" / "test_drawn.py").write_text(text.format(file=str(folder / "drawn"), **names))
    monkeypatch.setattr(torture, "PROPERTY", str(folder / "tests" / "test_drawn.py"))


def test_what_was_drawn_is_counted_and_goes_by_the_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "true")  # makes Hypothesis draw the same examples each time, unless told otherwise
    drawing(monkeypatch, tmp_path, DRAWN, least=0)
    found = []
    for seed in (0, 0, 1):
        assert torture._draw(tmp_path, 130, np.random.default_rng(seed)) == 130
        found.append((tmp_path / "drawn").read_text().split())
        (tmp_path / "drawn").unlink()
    assert found[0] == found[1]
    assert len(found[0]) == 130
    assert len(set(found[0][:100]) & set(found[0][100:])) < 15
    assert len(set(found[0]) & set(found[2])) < 50


def test_a_broken_invariant_is_found(tmp_path, monkeypatch):
    drawing(monkeypatch, tmp_path, DRAWN, least=77)
    with pytest.raises(torture.Failure, match=r"(?s)--hypothesis-seed=\d+ .* ended with 1: .*number=0"):
        torture._draw(tmp_path, 100, np.random.default_rng(0))


def test_nothing_drawn_is_found(tmp_path, monkeypatch):
    drawing(monkeypatch, tmp_path, "def test_nothing():\n    pass")
    with pytest.raises(torture.Failure, match=r"ended with 0: "):
        torture._draw(tmp_path, 1, np.random.default_rng(0))
