"""Criteria that look at activations."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.groups import going_along
from jaxslim.core.observe import observed
from jaxslim.errors import InputError


def activation(
    graph: ChannelGraph,
    apply: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    measure: Literal["mean", "nonzero"] = "mean",
) -> np.ndarray:
    """How much the layers behind read of a unit: the mean of |a|, or the share of a that is not zero.

    Here a are the elements of the unit in all activations that a convolution or matrix product reads. The traced
    program gives them, so the network needs no hooks. The share of zeros of Hu et al. (2016, section 3.1) is 1 minus
    `nonzero`.

    Args:
      graph: of the network.
      apply: `apply(variables, *inputs)`, as it was traced.
      variables: the traced variables.
      batches: inputs, one after the other: an array, or a tuple of all inputs.
      measure: `mean` or `nonzero`.

    Returns:
      (num_units + 1,) scores; -inf for units of which no convolution or product reads anything.

    Raises:
      InputError: there are no batches, or `apply` does not run with them.
    """
    if measure not in ("mean", "nonzero"):
        raise InputError(f"measure is {measure!r}; it must be mean or nonzero.")
    total = np.zeros((3, graph.num_units + 1))
    compiled: dict[Any, Callable[..., Any]] = {}
    for batch in batches:
        inputs = batch if isinstance(batch, tuple) else (batch,)
        key = (jax.tree.structure(inputs), *((np.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(inputs)))
        if key not in compiled:
            compiled[key] = jax.jit(observed(apply, graph, variables, *inputs))
        total += np.stack([np.asarray(part, np.float64) for part in compiled[key](variables, *inputs)])
    if not compiled:
        raise InputError("There are no batches; give some inputs, for example [images].")
    total[:, 0] = 0
    absolute, nonzero, number = (going_along(graph) @ total.T).T
    read = absolute if measure == "mean" else nonzero
    scores = np.where(number > 0, read / np.maximum(number, 1), -np.inf)
    scores[0] = 0
    return scores
