"""What an export writes, and how far what was written may be off."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxslim.errors import InputError
from jaxslim.slim.check import last_place

TOLERANCE = 1e-4
"""Largest difference of outputs, as a share of the largest."""
HALF_TOLERANCE = 2e-2
"""The same where the network computes in half precision."""


class Evaluation(NamedTuple):
    """A network in evaluation."""

    run: Callable[..., Any]
    """`run(variables, *inputs)` -> any pytree."""
    variables: Any
    inputs: Sequence[Any]
    """Pytrees of arrays or `ShapeDtypeStruct`s."""
    meta: Mapping[str, Any]
    """JSON values to keep along."""
    open_batch: bool
    """Whether the first axis of the inputs may have any size."""


class Exported(NamedTuple):
    """What an export wrote."""

    path: Path
    inputs: tuple[str, ...]
    """Type and shape of each input, for example `float32[batch,32,32,3]`."""
    difference: float | None
    """How far the outputs of the file are from the model's, as a share of the largest; None where nothing here runs
    the file."""
    size: int
    """Bytes on the disk, those of a file of weights included."""


def check_agreement(gap: float, evaluation: Evaluation, tolerance: float | None, runtime: str) -> None:
    """Refuse what differs from the model by more than the tolerance, or the default one."""
    run, variables, inputs, *_ = evaluation
    usual = TOLERANCE if last_place(run, variables, inputs) < TOLERANCE else HALF_TOLERANCE
    allowed = usual if tolerance is None else tolerance
    if not gap <= allowed:
        raise InputError(
            f"The outputs of {runtime} differ from the model's by {gap:.2g} of the largest, where {allowed:g} is "
            "allowed, and nothing is written; raise the tolerance if the network computes in half precision."
        )


def closed_batch(reason: object) -> InputError:
    """The error for a network that runs at one size of the batch alone."""
    return InputError(
        f"The network allows no open batch ({reason}); let its code use x.shape[0] and not len(x), or export for one "
        "size with open_batch=False (--batch 1)."
    )
