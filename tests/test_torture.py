"""The torture script in its short form, and that it can fail."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jaxslim.storage import checkpoint

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.append(str(SCRIPTS))
torture, torture_readers = map(importlib.import_module, ("torture", "torture_readers"))


def test_nothing_is_lost_or_passes_unseen():
    options = ["--short", "--kills", "2", "--inputs", "120", "--networks", "5"]
    command = [sys.executable, str(SCRIPTS / "torture.py"), *options]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = {what: int(count) for what, count in (line.rsplit(": ", 1) for line in done.stdout.splitlines())}
    assert found["kills survived"] == 2
    assert found["kills of a run that streams pictures survived"] == 1
    assert found["damages noticed"] > 50
    assert sum(count for what, count in found.items() if what.startswith("inputs")) == 120
    assert found["networks drawn without a broken invariant"] == 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not disturbed; its configuration and data lie beside it."""
    folder = tmp_path_factory.mktemp("torture")
    torture.finish(torture.write_config(folder), folder / "whole")
    return folder / "whole"


@pytest.mark.parametrize("spoil", ["metrics", "arrays", "rest"])
def test_a_run_that_differs_is_found(whole, tmp_path, spoil):
    other = shutil.copytree(whole, tmp_path / "other")
    torture.compare(other, whole)
    if spoil == "metrics":
        file = other / "metrics.jsonl"
        file.write_bytes(file.read_bytes()[:-2] + b" }")
    elif spoil == "arrays":
        shutil.rmtree(checkpoint.find(other))
    else:
        (other / "checkpoints" / ".unfinished-1").mkdir()
    with pytest.raises(AssertionError, match=r"differ|was left over"):
        torture.compare(other, whole)


def test_damage_that_is_not_seen_is_found(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "fault", lambda path: None)
    with pytest.raises(AssertionError, match="was answered with None"):
        torture.damage(whole, tmp_path, np.random.default_rng(0))


def test_a_reader_that_breaks_is_found(whole, tmp_path, monkeypatch):
    shutil.copy(whole.parent / "data.npz", tmp_path)

    def broken(path):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(checkpoint, "load", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where it keeps what broke the reader
    with pytest.raises(AssertionError, match=r"raised ZeroDivisionError: of all things \(input: (\S+)\)") as caught:
        torture_readers.feed(whole.parent / "config.py", whole, tmp_path, 5, np.random.default_rng(0))
    assert Path(str(caught.value).rpartition("input: ")[2].rstrip(")")).is_file()


DRAWN = """
from hypothesis import given, strategies as st

@given(st.integers(0, 9999))
def test_drawn(number):
    with open({file!r}, "a") as file:
        print(number, file=file)
    assert number >= {least}
"""


def drawing(folder, text, **names):
    """A property test to draw in, which writes down what it drew, with the settings of all tests."""
    (folder / "tests").mkdir()
    (folder / "scripts").symlink_to(SCRIPTS)
    settings = Path(__file__).with_name("conftest.py").read_text().partition("\n\n\n@pytest.fixture")[0]
    (folder / "tests" / "conftest.py").write_text(settings)
    test = folder / "tests" / "test_drawn.py"
    test.write_text(text.format(file=str(folder / "drawn"), **names))
    return str(test)


def test_what_was_drawn_is_counted_and_goes_by_the_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "true")  # makes Hypothesis draw the same examples each time, unless told otherwise
    test = drawing(tmp_path, DRAWN, least=0)
    found = []
    for number in (130, 100):  # which take two processes and one
        assert torture.draw(test, tmp_path, number, np.random.default_rng(0)) == number
        found.append((tmp_path / "drawn").read_text().split())
        (tmp_path / "drawn").unlink()
    assert len(found[0]) == 130
    assert found[0][:100] == found[1]
    assert len(set(found[0][:100]) & set(found[0][100:])) < 15


def test_a_broken_invariant_is_found(tmp_path):
    test = drawing(tmp_path, DRAWN, least=77)
    with pytest.raises(AssertionError, match=r"(?s)--hypothesis-seed=\d+ .* ended with 1: .*number=0"):
        torture.draw(test, tmp_path, 100, np.random.default_rng(0))


def test_nothing_drawn_is_found(tmp_path):
    test = drawing(tmp_path, "def test_nothing():\n    pass")
    with pytest.raises(AssertionError, match=r"ended with 0: "):
        torture.draw(test, tmp_path, 1, np.random.default_rng(0))
