"""From numbers for the elements of parameters to one number a unit."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.groups import going_along, groups
from jaxslim.core.paths import leaf_paths
from jaxslim.errors import InputError

Reduce = Literal["sum", "mean", "max"]
Normalize = Literal["mean", "max", "sum", "size"]


class Part(NamedTuple):
    """An axis of a trained parameter: each index is one slice of a unit."""

    units: np.ndarray
    """int (n,): unit of each index."""
    values: np.ndarray
    """float (n, elements): what the slice of each index holds."""


def parts(graph: ChannelGraph, tree: Any) -> Iterator[Part]:
    """The slices of all units in a tree with arrays at paths of traced leaves; what no training adjusts is left out."""
    for path, leaf in leaf_paths(tree):
        number = graph.find(path)
        trained = number is not None and (not graph.trained or graph.trained[number])
        if number is None or not trained or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        values = np.asarray(leaf)
        values = values.astype(np.promote_types(values.dtype, np.float64))
        for axis, units in enumerate(graph.units[number]):
            if units.any():
                yield Part(units, np.moveaxis(values, axis, 0).reshape(len(units), -1))


def reduced(
    graph: ChannelGraph, found: Iterator[tuple[np.ndarray, np.ndarray]], how: Reduce, *, along: bool = True
) -> np.ndarray:
    """One number a unit, (num_units + 1,), of numbers for its slices.

    Args:
      graph: of the network.
      found: units (n,), and a number for the slice of each.
      how: what is made of the numbers of a unit.
      along: whether the slices of units that go along count too.
    """
    size = graph.num_units + 1
    if how not in ("sum", "mean", "max"):
        raise InputError(f"reduce is {how!r}; it must be sum, mean or max.")
    if how == "max":
        most = np.zeros(size)
        for units, values in found:
            np.maximum.at(most, units, values)
        most[0], (below, above) = 0, graph.below
        news = along
        while news:
            before = most.copy()
            np.maximum.at(most, above, before[below])
            news = bool((most != before).any())
        return most
    sums = np.zeros((size, 2))
    for units, values in found:
        np.add.at(sums, units, np.stack([values, np.ones(len(units))], axis=1))
    sums[0] = 0
    total, slices = (going_along(graph) @ sums if along else sums).T
    return total if how == "sum" else total / np.maximum(slices, 1)


def normalized(graph: ChannelGraph, scores: np.ndarray, how: Normalize | None) -> np.ndarray:
    """Scores divided by the mean, largest or sum of the scores of their layer (see `jaxslim.core.groups`).

    Nothing is left to do for `size`, which is taken into account before.
    """
    if how in (None, "size"):
        return scores
    group = np.where(graph.choosable, groups(graph), 0)
    most, total, number = np.zeros((3, group.max() + 1))
    np.maximum.at(most, group, scores)
    np.add.at(total, group, scores)
    np.add.at(number, group, 1)
    divisors = {"mean": total / np.maximum(number, 1), "max": most, "sum": total}
    if how not in divisors:
        raise InputError(f"normalize is {how!r}; it must be mean, max, sum or size.")
    divisor = divisors[how][group]
    return np.where(divisor > 0, scores / np.where(divisor > 0, divisor, 1), 0.0)
