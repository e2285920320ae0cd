"""Several processes that train one network together: joining them, what only the first does, and losing one."""

import contextlib
import fcntl
import os
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxslim.errors import DivergedError, InputError, StoppedError

HEARTBEAT = 60
"""Seconds after which JAX counts a silent process as lost and ends the others."""

FILE = ".process-"
"""Begins the name of each process's file in the run's folder; the process holds a lock on it as long as it lives."""

_PAUSE, _PATIENCE = 0.3, 20.0  # seconds from look to look, and for what the others are about to do; below HEARTBEAT


@contextlib.contextmanager
def joined(folder: Path) -> Iterator[None]:
    """Join the processes that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe, if they are set.

    Within it, this process ends with a message and code 1 as soon as another is lost. With others, it ends the process
    after its body, with code 0.

    Args:
      folder: the run's, which all of them see.

    Raises:
      InputError: only some of the variables are set, or one cannot be used; or such a process is there already.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        yield
        return
    try:
        number, index = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    except (KeyError, ValueError):
        number, index = 0, 0
    if not 0 <= index < number:
        raise InputError(
            "JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers too, the second "
            "below the first, for example 2 and 0."
        )
    host, port = _host_and_port(address)
    if not index:
        _bound(port).close()
    with _announced(folder, index):
        others = _Others(folder, number, index)
        with others.watched():
            here = _relay(host, port) if index else address  # process 0 runs JAX's service itself
            jax.distributed.initialize(here, number, index, heartbeat_timeout_seconds=HEARTBEAT)
            others.complete = True
            yield
    others.wait()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # JAX's own end would wait for the others again, and abort when one of them has left


def _host_and_port(address: str) -> tuple[str, int]:
    """The parts of an address. JAX answers one that it cannot use with a traceback, an abort, or not for minutes."""
    parts = re.fullmatch(r"(\[[0-9a-fA-F:.]+(?:%\w+)?\]|[^\s:/\[\]]+):([0-9]{1,5})", address)
    if not parts or not 0 < int(parts[2]) < 1 << 16:
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be a host and a port from 1 to 65535, for example "
            "localhost:12345."
        )
    host, port = parts[1].strip("[]"), int(parts[2])
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return host, port
        except (OSError, UnicodeError) as error:  # UnicodeError: of names that cannot be looked up, as too long ones
            if isinstance(error, OSError) and time.monotonic() < until:  # a cluster names its machines as they come
                time.sleep(_PAUSE)
                continue
            reason = getattr(error, "strerror", None) or "no valid name"
            raise InputError(
                f"The host {host} of JAX_COORDINATOR_ADDRESS cannot be found ({reason}); give the name or the IP "
                "address of the machine of process 0."
            ) from error


def _bound(port: int) -> socket.socket:
    """A socket at the port, bound as JAX's service binds its own, beside this; gRPC crashes where that fails."""
    dual = socket.has_dualstack_ipv6()
    bound = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
    if dual:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(("", port))
    except OSError as error:
        bound.close()
        raise InputError(
            f"Process 0 cannot listen at the port {port} of JAX_COORDINATOR_ADDRESS ({error.strerror}); choose "
            "another, the same for all processes."
        ) from error
    return bound


class _Others:
    """The other processes of a run, each seen by its file."""

    def __init__(self, folder: Path, number: int, index: int) -> None:
        self.complete = False  # all have been here
        self._files = [folder / f"{FILE}{other}" for other in range(number)]
        self._mine = self._files.pop(index)
        self._names = dict.fromkeys(self._files, "")
        self._over, self._patience = threading.Event(), _PATIENCE

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        except (InputError, DivergedError, StoppedError):
            raise
        except Exception:  # JAX's, in the middle of a step, is often the first sign that another has gone
            self._patience = 1  # a lost one is looked for before that
            time.sleep(_PATIENCE / 2)
            raise
        finally:
            self._over.set()

    def wait(self) -> None:
        """Until all have ended: they may still be reading what this process sent them."""
        until = time.monotonic() + HEARTBEAT
        while any(alive and name for name, alive in map(_look, self._files)) and time.monotonic() < until:
            time.sleep(_PAUSE / 10)

    def _watch(self) -> None:
        gone: dict[Path, float] = {}
        while not self._over.wait(_PAUSE):
            for file in self._files:
                name, alive = _look(file)
                if alive:
                    self._names[file] = name or self._names[file]
                    gone.pop(file, None)
                elif name and (self.complete or self._names[file]):
                    self._end(f"{name} was lost")
                elif self._names[file]:
                    gone.setdefault(file, time.monotonic())
            for file, since in gone.items():  # after the lost ones, since these may have ended for that
                if time.monotonic() - since >= self._patience:
                    self._end(f"{self._names[file]} has ended before this one, and says why")

    def _end(self, what: str) -> None:
        if self._over.is_set():
            return
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which progress bars hide
        advice = "run the same commands again, and training goes on from its latest checkpoint."
        print(f"{cursor}jaxslim: {what}; {advice}", file=sys.stderr, flush=True)
        os.truncate(self._mine, 0)  # this process is not the lost one
        os._exit(1)


@contextlib.contextmanager
def _announced(folder: Path, index: int) -> Iterator[None]:
    """Show the other processes that this one is here; its file is empty when it has ended by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{FILE}{index}"
    until = time.monotonic() + _PATIENCE
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # one that looks has it for a moment
                if time.monotonic() > until:
                    owner = path.read_text() or "another process"
                    how = "wait for it, or choose another --workdir"
                    raise InputError(f"{folder} is in use by {owner}; {how}.") from None
                time.sleep(_PAUSE / 10)
        file.truncate(0)
        file.write(f"process {index} (pid {os.getpid()} on {platform.node()})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _look(path: Path) -> tuple[str, bool]:
    """What the process of `path` calls itself, nothing when it has ended by itself, and whether it is alive."""
    try:
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read(), True
            return file.read(), False
    except OSError:
        return "", False


def _relay(host: str, port: int) -> str:
    """An address here that stands for that one, and stays open when it is lost: JAX would abort this process."""
    listener = socket.create_server(("localhost", 0))

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection((host, port))
            except OSError:
                near.close()  # process 0 is not there yet; JAX tries again
                continue
            for ends in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"localhost:{listener.getsockname()[1]}"


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def largest(number: int) -> int:
    """The largest of the numbers that all processes give."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
