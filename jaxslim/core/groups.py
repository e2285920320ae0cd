"""Which units are channels of one layer, which layers are alike, and which units go with another."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import coo_array, eye_array

from jaxslim.core.graph import ChannelGraph


def groups(graph: ChannelGraph) -> np.ndarray:
    """int (num_units + 1,): number of the layer that each unit is a channel of, in order from 1; 0 for unit 0.

    Units are channels of one layer if they stand on the same axes of the same arrays, so the channels that a residual
    connection ties count as one layer. The rows of a grid (heads) are a layer, and its columns (their widths) another.
    """
    draw = np.random.default_rng(0)
    return _numbered(graph, lambda leaf, axis: int(draw.integers(1 << 62)))


def alike(graph: ChannelGraph) -> np.ndarray:
    """int (num_units + 1,): number of the class of alike layers that each unit belongs to, 0 for unit 0.

    Layers are alike if they stand on the same axes of arrays of as many axes, with the same lengths of those axes that
    stay, such as the windows of kernels: isomorphic structures (Fang et al., ECCV 2024, section 3.2).
    """

    def kind(leaf: int, axis: int) -> int:
        fixed = tuple(n for n, units in zip(graph.shapes[leaf], graph.units[leaf], strict=True) if not units.any())
        return hash((len(graph.shapes[leaf]), axis, fixed)) >> 2

    return _numbered(graph, kind)


def _numbered(graph: ChannelGraph, kind: Callable[[int, int], int]) -> np.ndarray:
    """Units numbered by the sum of the kinds of all axes that they stand on."""
    own = np.zeros(graph.num_units + 1, np.int64)
    for leaf, axes in enumerate(graph.units):
        for axis, units in enumerate(axes):
            if units.any():
                own[np.unique(units)] += kind(leaf, axis)
    if len(graph.places):
        own += graph.places << 40
    signature, (below, above) = own, _cells(graph)
    for _ in range(3 if len(below) else 0):  # rows and columns stand where their cells do, which can be rows themselves
        found = np.unique(np.stack([above, signature[below]]), axis=1)
        signature = own.copy()
        np.add.at(signature, found[0], found[1] * 31 + 7)
    _, first, number = np.unique(signature[1:], return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[number.reshape(-1)] + 1
    return np.concatenate([[0], numbers])


def _cells(graph: ChannelGraph) -> np.ndarray:
    """int (2, n): elements of grids, and the rows and columns above them."""
    return graph.below[:, ~graph.choosable[graph.below[0]]]


def share_below(score: np.ndarray, group: np.ndarray) -> np.ndarray:
    """For each score the share of its group that is at most as high, earlier ones first among equals; in (0, 1]."""
    order = np.lexsort((score, group))
    _, start, number = np.unique(group[order], return_index=True, return_counts=True)
    rank = np.arange(len(score)) - np.repeat(start, number)
    shares = np.empty(len(score))
    shares[order] = (rank + 1) / np.repeat(number, number)
    return shares


def going_along(graph: ChannelGraph) -> Any:
    """(num_units + 1, num_units + 1) sparse: 1 where the unit of the column goes if that of the row goes."""
    size = graph.num_units + 1
    below, above = graph.below
    goes = eye_array(size, dtype=np.int64, format="csr") + coo_array(
        (np.ones(len(below), np.int64), (above, below)), (size, size)
    )
    while True:  # below what is below
        before, goes = goes.nnz, goes @ goes
        goes.data[:] = 1
        if goes.nnz == before:
            return goes
