"""The layers of a network as a plan sees them: their names, their units and scores."""

import difflib
import fnmatch
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.groups import groups
from jaxslim.core.paths import Path, leaf_paths
from jaxslim.errors import InputError


class ScoredLayer(NamedTuple):
    """An axis of a parameter, and the units of its indices."""

    name: str
    path: Path
    """Of the parameter."""
    units: np.ndarray
    """int (channels,)"""
    is_grid: bool = False
    """Whether these are the rows or the columns of the elements on the axis."""

    def matches(self, pattern: str) -> bool:
        """Whether a pattern, with *, ? and [...], fits the layer's name or the path of its parameter."""
        suffix = self.name[self.name.index(":") :] if self.is_grid else ""
        paths = ("/".join(part) for part in (self.path, self.path[1:], self.path[:-1]))
        names = [self.name, *(path + suffix for path in paths)]
        return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def scored_layers(graph: ChannelGraph, scores: Any) -> tuple[list[ScoredLayer], np.ndarray]:
    """The layers that have scores, in network order, and the score of each unit, -inf for those without one.

    Raises:
      InputError: the scores fit no parameter or hold NaN.
    """
    if hasattr(scores, "shape"):
        layers, score = all_layers(graph), _unit_scores(graph, np.asarray(scores, np.float64))
    else:
        layers, score = _tree_scores(graph, scores)
    below, above = graph.below
    cells = ~graph.choosable[below]
    while True:  # what an element of a grid is worth, its row and its column are worth
        before = score.copy()
        np.maximum.at(score, above[cells], before[below[cells]])
        if (score == before).all():
            return _with_grids(graph, layers), score


def matching(layers: Sequence[ScoredLayer], patterns: Collection[str]) -> list[ScoredLayer]:
    """The layers that any of the patterns fits.

    Raises:
      InputError: a pattern fits none; the message has the nearest names.
    """
    for pattern in patterns:
        if not any(layer.matches(pattern) for layer in layers):
            names = [layer.name for layer in layers]
            near = difflib.get_close_matches(pattern, names, 4, 0.3) or names[:4]
            known = f"the layers are {', '.join(names)}" if len(names) <= 4 else f"the nearest are {', '.join(near)}"
            raise InputError(f"There is no layer {pattern}; {known}.")
    return [layer for layer in layers if any(layer.matches(pattern) for pattern in patterns)]


def _with_grids(graph: ChannelGraph, layers: list[ScoredLayer]) -> list[ScoredLayer]:
    """Behind each layer of elements of a grid, its rows and columns, such as `attention/query:4x-` for four heads."""
    below, above = graph.below
    cells = ~graph.choosable[below]
    if not cells.any():
        return layers
    group, found, seen = groups(graph), [], set()
    order = np.argsort(below[cells], kind="stable")
    cell, factor = below[cells][order], above[cells][order]

    def add(layer: ScoredLayer) -> None:
        found.append(layer)
        start, end = np.searchsorted(cell, layer.units[0]), np.searchsorted(cell, layer.units[0], "right")
        numbers = sorted(group[factor[start:end]].tolist(), key=lambda number: -graph.places[group == number][0])
        members = [np.flatnonzero(group == number) for number in numbers]
        for at, (number, units) in enumerate(zip(numbers, members, strict=True)):
            if number not in seen:
                seen.add(number)
                shape = "x".join(str(len(units)) if k == at else "-" for k in range(len(numbers)))
                add(ScoredLayer(f"{layer.name}:{shape}", layer.path, units, is_grid=True))

    for layer in layers:
        add(layer)
    return found


def _unit_scores(graph: ChannelGraph, scores: np.ndarray) -> np.ndarray:
    if scores.shape != (graph.num_units + 1,):
        shape = f"The scores have shape {scores.shape} and the graph has {graph.num_units} units"
        raise InputError(f"{shape}; give (num_units + 1,) numbers, of which the first is ignored.")
    if np.isnan(scores[1:]).any():
        layers = _with_grids(graph, all_layers(graph))
        bad = [layer.name for layer in layers if np.isnan(scores[layer.units]).any()] or ["a unit"]
        raise InputError(f"The scores of {bad[0]} hold NaN; the network has diverged, take an earlier checkpoint.")
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
    """Every axis of a parameter with units that can be cut, of axes with the same units the first that is trained."""
    found: dict[bytes, tuple[int, int]] = {}
    untrained = [not trained for trained in graph.trained or [True] * len(graph.units)]
    for number in np.argsort(untrained, kind="stable").tolist():
        axes = graph.units[number]
        for axis in reversed(range(len(axes))):
            if (axes[axis] > 0).any():
                found.setdefault(axes[axis].tobytes(), (number, axis))
    return _named(graph, sorted(found.values()))


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
