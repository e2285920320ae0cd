"""State dicts of PyTorch as NumPy arrays by name. Nothing in a file is ever run."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxslim.errors import InputError, first_line

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts put the state dict beside other things."""
PREFIXES = re.compile(r"^((module|_orig_mod)\.)+")
"""What DataParallel and torch.compile put in front of every name."""
ADVICE = "save torch.save(model.state_dict(), FILE), and give that file"


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors` file, or of a file that `torch.save` wrote, which needs PyTorch.

    Raises:
      InputError: there is no such file, it holds no state dict, it would run code, or a package is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path.")
    return arrays(_safetensors(path) if path.suffix == ".safetensors" else _pickled(path), path)


def arrays(found: Any, where: Any) -> dict[str, np.ndarray]:
    """The arrays of a state dict, or of a dict that holds one, by their names in the bare network.

    Counters of batches are left out. Floats have 32 bits.

    Raises:
      InputError: it is no state dict; the message calls it `where`.
    """
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{where} holds a {type(found).__name__} and no state dict; {ADVICE}.")
    named = {str(name): value for name, value in found.items() if not str(name).endswith("num_batches_tracked")}
    if wrong := [name for name, value in named.items() if not hasattr(value, "shape")]:
        kind = type(named[wrong[0]]).__name__
        raise InputError(f"{where} holds a {kind} as {wrong[0]:.60}, and a state dict holds arrays only; {ADVICE}.")
    return {PREFIXES.sub("", name): _array(name, value, where) for name, value in named.items()}


def _array(name: str, value: Any, where: Any) -> np.ndarray:
    try:
        value = value.detach().cpu().float().numpy() if hasattr(value, "detach") else value
        return np.asarray(value, np.float32)
    except Exception as error:  # a tensor of PyTorch that is no plain array, such as a quantised one
        raise InputError(
            f"{where} holds {name}, which is no array of numbers ({first_line(error)}); {ADVICE}."
        ) from None


def _safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load
    except ImportError:
        raise InputError(f"Reading {path} needs the package safetensors: pip install safetensors.") from None
    content = path.read_bytes()
    try:
        return load(content)
    except KeyError as error:
        raise InputError(f"{path} holds numbers of type {error}, which NumPy lacks; store them as float32.") from None
    except (SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no safetensors file ({first_line(error)}); write it anew.") from None


def _pickled(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        fix = "pip install torch, or convert it to .safetensors where PyTorch is installed"
        raise InputError(f"Reading {path} needs PyTorch; {fix}.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that other programs wrote, which are refused anyway
            with torch.serialization.safe_globals(_numbers()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of many types: pickle's, and those of damaged archives
        if not isinstance(error, pickle.UnpicklingError):
            problem = f"is no whole file of PyTorch ({first_line(error):.60})"
        elif asked := re.search(r"GLOBAL (\S+)", str(error)):
            problem = f"holds {asked[1]:.80}, not only arrays, and loading it could run code"
        else:
            problem = "is no file of PyTorch that holds arrays only"
        raise InputError(f"{path} {problem}; {ADVICE}.") from None


def _numbers() -> list[Any]:
    """What numbers of NumPy are in a pickle, such as an accuracy beside the state dict: they run no code."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64")]
    return [np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *kinds]
