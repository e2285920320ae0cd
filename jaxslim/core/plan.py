"""Which channels go: scores of all layers, one threshold, and what every layer has to keep."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from jaxslim.core.graph import ChannelGraph, leaf_paths
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
    requested: float | None
    """Share of the prunable units that was to go; None where a threshold decided."""
    achieved: float
    """Share of the prunable units that goes."""
    layers: tuple[Layer, ...]
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
    largest of them. The lowest int(units * ratio) go; among equal scores, earlier channels go first.

    Args:
      graph: of the network.
      scores: pytree of arrays, each at the path of a parameter: one number for each index of that parameter's last
        axis (or for each element, of which the largest counts). `bn_scales` makes it.
      ratio: share of the prunable units to cut, in [0, 1); None with `threshold`.
      min_channels: each layer keeps at least its best `min_channels`; others go in their place.
      threshold: cut every unit with a score up to this, however many they are. The PyTorch reference takes
        `sorted(scores)[int(units * ratio)]`, which cuts one unit more than `ratio` does, and all ties.
      max_layer_ratio: largest share of a layer that may go; the paper's multi-pass scheme takes 0.5 (section 4.6).
      multiple_of: restore the best cut channels of each layer until it keeps a multiple of this (or everything).
      leave: names of layers that lose nothing.

    Returns:
      The `Plan`.

    Raises:
      InputError: arguments out of range, scores that fit no parameter or hold NaN, an unknown layer in `leave`, or a
        ratio that cannot be met; the message names the largest that can.
    """
    _check_ranges(ratio, threshold, min_channels, max_layer_ratio, multiple_of)
    layers = _scored_layers(graph, scores)
    score = np.full(graph.num_units + 1, -math.inf)
    for layer in layers:
        np.maximum.at(score, layer.units, layer.scores)
    prunable = np.unique(np.concatenate([layer.units for layer in layers]))
    prunable = prunable[prunable != 0]
    worst_first = prunable[np.argsort(score[prunable], kind="stable")]
    rank = np.zeros(len(score))
    rank[worst_first] = np.arange(len(worst_first))
    rank[0] = math.inf

    safe = _safe(layers, rank, min_channels, max_layer_ratio, leave)
    if ratio is None:
        wanted = worst_first[score[worst_first] <= threshold]
        cut = wanted[~safe[wanted]]
    else:
        wanted = worst_first[: math.floor(len(worst_first) * ratio + 1e-9)]
        can_go = worst_first[~safe[worst_first]]
        cut = can_go[: len(wanted)]
        if len(cut) < len(wanted):
            share = f", max_layer_ratio={max_layer_ratio}" if max_layer_ratio < 1 else ""
            most = math.floor(len(can_go) / len(worst_first) * 1e4) / 1e4
            raise InputError(
                f"A ratio of {ratio} cannot be met: with min_channels={min_channels}{share} and the layers left alone, "
                f"{len(can_go)} of {len(worst_first)} channels can go; the largest ratio is {most}."
            )

    keep = np.ones(len(score), bool)
    keep[cut] = False
    _round_up(keep, layers, rank, multiple_of)
    saved = wanted[safe[wanted]]
    outcome = (
        Layer(name, len(units), int(keep[units].sum()), name not in leave and bool(np.isin(units, saved).any()))
        for name, units, _ in layers
    )
    achieved = np.count_nonzero(~keep) / max(len(prunable), 1)
    return Plan(keep=keep, requested=ratio, achieved=achieved, layers=tuple(outcome))


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


class _ScoredLayer(NamedTuple):
    name: str
    units: np.ndarray  # int (channels,)
    scores: np.ndarray  # float (channels,)


def _scored_layers(graph: ChannelGraph, scores: Any) -> list[_ScoredLayer]:
    """The layers that have scores, in network order."""
    found = []
    for path, value in leaf_paths(scores):
        number, name = graph.find(path), "/".join(path)
        if number is None:
            raise InputError(f"The scores hold {name}, which is no parameter of the traced network.")
        shape, values = graph.shapes[number], np.asarray(value, np.float64)
        if not shape or values.shape not in (shape, shape[-1:]):
            raise InputError(f"The scores {name} have shape {values.shape}; the parameter has shape {shape}.")
        if np.isnan(values).any():
            raise InputError(f"The scores {name} hold NaN; the network has diverged, take an earlier checkpoint.")
        own = graph.paths[number]
        layer = "/".join(own[1:-1] if len(own) > 2 else own)
        found.append((number, _ScoredLayer(layer, graph.units[number][-1], values.reshape(-1, shape[-1]).max(0))))
    if not found:
        raise InputError("There are no scores; nothing says which channels matter.")
    return [layer for _, layer in sorted(found, key=lambda one: one[0])]


def _safe(
    layers: list[_ScoredLayer], rank: np.ndarray, min_channels: int, max_layer_ratio: float, leave: Collection[str]
) -> np.ndarray:
    """bool (num_units + 1,): the best units of each layer, which it must keep, and all units of the layers `leave`."""
    names = [layer.name for layer in layers]
    if unknown := sorted(set(leave) - set(names)):
        raise InputError(f"There is no layer {unknown[0]} to leave alone; the layers are {', '.join(names)}.")
    safe = np.zeros(len(rank), bool)
    for name, units, _ in layers:
        least = max(min_channels, len(units) - math.floor(len(units) * max_layer_ratio + 1e-9))
        safe[units if name in leave else _best_first(units, rank)[:least]] = True
    return safe


def _round_up(keep: np.ndarray, layers: list[_ScoredLayer], rank: np.ndarray, multiple_of: int) -> None:
    """Restore the best cut units until every layer keeps a multiple; tied layers may take several rounds."""
    changed = multiple_of > 1
    while changed:
        changed = False
        for _, units, _ in layers:
            for unit in _best_first(units, rank):
                if int(keep[units].sum()) % multiple_of == 0:
                    break
                changed |= not keep[unit]
                keep[unit] = True


def _best_first(units: np.ndarray, rank: np.ndarray) -> np.ndarray:
    return units[np.argsort(-rank[units], kind="stable")]
