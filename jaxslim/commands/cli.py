"""What the commands share: reading arguments, and turning errors into one message and an exit code."""

import io
import logging
import os
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxslim.errors import DivergedError, InputError, StoppedError, first_line
from jaxslim.files import cache_folder
from jaxslim.training.config import TrainConfig


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Call `main(arguments)` and exit: 0, 2 for unusable input, 1 for a run that diverged or lost a process (see
    `processes`), 128 + a signal's number.

    What JAX compiles is kept in the user's cache folder (JAX's persistent compilation cache); variables that the user
    has set, such as JAX_COMPILATION_CACHE_DIR, win.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if jax := sys.modules.get("jax"):  # which has read its variables already
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        least = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jaxslim").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # orbax logs the errors, with tracebacks, that it raises
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _heard
    warnings.filterwarnings("ignore", module="orbax")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be of the terminal's encoding
    try:
        _interruptible(main, sys.argv[1:] if argv is None else argv)
    except InputError as error:
        _fail(str(error), 2)
    except DivergedError as error:
        _fail(str(error), 1)
    except StoppedError as error:
        name = signal.Signals(error.signal).name
        where = "where it was" if error.saved else "from its latest checkpoint"
        _fail(f"stopped by {name}; run the same command again, and training goes on {where}.", 128 + error.signal)
    except BrokenPipeError:  # the reader, head for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}. Check that the place exists, can be written and has room.", 2)
    except (MemoryError, RuntimeError) as error:  # JAX's own error is a RuntimeError; importing JAX takes a second
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("\n")[0] or "out of memory"
        _fail(f"the memory is too small ({reason}); lower the batch size, image_size or widths.", 2)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again, and training goes on from its latest checkpoint.", 130)


def _heard(unraisable: Any) -> None:
    """What orbax's storage adds, in threads of its own, to a write that failed and was reported, is left out."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _interruptible(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Call `main(argv)`; Ctrl-C stays a KeyboardInterrupt where a module that is being imported makes another error."""
    asked = []

    def note(number: int, _: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    mine = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if mine:
        signal.signal(signal.SIGINT, note)
    try:
        main(argv)
    except Exception as error:
        if asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)


def _fail(message: str, code: int) -> None:
    print(f"jaxslim: {message}", file=sys.stderr, flush=True)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:  # an ordinary exit would wait minutes for the other processes
        sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code)


def load_config(path: str) -> TrainConfig:
    """The `config` that a Python file defines.

    Raises:
      InputError: there is no such file, it does not run, or holds no TrainConfig called `config`.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise InputError(f"There is no config file {path}; give a Python file such as configs/cifar10_sparse.py.")
    try:
        names = runpy.run_path(str(file))  # an import would write, and later read, a copy of it as bytecode
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{path} does not run: {type(error).__name__}: {first_line(error)}. Correct it; "
            "`python -m jaxslim.train --help` lists the fields of a TrainConfig."
        ) from error
    config = names.get("config")
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path} defines no config; end it with `config = TrainConfig(...)`.")
    return config
