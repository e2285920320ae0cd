"""How every command runs: JAX's settings, and errors as one message with an exit code."""

import contextlib
import io
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxslim.errors import DivergedError, InputError, StoppedError, first_line
from jaxslim.files import cache_folder


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Call `main(arguments)`. Exit with 2 for unusable input, 1 for a run that diverged, 128 + number for a signal."""
    _keep_compiled_programs()
    _quieten_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be of the terminal's encoding
    try:
        with _interrupts():
            main(sys.argv[1:] if argv is None else argv)
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
        reason = first_line(error) if str(error) else "out of memory"
        advice = "lower the batch size or the image size, or the network's widths."
        _fail(f"the memory is too small ({reason}); {advice}", 2)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again. A training run goes on from its latest checkpoint.", 130)


def start_jax(options: Any = None) -> None:
    """Start JAX's devices or raise InputError, before anything could take their failure for one of its own.

    `options` may name a `checkpoint` and with `model` the code of its network, which is imported then.
    """
    import jax

    from jaxslim.ops import accelerate

    accelerate()
    try:
        jax.devices()
    except Exception as error:  # JAX's plugins raise many types, AssertionError among them
        asked = os.environ.get("JAX_PLATFORMS")
        backend = f"the backend {asked!r} that JAX_PLATFORMS asks for" if asked else "its devices"
        reason = f" ({first_line(error)})" if str(error) else ""
        fix = "unset JAX_PLATFORMS" if asked else "end the process that holds them, or set JAX_PLATFORMS=cpu"
        raise InputError(
            f"JAX cannot start {backend}{reason}; {fix}. A GPU needs a build for it: pip install 'jax[cuda]'."
        ) from error
    if getattr(options, "model", None) is not None:
        from jaxslim.training.own import register_for

        register_for(options.model, options.checkpoint)


def command_line(*words: object, **options: object) -> str:
    """A command of jaxslim, quoted for a shell; `finetune_epochs=10` becomes --finetune-epochs 10."""
    flags = (word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value))
    return shlex.join(map(str, ("jaxslim", *words, *flags)))


def _keep_compiled_programs() -> None:
    """Keep what JAX compiles in the user's cache folder; variables that the user has set win."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if jax := sys.modules.get("jax"):  # which has read its variables already
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        least = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def _quieten_libraries() -> None:
    """Show our own log, and of others' only what we do not report ourselves."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jaxslim").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # orbax logs the errors, with tracebacks, that it raises
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="orbax")
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _report_unraisable


def _report_unraisable(unraisable: Any) -> None:
    """Send Ctrl-C again that a callback of Python's or JAX's swallowed, and leave out what threads of orbax add to a
    write that failed and was reported."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    elif str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C even where a module that is being imported turns it into another error."""
    pressed = threading.Event()

    def interrupt(*_: Any) -> None:
        pressed.set()
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # the shell has a job in the background ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if pressed.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _fail(message: str, code: int) -> None:
    print(f"jaxslim: {message}", file=sys.stderr, flush=True)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:  # an ordinary exit would wait minutes for the other processes
        sys.stdout.flush()
        os._exit(code)
    raise SystemExit(code)


def folder_beside(run: Path, out: str | None, ending: str) -> Path:
    """The folder that a command writes to: `out`, or RUN-ENDING beside the run.

    Raises:
      InputError: a checkpoint or a training run lies there.
    """
    from jaxslim.experiments.cutting import check_place

    folder = Path(out).absolute() if out else run.with_name(f"{run.name}-{ending}")
    check_place(folder)
    if (folder / "config.json").exists() and (folder / "checkpoints").exists():
        raise InputError(f"{folder} holds a training run; choose another --out.")
    return folder
