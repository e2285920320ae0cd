"""Two processes that train one network: one result, a lost process, signals, and mistakes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_loop import rows, tiny
from test_streams import make_folder

from jaxslim.errors import InputError
from jaxslim.files import locked
from jaxslim.storage import checkpoint, history
from jaxslim.training import distributed
from jaxslim.training.loop import train

SECONDS = 120
"""Within which processes end by themselves."""
EPOCHS = 24
COMMAND = """
import sys
from jaxslim.commands import cli, train
from jaxslim.training import distributed

distributed.HEARTBEAT = 5
cli.run(train.main, sys.argv[1:])
"""


@pytest.fixture
def start():
    """Start the processes of one run, with a device each; what is left of them in the end is killed."""
    with contextlib.ExitStack() as stack:

        def start(config, number=2):
            with socket.create_server(("localhost", 0)) as free:
                port = free.getsockname()[1]
            file = Path(config.folder).with_name("config.py")
            file.write_text(f"from jaxslim.training.config import TrainConfig\n\nconfig = {config!r}\n")
            started = []
            for index in range(number):
                environment = {
                    **os.environ,
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(number),
                    "JAX_PROCESS_ID": str(index),
                    "JAX_NUM_CPU_DEVICES": "1",
                }
                command = [sys.executable, "-c", COMMAND, str(file)]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                started.append(stack.enter_context(subprocess.Popen(command, env=environment, **pipes)))
                stack.callback(started[-1].kill)
            return started

        yield start


def finish(started):
    until = time.monotonic() + SECONDS
    return [(*process.communicate(timeout=until - time.monotonic()), process.returncode) for process in started]


def wait_for_an_epoch(config, started):
    until = time.monotonic() + SECONDS
    while not history.steps_saved(Path(config.folder)):
        for process in started:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def assert_close_runs(one, other):
    for mine, theirs in zip(rows(one), rows(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    mine, theirs = (checkpoint.load(Path(folder)).variables for folder in (one, other))
    for name in ("conv0", "bn1", "classifier"):
        for leaf, value in theirs["params"][name].items():
            np.testing.assert_allclose(mine["params"][name][leaf], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tiny(tmp_path_factory.mktemp("alone"), epochs=EPOCHS, augment=("crop",))).folder


def test_two_processes_stop_together_and_go_on_to_what_one_gives(start, tmp_path, alone):
    """A signal to one of them stops both at the same step."""
    config = tiny(tmp_path, epochs=EPOCHS, augment=("crop",))
    started = start(config)
    wait_for_an_epoch(config, started)
    started[1].terminate()
    for _, err, code in finish(started):
        assert code == 128 + signal.SIGTERM, err
        assert "stopped by SIGTERM; run the same command again, and training goes on where it was." in err
    (first_out, first_err, first), (second_out, second_err, second) = finish(start(config))
    assert (first, second) == (0, 0), first_err + second_err
    assert "accuracy" in first_out
    assert "accuracy" not in second_out
    assert_close_runs(config.folder, alone)


@pytest.mark.parametrize(
    ("lost", "message"), [(0, "the leader task was preempted/died"), (1, "stopped sending heartbeats):\n1\n")]
)
def test_a_lost_process_ends_the_other(start, tmp_path, lost, message):
    """JAX's own message names the lost task; the leader is task 0."""
    config = tiny(tmp_path, epochs=EPOCHS, augment=("crop",))
    started = start(config)
    wait_for_an_epoch(config, started)
    started[lost].kill()
    _, err, code = finish(started)[1 - lost]
    assert code == -signal.SIGABRT
    assert message in err or f"Task {lost} heartbeat timeout" in err


def test_two_processes_that_decode_their_own_shares_give_what_one_gives(start, tmp_path):
    """With resized crops, which are drawn where a picture is decoded."""
    folder, found = str(make_folder(tmp_path / "pictures")), []
    for name, number in (("one", 1), ("two", 2)):
        pictures = {"dataset": folder, "image_size": 16, "channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        stream = {"stream": "always", "workers": number, "augment": ("resized-crop", "flip")}
        config = tiny(tmp_path / name, epochs=2, **pictures, **stream)
        if number == 1:
            train(config)
        else:
            done = finish(start(config, number))
            assert [code for _, _, code in done] == [0] * number, done
        found.append(config.folder)
    for mine, theirs in zip(*map(rows, found), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_mistake_of_one_process_ends_the_other(start, tmp_path):
    config = tiny(tmp_path)
    with locked(tmp_path / "run"):  # which only the first tries to lock
        (_, err, first), (_, _, second) = finish(start(config))
    assert (first, err) == (
        2,
        f"jaxslim: {tmp_path}/run is in use by another process; wait for it, or choose another --workdir.\n",
    )
    assert second == -signal.SIGABRT


MISSING = {"JAX_COORDINATOR_ADDRESS": "localhost:1"}
UNUSABLE = {
    "no number": MISSING,
    "no index": MISSING | {"JAX_NUM_PROCESSES": "2"},
    "index out of range": MISSING | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
    "negative index": MISSING | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "-1"},
    "no port": {"JAX_COORDINATOR_ADDRESS": "localhost", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    "no host": {"JAX_COORDINATOR_ADDRESS": ":1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    "huge port": {"JAX_COORDINATOR_ADDRESS": "a:65536", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
}


@pytest.mark.parametrize("variables", UNUSABLE.values(), ids=UNUSABLE)
def test_variables_that_describe_no_process(monkeypatch, variables):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    address = variables["JAX_COORDINATOR_ADDRESS"]
    with pytest.raises(InputError, match=f"^JAX_COORDINATOR_ADDRESS is '{address}', JAX_NUM_PROCESSES '"):
        distributed.joined().__enter__()


def test_a_process_alone_waits_for_none(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with distributed.joined():
        distributed.wait("for nobody")
        assert distributed.is_first()
        assert distributed.largest(3) == 3
