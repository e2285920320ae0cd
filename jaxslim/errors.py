"""The errors that a command turns into a message and an exit code instead of a traceback."""


class InputError(ValueError):
    """The user gave something unusable. The message says the cause and the fix; commands exit with 2."""


class DivergedError(RuntimeError):
    """Training produced a loss that is not finite; commands exit with 1."""


class StoppedError(RuntimeError):
    """A signal asked a run to stop, and the run saves its state; commands exit with 128 + the signal's number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal
        self.saved = True
        """Whether the run could save its state."""


def quoted(value: object) -> str:
    """The `repr` of what the user gave, on one line and short enough for a message."""
    return " ".join(repr(value).split())[:60]


def first_line(error: BaseException) -> str:
    """The first line of another library's error, short enough for a message."""
    return [*str(error).strip().splitlines(), type(error).__name__][0][:200]
