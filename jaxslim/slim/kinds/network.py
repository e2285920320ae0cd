"""A model of any framework as functions of one pytree of variables: what tracing, cutting and checking work on."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.plan import Plan

Mode = Callable[..., Any]
"""`mode(variables, *inputs)` -> outputs."""


class Plain(NamedTuple):
    """A model of the small widths, built by the model's own `resized`."""

    model: Any
    run: Mode
    """Its evaluation."""


EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "inference": True,
    "use_running_average": True,
}
"""Parameters that choose between training and evaluation, by name, with their value in evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A model, its variables, and how to build the cut one."""

    variables: Any
    """One pytree with all arrays of the model."""
    modes: tuple[Mode, ...]
    """Evaluation first, then training where the kind tells how. Training may return new statistics beside its outputs,
    at their paths in the variables."""
    narrowed: Callable[[ChannelGraph, Plan, Any], Any]
    """`narrowed(graph, plan, small)` -> the cut model over the cut variables `small`."""
    trained: Callable[[Any], Any]
    """The part of (full or cut) variables that training adjusts, at the same paths."""
    rebuilt: Callable[[Any], Plain | None] = lambda small: None
    """`rebuilt(small)` -> the plain model for the cut variables; None if `resized` is missing or does not fit."""
    held: Callable[[Any], Any] = lambda model: None
    """`held(model)` -> what a model, full or cut, holds of the variables, at the same paths; None of all else."""
    holding: Callable[[Any], Any] = lambda variables: None
    """`holding(variables)` -> the full model over these variables; None where a model does not hold them."""
    batched: bool = True
    """Whether the first axis of each input counts examples."""


def switches(call: Callable[..., Any] | None, inputs: Sequence[Any], given: Mapping[str, Any]) -> dict[str, bool]:
    """The further keyword arguments that put `call(*inputs, **given)` into evaluation."""
    parameters = list(inspect.signature(call).parameters.values()) if call else []
    places = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    decided = {*places[: len(inputs)], *given}
    names = [parameter.name for parameter in parameters if parameter.name not in decided]
    return {name: EVALUATION[name] for name in names if name in EVALUATION}


def opposite(flags: Mapping[str, bool]) -> dict[str, bool]:
    """The same switches, for training."""
    return {name: not value for name, value in flags.items()}


def params(variables: Any) -> Any:
    """The collection `params` of variables that have one, else all of them."""
    return {"params": variables["params"]} if isinstance(variables, Mapping) and "params" in variables else variables
