"""What has to stay: a share of each layer, whole multiples, and what other units need."""

import math

import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.layers import ScoredLayer, all_layers


def going_rank(graph: ChannelGraph, own_rank: np.ndarray) -> np.ndarray:
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


def safe_units(
    graph: ChannelGraph,
    layers: list[ScoredLayer],
    rank: np.ndarray,
    min_channels: int,
    max_layer_ratio: float,
    spared: np.ndarray,
) -> np.ndarray:
    """bool (num_units + 1,): units that stay: those `spared`, the best of each layer, and what these need."""
    safe = spared.copy()
    safe[0] = True
    for layer in layers:
        least = max(min_channels, len(layer.units) - math.floor(len(layer.units) * max_layer_ratio + 1e-9))
        safe[_best_first(layer.units, rank)[: 1 if layer.is_grid else least]] = True
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


def rounded(
    graph: ChannelGraph, keep: np.ndarray, layers: list[ScoredLayer], rank: np.ndarray, multiple_of: int
) -> np.ndarray:
    """Restore the best cut units until every layer keeps a multiple; tied layers may take several rounds."""
    changed = multiple_of > 1
    while changed:
        changed = False
        for layer in layers:
            units, copies = np.unique(layer.units, return_counts=True)
            while (short := -int(keep[layer.units].sum()) % multiple_of) and not keep[units].all():
                cut = units[~keep[units]]
                keep[_best_first(cut, rank)[: max(short // int(copies.max()), 1)]] = changed = True
                keep = graph.survivors(_with_support(graph, keep, rank))
    return keep


def _best_first(units: np.ndarray, rank: np.ndarray) -> np.ndarray:
    return units[np.argsort(-rank[units], kind="stable")]
