"""The kinds of models that `prune` takes, one file a framework. A framework is imported only for a model of its own."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxslim.errors import InputError, quoted
from jaxslim.slim.kinds.network import Mode, Network, Plain

__all__ = ["Mode", "Network", "Plain", "beside", "network"]

KINDS = (
    "a Flax Linen or NNX module, an Equinox module, a Keras model on the JAX backend, the functions that Haiku's "
    "transform returns, or a function apply(variables, *inputs)"
)


def network(
    model: Any,
    variables: Any,
    inputs: Sequence[Any],
    call: Mapping[str, Any] | None = None,
    modes: Sequence[Mode] | None = None,
) -> Network:
    """Describe a model of any kind by its functions.

    Args:
      model: one of `KINDS`.
      variables: as the kind takes them; None where the model holds them itself.
      inputs: what the model is called with.
      call: keyword arguments of the model's call.
      modes: how the model is called in place of the kind's own ways; see `prune`.

    Raises:
      InputError: the model is of no kind, or the variables are not as its kind takes them.
    """
    if isinstance(model, type):
        raise InputError(f"{model.__name__} is a class; pass a model, for example {model.__name__}().")
    if _is_a(model, "flax.linen", "Module") or _is_ours(model, "linen") or _is_ours(model, "adapted", "Adapted"):
        kind = "linen"
    elif _is_a(model, "flax.nnx", "Module"):
        kind = "nnx"
    elif _is_a(model, "keras", "Layer") or _is_ours(model, "keras"):
        kind = "keras"
    elif _is_a(model, "haiku", "Transformed") or _is_a(model, "haiku", "TransformedWithState"):
        kind = "haiku"
    elif _is_a(model, "equinox", "Module") and (variables is None or _is_a(variables, "equinox.nn", "State")):
        kind = "equinox"
    elif callable(model) and variables is not None:
        kind = "functions"
    elif callable(model):
        raise InputError(
            f"The variables of {quoted(model)} are missing. A model is {KINDS}; pass what it is called on."
        )
    else:
        raise InputError(f"{quoted(model)} is no model; pass {KINDS}.")
    module = importlib.import_module(f"{__name__}.{kind}")  # only the framework of the model is needed
    described: Network = module.network(model, variables, inputs, dict(call or {}), modes)
    return described


def beside(variables: Any) -> Any:
    """What `network` takes of the variables of a `Pruned`: those that its module does not hold itself."""
    if _is_a(variables, "flax.nnx", "State"):
        return None
    return variables.state if _is_a(variables, f"{__name__}.equinox", "Variables") else variables


def _is_a(model: Any, package: str, name: str) -> bool:
    """Whether a model is an instance of a framework's class; a framework that nobody imported has no models."""
    kind = getattr(sys.modules.get(package), name, None)
    return kind is not None and isinstance(model, kind)


def _is_ours(model: Any, file: str, name: str = "Narrow") -> bool:
    """Whether a model is an instance of a class in `file`, such as what an earlier cut returned in its place."""
    return _is_a(model, f"{__name__}.{file}", name)
