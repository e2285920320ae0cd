"""The layers of a network as a plan sees them: their names, their units and scores."""

import fnmatch
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.paths import Path, leaf_paths
from jaxslim.errors import InputError


class ScoredLayer(NamedTuple):
    """An axis of a parameter, and the units of its indices."""

    name: str
    path: Path
    """Of the parameter."""
    units: np.ndarray
    """int (channels,)"""

    def matches(self, patterns: Collection[str]) -> bool:
        names = (self.name, "/".join(self.path), "/".join(self.path[1:]), "/".join(self.path[:-1]))
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


def scored_layers(
    graph: ChannelGraph, scores: Any, leave: Collection[str] = ()
) -> tuple[list[ScoredLayer], np.ndarray]:
    """The layers that have scores, in network order, and the score of each unit, -inf for those without one.

    Raises:
      InputError: the scores fit no parameter or hold NaN, or a pattern of `leave` fits no layer.
    """
    if hasattr(scores, "shape"):
        layers, score = all_layers(graph), _unit_scores(graph, np.asarray(scores, np.float64))
    else:
        layers, score = _tree_scores(graph, scores)
    for pattern in leave:
        if not any(layer.matches([pattern]) for layer in layers):
            names = ", ".join(layer.name for layer in layers)
            raise InputError(f"There is no layer {pattern} to leave alone; the layers are {names}.")
    below, above = graph.below
    cells = ~graph.choosable[below]
    while True:  # what an element of a grid is worth, its row and its column are worth
        before = score.copy()
        np.maximum.at(score, above[cells], before[below[cells]])
        if (score == before).all():
            return layers, score


def _unit_scores(graph: ChannelGraph, scores: np.ndarray) -> np.ndarray:
    if scores.shape != (graph.num_units + 1,):
        shape = f"The scores have shape {scores.shape} and the graph has {graph.num_units} units"
        raise InputError(f"{shape}; give (num_units + 1,) numbers, of which the first is ignored.")
    if np.isnan(scores[1:]).any():
        raise InputError("The scores hold NaN; the network has diverged, take an earlier checkpoint.")
    return np.where(graph.choosable, scores, -math.inf)


def _tree_scores(graph: ChannelGraph, scores: Any) -> tuple[list[ScoredLayer], np.ndarray]:
    found = []
    score = np.full(graph.num_units + 1, -math.inf)
    for path, value in leaf_paths(scores):
        number, name = graph.find(path), "/".join(path)
        if number is None:
            raise InputError(f"The scores hold {name}, which is no parameter of the traced network.")
        shape, values = graph.shapes[number], np.asarray(value, np.float64)
        axis = channel_axis(shape)
        if axis is None or values.shape not in (shape, shape[axis : axis + 1]):
            raise InputError(f"The scores {name} have shape {values.shape}; the parameter has shape {shape}.")
        if np.isnan(values).any():
            raise InputError(f"The scores {name} hold NaN; the network has diverged, take an earlier checkpoint.")
        if values.shape == shape:
            values = np.moveaxis(values, axis, -1).reshape(-1, shape[axis]).max(0)
        np.maximum.at(score, graph.units[number][axis], values)
        found.append((number, axis))
    if not found:
        raise InputError("There are no scores; nothing says which channels matter.")
    score[0] = -math.inf
    return _named(graph, sorted(found)), score


def channel_axis(shape: Sequence[int]) -> int | None:
    """The axis that a vector lies along, whatever axes of length 1 it has beside; the last axis of all else."""
    long = [axis for axis, n in enumerate(shape) if n > 1]
    return long[0] if len(long) == 1 else len(shape) - 1 if shape else None


def all_layers(graph: ChannelGraph) -> list[ScoredLayer]:
    """Every axis of a parameter with units that can be cut, of axes with the same units the first."""
    found, seen = [], set()
    for number, axes in enumerate(graph.units):
        for axis in reversed(range(len(axes))):
            key = axes[axis].tobytes()
            if key not in seen and (axes[axis] > 0).any():
                seen.add(key)
                found.append((number, axis))
    return _named(graph, found)


def _named(graph: ChannelGraph, found: list[tuple[int, int]]) -> list[ScoredLayer]:
    """Layers with short, distinct names: their paths without the collection in front and the parameter's own name."""
    names = [graph.paths[number] for number, _ in found]
    ends = 2 if len({path[-1:] for path in graph.paths}) == 1 < len(graph.paths) else 1  # NNX: .../scale/value
    shorter = [name[:-ends] for name in names]
    if all(shorter) and len(set(shorter)) == len(set(names)):
        names = shorter
    if (
        names
        and len({name[0] for name in names}) == 1
        and min(map(len, names)) > 1
        and _is_collection(graph, names[0][0])
    ):
        names = [name[1:] for name in names]
    texts = ["/".join(name) for name in names]
    return [
        ScoredLayer(
            text if texts.count(text) == 1 else f"{text}[{axis}]", graph.paths[number], graph.units[number][axis]
        )
        for text, (number, axis) in zip(texts, found, strict=True)
    ]


def _is_collection(graph: ChannelGraph, top: str) -> bool:
    """Whether a first part of paths is the only one, or stands beside another with the same layers below."""
    layers = {path[1:-1] for path in graph.paths if path[0] == top}
    others = [path[1:-1] for path in graph.paths if path[0] != top]
    return not others or any(layer in layers for layer in others)
