"""What can go of a network, worst first, and what a number of these leaves."""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.groups import alike, groups, share_below
from jaxslim.core.keeping import going_rank, rounded, safe_units
from jaxslim.core.layers import ScoredLayer, matching
from jaxslim.errors import InputError


class Limits(NamedTuple):
    """What each layer keeps."""

    min_channels: int
    max_layer_ratio: float
    multiple_of: int

    def __str__(self) -> str:
        share = f", max_layer_ratio={self.max_layer_ratio}" if self.max_layer_ratio < 1 else ""
        return f"min_channels={self.min_channels}{share}"


class Choice:
    """The units of a network in the order in which they go."""

    def __init__(
        self,
        graph: ChannelGraph,
        layers: list[ScoredLayer],
        score: np.ndarray,
        limits: Limits,
        *,
        scope: str,
        leave: Collection[str],
        ratios: Mapping[str, float],
        within: np.ndarray,
    ) -> None:
        self.graph, self.layers, self.score, self.limits = graph, layers, score, limits
        self.prunable = np.flatnonzero(graph.choosable & (score > -math.inf))
        """Units with a score."""
        compared = _compared(graph, score, self.prunable, scope)
        worst_first = self.prunable[np.lexsort((compared, within[self.prunable]))]
        self.within = within
        """bool (num_units + 1,): what survived an earlier plan."""
        own_rank = np.full(len(score), math.inf)
        own_rank[worst_first] = np.arange(len(worst_first))
        self._rank = going_rank(graph, own_rank)
        self.spared = np.zeros(len(score), bool)
        """bool (num_units + 1,): units of the layers that are left alone."""
        for layer in matching(layers, leave):
            self.spared[layer.units] = True
        given, self._chosen, stays = self._with_ratios(worst_first, ratios)
        self.safe = self._safe(stays)
        """bool (num_units + 1,): units that cannot go."""
        self.rest = worst_first[~np.isin(worst_first, given)]
        """Units that no ratio of a layer is given for, worst first."""
        self.can_go = self.rest[~self.safe[self.rest]]

    def keep(self, number: int) -> np.ndarray:
        """bool (num_units + 1,): what survives if the first of `can_go` go, whole multiples of each layer."""
        keep = rounded(self.graph, self._alive(number), self.layers, self._rank, self.limits.multiple_of)
        return keep & self.within

    def count(self, number: int) -> int:
        """How many units of `rest` go if the first of `can_go` go."""
        return int(np.count_nonzero(~self._alive(number)[self.rest]))

    def _alive(self, number: int) -> np.ndarray:
        keep = np.ones(self.graph.num_units + 1, bool)
        keep[self._chosen] = keep[self.can_go[:number]] = False
        return self.graph.survivors(keep & self.within)

    def _safe(self, stays: np.ndarray) -> np.ndarray:
        limits = self.limits
        return safe_units(self.graph, self.layers, self._rank, limits.min_channels, limits.max_layer_ratio, stays)

    def _with_ratios(
        self, worst_first: np.ndarray, ratios: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The units of layers with ratios of their own, which of these go, and bool (num_units + 1,): what stays."""
        given, gone, stays = np.zeros(0, np.int64), np.zeros(0, np.int64), self.spared.copy()
        for pattern, ratio in ratios.items():
            if not 0 <= ratio < 1:
                raise InputError(f"The ratio of {pattern} is {ratio}; it must lie in [0, 1).")
            found = matching(self.layers, [pattern])
            if not any(np.isin(worst_first, layer.units).any() for layer in found):
                names = [layer.name for layer in self.layers if layer.name.startswith(f"{found[0].name}:")]
                advice = f"name its rows or columns: {', '.join(names)}" if names else "leave the pattern out"
                raise InputError(f"No channel of {pattern} has a score of its own; {advice}.")
            for layer in found:
                units = worst_first[np.isin(worst_first, layer.units) & ~np.isin(worst_first, given)]
                wanted = math.floor(len(units) * ratio + 1e-9)
                can_go = units[~self._safe(stays)[units]] if wanted else units[:0]  # a plan may spare many layers
                if len(can_go) < wanted:
                    largest = math.floor(len(can_go) / len(units) * 1e4) / 1e4
                    raise InputError(
                        f"A ratio of {ratio} for {layer.name} cannot be met: with {self.limits}, the ratios before and "
                        f"the layers left alone, {len(can_go)} of its {len(units)} channels can go; the largest ratio "
                        f"is {largest}."
                    )
                given, gone = np.concatenate([given, units]), np.concatenate([gone, can_go[:wanted]])
                stays[units] = True
                stays[gone] = False
        if self._safe(stays)[gone].any():
            raise InputError("The ratios contradict one another: channels that go take along some that were to stay.")
        return given, gone, stays


def _compared(graph: ChannelGraph, score: np.ndarray, prunable: np.ndarray, scope: str) -> np.ndarray:
    """What the prunable units are sorted by: their scores, or their shares within a layer or a class of layers."""
    if scope == "global":
        return score[prunable]
    if scope not in ("layer", "alike"):
        raise InputError(f"scope is {scope!r}; it must be global, layer or alike.")
    group = groups(graph) if scope == "layer" else alike(graph)
    return share_below(score[prunable], group[prunable])
