"""Networks of the user's own code, which `--model my_package.my_module:build` names.

Only a name that the user typed is imported. A name that stands in a checkpoint is not.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxslim.errors import InputError, first_line, quoted
from jaxslim.models import MODELS
from jaxslim.slim.kinds.adapted import Adapted
from jaxslim.storage.checkpoint import Loaded, find, read_meta
from jaxslim.storage.programs import Program

EXAMPLE = "my_package.my_module:build"


def is_own(model: str) -> bool:
    """Whether a model's name is that of code, and not of one of jaxslim's networks."""
    return ":" in model


def register(model: str, name: str | None = None) -> None:
    """Import what `model` names, and let configurations and checkpoints name its network so, or by another `name`.

    One of jaxslim's own networks needs no import.

    Raises:
      InputError: it cannot be imported, or is nothing that builds a network.
    """
    if not is_own(model):
        return
    build = _found(model)
    if not isinstance(build, type) and any(part.__name__ == "Module" for part in type(build).__mro__):
        raise InputError(f"{model} is a module already; name the class, or a function that builds it: {EXAMPLE}.")
    if not callable(build):
        raise InputError(f"{model} is {quoted(build)}, which cannot be called; name what builds a network: {EXAMPLE}.")

    def network(*, num_classes: int, dtype: Any, **arguments: Any) -> Adapted:
        described = {"model": name or model, "num_classes": num_classes, "arguments": arguments}
        takes = _parameters(build)
        given = {"num_classes": num_classes} | arguments if "num_classes" in takes else arguments

        def make(rngs: Any, dtype: Any) -> Any:
            drawn = {"rngs": rngs} if "rngs" in takes else {}
            return build(**given, **drawn, **({"dtype": dtype} if dtype is not None else {}))

        if "dtype" not in takes and dtype != jnp.float32:
            raise InputError(f"{model} takes no dtype, so its precision stays its own; leave --dtype out.")
        try:
            return Adapted(make, described, dtype if "dtype" in takes else None)
        except InputError as error:
            raise InputError(f"{model}: {error}") from None
        except TypeError:
            raise
        except Exception as error:  # whatever the user's code and Flax find wrong
            raise InputError(f"{model} fails with the model_args {arguments} ({first_line(error)}).") from error

    MODELS[name or model] = network


def register_for(model: str, path: str | Path) -> None:
    """Import what `model` names, the code of the network in the checkpoint `path`.

    Raises:
      InputError: as `register` does, or the checkpoint is of one of jaxslim's own networks.
    """
    name = _named(path)
    if not is_own(model):
        raise InputError(f"--model is {model!r}; it names the code of a network of your own, as {EXAMPLE}.")
    if name is None:
        raise InputError(f"{path} holds no network of your code, so there is none to import; leave --model out.")
    register(model, name)


def check_code(loaded: Loaded, path: str | Path) -> None:
    """Refuse a checkpoint that gave a program, for what a program cannot do: train, be cut, be traced."""
    if isinstance(loaded.module, Program):
        name = loaded.meta["module"].get("model")
        how = f"add --model {name}, or where that code is now" if name else "take jaxslim.load(path, module=...)"
        raise InputError(f"{path} holds a network of your own code, which no checkpoint brings along; {how}.")


def _named(path: str | Path) -> str | None:
    described = read_meta(find(path))["module"]
    name = described.get("model") if isinstance(described, dict) else None
    return name if isinstance(name, str) else None


def _found(model: str) -> Any:
    module, _, attribute = model.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise InputError(f"model is {model!r}; code is named as {EXAMPLE}, without slashes and .py.")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, *(module[: module.find(".", at)] for at in range(len(module)))):
            raise InputError(f"{module} imports {error.name}, which is not installed.") from error
        advice = f"start the command in the folder that holds {module.partition('.')[0]}, or put it on PYTHONPATH"
        raise InputError(f"There is no module {module}; {advice}.") from None
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{module} cannot be imported ({type(error).__name__}: {first_line(error)}).") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{module} has no {attribute}; name what builds a network: {EXAMPLE}.")
        found = getattr(found, part)
    return found


def _parameters(build: Callable[..., Any]) -> set[str]:
    """Names of what a builder takes by name."""
    called: Any = build
    if isinstance(build, type):  # whose metaclass, of NNX, hides the parameters
        called = build.__init__  # type: ignore[misc]
    parameters = inspect.signature(called).parameters.values()
    names = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    return names | {"num_classes" for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD}
