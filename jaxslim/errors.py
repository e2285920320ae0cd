"""The errors that a command turns into a message and an exit code instead of a traceback."""


class InputError(ValueError):
    """The user gave something unusable. The message says the cause and the fix; commands exit with 2."""


class DivergedError(RuntimeError):
    """Training produced a loss that is not finite; commands exit with 1."""


class StoppedError(RuntimeError):
    """A signal asked a run to stop, and it saves its state; commands exit with 128 + the signal's number."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal
        self.saved = True
        """Whether the state where it stopped could be saved."""


def quoted(value: object) -> str:
    """What the user gave, short enough and on one line, to stand in a message; arrays have many."""
    return " ".join(repr(value).split())[:60]


def first_line(error: BaseException) -> str:
    """The first line of somebody else's error, short enough to stand in a message of ours."""
    return [*str(error).strip().splitlines(), type(error).__name__][0][:200]
