"""Signals that ask a run to stop: preemption (SIGTERM) and Ctrl-C (SIGINT)."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jaxslim.errors import StoppedError


@contextlib.contextmanager
def stop_requests(agree: Callable[[int], int] = int) -> Iterator[Callable[[], None]]:
    """Within it, the first signal only raises a flag, and the function that it gives raises StoppedError then.

    So a run stops where its state is whole. A second signal acts at once, as without this. A signal that is ignored,
    as SIGINT is in the background of a shell's script, stays so; outside the main thread, where Python takes no
    signals, nothing changes.

    Args:
      agree: makes the number of the signal, 0 for none, what all processes of a run go by, so that they stop together.
    """
    asked: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        asked.append(number)
        restore()

    def check() -> None:
        if number := agree(asked[0] if asked else 0):
            raise StoppedError(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):  # None: not Python's to restore; a background job ignores Ctrl-C
                before[number] = handler
                signal.signal(number, note)
    try:
        yield check
    finally:
        restore()
