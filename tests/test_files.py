"""Locked folders, and files that appear whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxslim.errors import InputError
from jaxslim.files import LOCK, check_path, locked, replacing, write_whole


def test_a_locked_folder_keeps_others_out(tmp_path):
    message = rf"^{tmp_path}/out is in use by another process; wait for it, or choose another --out\.$"
    with locked(tmp_path / "out"):
        with pytest.raises(InputError, match=message), locked(tmp_path / "out", "--out"):
            pass
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
        (tmp_path / "out" / "result").write_text("")
    with locked(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "result").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_mistake_leaves_nothing_behind(tmp_path, there):
    if there:
        (tmp_path / "runs" / "one").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "runs" / "one"):
        raise ZeroDivisionError
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_gone_by_the_end(tmp_path):
    with locked(tmp_path / "out"):
        (tmp_path / "out" / LOCK).unlink()
        (tmp_path / "out").rmdir()


CONTEND = """
import sys
from pathlib import Path
from jaxslim.errors import InputError
from jaxslim.files import locked

folder, mark, taken = Path(sys.argv[1]), Path(sys.argv[2]), 0
while taken < 60:
    try:
        with locked(folder):
            mark.touch(exist_ok=False)
            mark.unlink()
            taken += 1
    except InputError:
        pass
"""


def test_processes_that_race_for_a_folder_that_disappears(tmp_path):
    """Each makes the folder, locks it and removes it again; no two hold it at once, and none stumbles."""
    command = [sys.executable, "-c", CONTEND, tmp_path / "runs" / "one", tmp_path / "mark"]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in started] == [("", 0)] * 3
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = write_whole(tmp_path / "new" / "file", "old")
    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:
        raise ZeroDivisionError(temporary.write_text("half"))
    assert [(path.name, path.read_text()) for path in file.parent.iterdir()] == [("file", "old")]
    write_whole(file, b"new")
    assert [(path.name, path.read_text()) for path in file.parent.iterdir()] == [("file", "new")]


def test_a_full_disk_is_reported_with_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(tmp_path / "file", "text")
    assert caught.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("path", "what"), [("", "empty"), ("a\0b", "not valid UTF-8"), ("\udcff", "not valid UTF-8")])
def test_paths_that_name_no_folder(path, what):
    with pytest.raises(InputError, match=rf"^The path '.*' is {what}; choose another name\.$"):
        check_path(path)
