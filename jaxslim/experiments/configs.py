"""The configurations that come with jaxslim, and Python files that hold one."""

import ast
import difflib
import runpy
from pathlib import Path

import jaxslim
from jaxslim.errors import InputError, first_line
from jaxslim.training.config import TrainConfig


def packaged() -> dict[str, Path]:
    """The files of the configurations that come with jaxslim, by name, for example cifar10-sparse."""
    package = Path(jaxslim.__file__).parent
    folder = package / "configs"
    if not folder.is_dir():  # a checkout keeps them beside the package
        folder = package.with_name("configs")
    return {file.stem.replace("_", "-"): file for file in sorted(folder.glob("*.py"))}


def summaries() -> dict[str, str]:
    """The first line of what each packaged configuration says of itself, by name."""
    docstrings = {name: ast.get_docstring(ast.parse(file.read_text())) or "" for name, file in packaged().items()}
    return {name: docstring.partition("\n")[0] for name, docstring in docstrings.items()}


def load_config(name: str) -> TrainConfig:
    """The `config` of a packaged configuration, for example cifar10-sparse, or of a Python file; InputError without."""
    file = packaged().get(name.replace("_", "-"), Path(name))
    if not file.is_file() or file.suffix != ".py":
        near = difflib.get_close_matches(file.stem.replace("_", "-"), packaged(), 1)
        meant = f"did you mean {near[0]}?" if near else "give a Python file, or the name of a packaged config."
        raise InputError(f"There is no config {name}; {meant} `jaxslim train --list` shows the packaged ones.")
    try:
        names = runpy.run_path(str(file))  # an import would write, and later read, a copy of it as bytecode
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{name} does not run: {type(error).__name__}: {first_line(error)}. Correct it; "
            "`jaxslim train --help` lists the fields of a TrainConfig."
        ) from error
    config = names.get("config")
    if not isinstance(config, TrainConfig):
        raise InputError(f"{name} defines no config; end it with `config = TrainConfig(...)`.")
    return config
