"""The two errors a command turns into a message and an exit code instead of a traceback."""


class InputError(ValueError):
    """The user gave something unusable. The message says the cause and the fix; commands exit with 2."""


class DivergedError(RuntimeError):
    """Training produced a loss that is not finite; commands exit with 1."""
