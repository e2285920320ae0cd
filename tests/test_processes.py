"""Two processes that train one network: one result, one checkpoint, and going on."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_commands import options
from test_loop import rows, signal_at, tiny

from jaxslim.errors import InputError, StoppedError
from jaxslim.storage import checkpoint
from jaxslim.training import distributed as processes
from jaxslim.training.loop import train

MINUTES = 2
EPOCHS = 24


@pytest.fixture
def start():
    """Start the processes of one run, with a device each; what is left of them in the end is killed."""
    with contextlib.ExitStack() as held:

        def start(config, number=2):
            port = held.enter_context(processes._bound(0)).getsockname()[1]  # or another test might be given it
            started = []
            for index in range(number):
                environment = {
                    **os.environ,
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(number),
                    "JAX_PROCESS_ID": str(index),
                    "JAX_NUM_CPU_DEVICES": "1",
                }
                command = [sys.executable, "-m", "jaxslim.train", *map(str, options(config))]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                started.append(held.enter_context(subprocess.Popen(command, env=environment, **pipes)))
                held.callback(started[-1].kill)
            return started

        yield start


def finish(started):
    until = time.monotonic() + 60 * MINUTES
    return [(*process.communicate(timeout=until - time.monotonic()), process.returncode) for process in started]


def assert_close_runs(one, other):
    for mine, theirs in zip(rows(one), rows(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    mine, theirs = (checkpoint.load(Path(folder)).variables for folder in (one, other))
    for name in ("conv0", "bn1", "classifier"):
        for leaf, value in theirs["params"][name].items():
            np.testing.assert_allclose(mine["params"][name][leaf], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tiny(tmp_path_factory.mktemp("alone"), epochs=EPOCHS, flip=False)).folder


def test_two_processes_give_what_one_gives(start, tmp_path, alone):
    config = tiny(tmp_path, epochs=EPOCHS, flip=False)
    (first_out, _, first), (second_out, second_err, second) = finish(start(config))
    assert (first, second) == (0, 0), second_err
    assert "accuracy" in first_out
    assert "accuracy" not in second_out
    assert_close_runs(config.folder, alone)


def test_two_processes_go_on_where_one_stopped(start, tmp_path, alone):
    config = tiny(tmp_path, epochs=EPOCHS, flip=False)
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train_step", 20, signal.SIGTERM)
        with pytest.raises(StoppedError):
            train(config)
    assert [code for *_, code in finish(start(config))] == [0, 0]
    assert_close_runs(config.folder, alone)


def wait_for_an_epoch(config, started):
    until = time.monotonic() + 60 * MINUTES
    while not checkpoint.finished(Path(config.folder)):
        for process in started:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_with_its_name(start, tmp_path, alone, lost):
    config = tiny(tmp_path, epochs=EPOCHS, flip=False)
    started = start(config)
    wait_for_an_epoch(config, started)
    started[lost].kill()
    _, err, code = finish(started)[1 - lost]
    assert code == 1, err
    assert [line for line in err.splitlines() if not line.startswith("epoch ")] == [
        f"jaxslim: process {lost} (pid {started[lost].pid} on {platform.node()}) was lost; run the same commands "
        "again, and training goes on from its latest checkpoint."
    ]
    assert [code for *_, code in finish(start(config))] == [0, 0]
    assert_close_runs(config.folder, alone)


@pytest.mark.parametrize("asked", [(0, 1), (0,), (1,)])
def test_a_signal_stops_all_at_the_same_step(start, tmp_path, asked):
    config = tiny(tmp_path, epochs=1000)
    started = start(config)
    wait_for_an_epoch(config, started)
    for index in asked:
        started[index].terminate()
    for _, err, code in finish(started):
        assert code == 128 + signal.SIGTERM, err
        assert "stopped by SIGTERM" in err
        assert "lost" not in err
    interrupted = tmp_path / "run" / "interrupted"
    assert not interrupted.exists() or checkpoint.load(interrupted).meta["sums"]["loss"]  # or at the end of an epoch


@pytest.mark.parametrize(
    "variables", [{}, {"JAX_NUM_PROCESSES": "2"}, {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}]
)
def test_variables_that_describe_no_process(tmp_path, monkeypatch, variables):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(InputError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers too"),
        processes.joined(tmp_path),
    ):
        pass


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_the_parts_of_an_address(host):
    address = f"[{host}]:65535" if ":" in host else f"{host}:65535"
    assert processes._host_and_port(address) == (host, 65535)


def test_a_process_alone_waits_for_none():
    processes.wait("for nobody")
    assert processes.is_first()
