"""The two errors a command turns into a message and an exit code instead of a traceback."""


class InputError(ValueError):
    """The user gave something unusable. The message says the cause and the fix; commands exit with 2."""


class DivergedError(RuntimeError):
    """Training produced a loss that is not finite; commands exit with 1."""


def first_line(error: BaseException) -> str:
    """The first line of somebody else's error, short enough to stand in a message of ours."""
    return [*str(error).strip().splitlines(), type(error).__name__][0][:200]
