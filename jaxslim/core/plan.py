"""Which channels go: scores of all layers, one threshold, and what every layer has to keep."""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.layers import ScoredLayer, all_layers, scored_layers
from jaxslim.core.printing import columns
from jaxslim.errors import InputError


class Layer(NamedTuple):
    """What a plan does to one scored layer."""

    name: str
    before: int
    """Channels."""
    after: int
    """Channels that survive."""
    protected: bool
    """Whether channels stay only because the layer had to keep some."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan:
    """Which units survive."""

    keep: np.ndarray
    """bool (num_units + 1,), indexed by unit; unit 0, everything fixed, is true."""
    requested: float | None = None
    """Share of the prunable units that was to go; None where a threshold decided."""
    achieved: float = 0.0
    """Share of the prunable units that goes."""
    layers: tuple[Layer, ...] = ()
    """The scored layers in network order."""

    @property
    def protected(self) -> tuple[str, ...]:
        """Names of the layers that kept channels only because they had to keep some."""
        return tuple(layer.name for layer in self.layers if layer.protected)

    def __repr__(self) -> str:
        stay, units = np.count_nonzero(self.keep[1:]), len(self.keep) - 1
        requested = "" if self.requested is None else f", {self.requested:.2%} requested"
        return f"Plan({stay} of {units} units stay; {self.achieved:.2%} of the scored units are cut{requested})"

    def __str__(self) -> str:
        rows = [(name, f"{old} -> {new}", "protected" if saved else "") for name, old, new, saved in self.layers]
        return f"{self!r}\n" + columns(("layer", "channels", ""), rows)


def plan(
    graph: ChannelGraph,
    scores: Any,
    ratio: float | None,
    min_channels: int = 1,
    *,
    threshold: float | None = None,
    max_layer_ratio: float = 1.0,
    multiple_of: int = 1,
    leave: Collection[str] = (),
) -> Plan:
    """Choose the units to cut by one threshold over the scores of all layers (Liu et al., ICCV 2017, section 3).

    Only scored units are prunable. A unit with several scores, for example through a residual connection, has the
    largest of them. The lowest int(units * ratio) go; among equal scores, earlier channels go first. Units below these
    go too, and count.

    Args:
      graph: of the network.
      scores: pytree of arrays, each at the path of a parameter: one number for each index of that parameter's last
        axis, or of the axis a vector lies along (or for each element, of which the largest counts). `bn_scales` makes
        it. Or an array (num_units + 1,), one number for each unit; entry 0 is ignored.
      ratio: share of the prunable units to cut, in [0, 1); None with `threshold`.
      min_channels: each layer keeps at least its best `min_channels`; others go in their place.
      threshold: cut every unit with a score up to this, however many they are. The PyTorch reference takes
        `sorted(scores)[int(units * ratio)]`, which cuts one unit more than `ratio` does, and all ties.
      max_layer_ratio: largest share of a layer that may go; the paper's multi-pass scheme takes 0.5 (section 4.6).
      multiple_of: restore the best cut channels of each layer until it keeps a multiple of this (or everything).
      leave: names of layers that lose nothing, or patterns such as `encoder/*`; full paths of parameters fit too.

    Returns:
      The `Plan`.

    Raises:
      InputError: arguments out of range, scores that fit no parameter or hold NaN, a pattern in `leave` that fits no
        layer, a ratio that cannot be met (the message names the largest that can), or nothing that can be cut.
    """
    _check_ranges(ratio, threshold, min_channels, max_layer_ratio, multiple_of)
    layers, score = scored_layers(graph, scores, leave)
    prunable = np.flatnonzero(graph.choosable & (score > -math.inf))
    if not len(prunable) and (ratio or threshold):
        raise InputError(f"Nothing can be cut: {why_nothing(graph)}.")
    worst_first = prunable[np.argsort(score[prunable], kind="stable")]
    own_rank = np.full(len(score), math.inf)
    own_rank[worst_first] = np.arange(len(worst_first))
    rank = _going(graph, own_rank)

    left = {layer.name for layer in layers if layer.matches(leave)}
    safe = _safe(graph, layers, rank, min_channels, max_layer_ratio, left)
    can_go = worst_first[~safe[worst_first]]
    if ratio is None:
        wanted = worst_first[score[worst_first] <= threshold]
        gone = wanted[~safe[wanted]]
    else:
        wanted = worst_first[: math.floor(len(worst_first) * ratio + 1e-9)]

        def count(n: int) -> int:
            return int(np.count_nonzero(~_alive(graph, can_go[:n])[prunable]))

        if (most := count(len(can_go))) < len(wanted):
            share = f", max_layer_ratio={max_layer_ratio}" if max_layer_ratio < 1 else ""
            largest = math.floor(most / len(worst_first) * 1e4) / 1e4
            raise InputError(
                f"A ratio of {ratio} cannot be met: with min_channels={min_channels}{share} and the layers left alone, "
                f"{most} of {len(worst_first)} channels can go; the largest ratio is {largest}."
            )
        gone = can_go[: _fewest(count, len(wanted), len(can_go))]

    keep = _round_up(graph, _alive(graph, gone), layers, rank, multiple_of)
    saved = np.zeros(len(keep), bool)
    saved[wanted[safe[wanted]]] = True
    saved = ~graph.survivors(~saved) & safe
    outcome = (
        Layer(layer.name, len(layer.units), int(keep[layer.units].sum()),
              layer.name not in left and bool(saved[layer.units].any()))
        for layer in layers
    )  # fmt: skip
    achieved = np.count_nonzero(~keep[prunable]) / max(len(prunable), 1)
    return Plan(keep=keep, requested=ratio, achieved=achieved, layers=tuple(outcome))


def why_nothing(graph: ChannelGraph) -> str:
    """What stops the channels of a network in which none can go."""
    stops = [*(s for s in graph.stops if not s.expected), *(s for s in graph.stops if s.expected)]
    shown = "; ".join(map(str, stops[:3])) or "the network has no parameters with axes"
    return f"{graph.num_units} units, and what is scored stays ({shown})"


def _alive(graph: ChannelGraph, gone: np.ndarray) -> np.ndarray:
    keep = np.ones(graph.num_units + 1, bool)
    keep[gone] = False
    return graph.survivors(keep)


def _fewest(count: Callable[[int], int], wanted: int, most: int) -> int:
    """The smallest n with `count(n)` of at least `wanted`, if `count` does not fall."""
    low, high = 0, min(wanted, most)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= wanted else (middle + 1, high)
    return low


def _check_ranges(
    ratio: float | None, threshold: float | None, min_channels: int, max_layer_ratio: float, multiple_of: int
) -> None:
    if (ratio is None) == (threshold is None):
        raise InputError("Give either a ratio or a threshold, for example a ratio of 0.7.")
    for name, value, fits, advice in (
        ("The ratio", ratio, 0 <= (ratio or 0) < 1, "lie in [0, 1): 0.7 cuts 70 % of the channels"),
        ("The threshold", threshold, (threshold or 0) >= 0, "be a number of at least 0, for example 0.01"),
        ("max_layer_ratio", max_layer_ratio, 0 < max_layer_ratio <= 1, "be a share in (0, 1], for example 0.5"),
        ("min_channels", min_channels, min_channels >= 1, "be at least 1"),
        ("multiple_of", multiple_of, multiple_of >= 1, "be at least 1"),
    ):
        if not fits:
            raise InputError(f"{name} is {value}; it must {advice}.")


def _going(graph: ChannelGraph, own_rank: np.ndarray) -> np.ndarray:
    """When each unit goes: by itself, with a unit above, or as a stream with the last unit below."""
    below, above = graph.below
    rank = own_rank
    while True:
        before, rank = rank, rank.copy()
        np.minimum.at(rank, below, before[above])
        last = np.full(len(rank), -math.inf)
        np.maximum.at(last, above, rank[below])
        rank = np.where(graph.closed, np.minimum(rank, last), rank)
        rank[0] = math.inf
        if (rank == before).all():
            return rank


def _safe(
    graph: ChannelGraph,
    layers: list[ScoredLayer],
    rank: np.ndarray,
    min_channels: int,
    max_layer_ratio: float,
    left: Collection[str],
) -> np.ndarray:
    """bool (num_units + 1,): units that stay, since each layer keeps its best and the layers `left` keep all."""
    safe = np.zeros(len(rank), bool)
    safe[0] = True
    for layer in layers:
        units = layer.units
        least = max(min_channels, len(units) - math.floor(len(units) * max_layer_ratio + 1e-9))
        safe[units if layer.name in left else _best_first(units, rank)[:least]] = True
    for layer in all_layers(graph):  # no axis loses everything
        if not safe[layer.units].any():
            safe[_best_first(layer.units, rank)[:1]] = True
    return _with_support(graph, safe, rank)


def _with_support(graph: ChannelGraph, stay: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """`stay` with what has to stay beside: units above, and for a stream the best unit below."""
    below, above = graph.below
    while True:
        before, stay = stay, stay.copy()
        stay[above[before[below]]] = True
        alone = stay & graph.closed
        alone[above[stay[below]]] = False
        for unit in np.flatnonzero(alone):
            stay[_best_first(below[above == unit], rank)[:1]] = True
        if (stay == before).all():
            return stay


def _round_up(
    graph: ChannelGraph, keep: np.ndarray, layers: list[ScoredLayer], rank: np.ndarray, multiple_of: int
) -> np.ndarray:
    """Restore the best cut units until every layer keeps a multiple; tied layers may take several rounds."""
    changed = multiple_of > 1
    while changed:
        changed = False
        for layer in layers:
            for unit in _best_first(layer.units, rank):
                if int(keep[layer.units].sum()) % multiple_of == 0:
                    break
                if not keep[unit]:
                    keep[unit] = changed = True
                    keep = graph.survivors(_with_support(graph, keep, rank))
    return keep


def _best_first(units: np.ndarray, rank: np.ndarray) -> np.ndarray:
    return units[np.argsort(-rank[units], kind="stable")]
