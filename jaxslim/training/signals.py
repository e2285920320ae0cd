"""Signals that ask a run to stop: SIGTERM (preemption) and SIGINT (Ctrl-C)."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jaxslim.errors import StoppedError


@contextlib.contextmanager
def stop_requests(agree: Callable[[int], int] = int) -> Iterator[Callable[[], None]]:
    """Inside the context the first SIGTERM or SIGINT only sets a flag; the yielded `check()` then raises StoppedError.

    So a run stops where its state is whole. A second signal acts at once, as it would without the context. An ignored
    signal stays ignored, for example SIGINT in the background of a shell script. Outside the main thread, where Python
    takes no signals, nothing changes. `agree` reduces each process's signal number (0 if none) to one that all act on.
    """
    requests: list[int] = []
    handlers: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def request(number: int, _: Any) -> None:
        requests.append(number)
        restore()

    def check() -> None:
        if number := agree(requests[0] if requests else 0):
            raise StoppedError(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):  # None: set outside Python, which could not restore it
                handlers[number] = handler
                signal.signal(number, request)
    try:
        yield check
    finally:
        restore()
