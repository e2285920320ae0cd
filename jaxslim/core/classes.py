"""Classes of ids that share their fate, grids of classes, and which classes survive a cut."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxslim.core.walk import Product, Walk

Pairs = list[tuple[np.ndarray, np.ndarray]]
Span = tuple[int, int]


@dataclass(eq=False)
class Grid:
    """A `Product` in terms of classes; factors that stay as a whole may be left out."""

    cells: np.ndarray
    factors: list[np.ndarray]
    spans: list[Span]
    """For each factor the steps in which its index grows, and in which its index starts anew."""
    why: int
    """The fixed class that stands for the equation."""
    held: int
    """The same, for a factor that can go only as a whole, which nobody expects to go."""

    def along(self, k: int) -> np.ndarray:
        """For each cell, the class of its index along factor `k`."""
        return self.factors[k][self.places(k)]

    def places(self, k: int) -> np.ndarray:
        start, end = self.spans[k]
        return np.arange(len(self.cells)) % end // start


def unique_pairs(pairs: np.ndarray) -> np.ndarray:
    """The distinct columns of int (2, n), in order."""
    width = int(pairs.max(initial=0)) + 1
    keys = np.sort(pairs[0].astype(np.int64) * width + pairs[1])
    keys = keys[np.diff(keys, prepend=-1) > 0]  # np.unique takes three times as long
    return np.stack([keys // width, keys % width])


def spans_of(lengths: Sequence[int]) -> list[Span]:
    ends = np.cumprod([1, *lengths[::-1]]).tolist()
    return list(pairwise(ends))[::-1]


class Classes:
    """The classes of ids that share their fate."""

    def __init__(self, walk: Walk) -> None:
        self.reasons = len(walk.reasons)
        size = self.reasons + walk.num_ids
        self.label = components(size, [(self.node(a), self.node(b)) for a, b in walk.united])
        self.num = int(self.label.max(initial=-1)) + 1
        self.fixed = np.zeros(self.num, bool)
        self.fixed[self.label[: self.reasons]] = True

    def node(self, ids: np.ndarray) -> np.ndarray:
        return np.where(ids < 0, ids + self.reasons + 1, ids + self.reasons)

    def of(self, ids: np.ndarray) -> np.ndarray:
        """The class of each id."""
        return self.label[self.node(ids)]

    def all_of(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        return self.of(np.concatenate([np.zeros(0, np.int64), *ids]))

    def grids(self, walk: Walk) -> list[Grid]:
        return [self.grid(product, 0, 0) for product in walk.products]

    def grid(self, product: Product, why: int, held: int) -> Grid:
        factors = [self.of(ids) for ids in product.factors]
        return Grid(self.of(product.grid), factors, spans_of(list(map(len, factors))), why, held)


def components(size: int, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Number of the connected component of each node."""
    rows, columns = np.concatenate([np.zeros((2, 0), np.int64), *map(np.stack, pairs)], axis=1)
    edges = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(size, size))
    return connected_components(edges, directed=False)[1]


def common_ends(ends: list[set[int]]) -> list[int]:
    """Numbers of which each divides the next, such that every given one can be made of factors between them."""
    chain = set.intersection(*ends)
    rest = set.union(*ends) - chain
    while rest:
        end = rest.pop()
        clashing = [other for other in chain | rest if max(end, other) % min(end, other)]
        if not clashing:
            chain.add(end)
            continue
        rest.discard(clashing[0])
        chain.discard(clashing[0])
        rest |= {math.gcd(end, clashing[0]), math.lcm(end, clashing[0])} - chain
    return sorted(chain)


def survivors(
    walk: Walk, known: Iterable[tuple[np.ndarray, np.ndarray, Any]], conflict: Any
) -> tuple[Classes, np.ndarray]:
    """Which ids survive, from those of some axes.

    Args:
      walk: over the program.
      known: for some axes their ids, whether each survives, and a name for `conflict`.
      conflict: called with a name where an axis cannot lose what it should; raises.

    Returns:
      The classes, and for each class whether it survives, bool (classes,). What nothing tells of stays.
    """
    classes = _with_grids_alike(walk)
    survives, told = np.ones(classes.num, bool), classes.fixed.copy()
    for ids, alive, name in known:
        own = classes.of(ids)
        if (survives[own] != alive)[told[own]].any():
            conflict(name)
        survives[own], told[own] = alive, True
        if (survives[own] != alive).any():
            conflict(name)
    grids = classes.grids(walk)
    cells = np.zeros(classes.num, bool)
    for grid in grids:
        cells[grid.cells] = True
    for stays in (np.zeros_like(told), ~cells):  # what nothing tells of stays
        told |= stays
        news = True
        while news:
            news = sum(_tell(grid, survives, told, conflict) for grid in grids) > 0
    return classes, survives


def _with_grids_alike(walk: Walk) -> Classes:
    """The classes, once grids of the same cells and lengths share their factors."""
    while True:
        classes = Classes(walk)
        first: dict[Any, Product] = {}
        ties: Pairs = []
        for product in walk.products:
            key = classes.of(product.grid).tobytes(), tuple(map(len, product.factors))
            ties += zip(product.factors, first.setdefault(key, product).factors, strict=True)
        ties = [(a, b) for a, b in ties if (classes.of(a) != classes.of(b)).any()]
        if not ties:
            return classes
        walk.united += ties


def _tell(grid: Grid, survives: np.ndarray, told: np.ndarray, conflict: Any) -> bool:
    """Pass on what is known of a grid's cells to its factors, and the other way round; false if nothing is new."""
    before = np.count_nonzero(told)
    if told[grid.cells].all() and survives[grid.cells].any():
        for k, factor in enumerate(grid.factors):
            own = np.zeros(len(factor), bool)
            np.logical_or.at(own, grid.places(k), survives[grid.cells])
            new = ~told[factor]
            survives[factor[new]], told[factor[new]] = own[new], True
    if all(told[factor].all() for factor in grid.factors):
        own = np.logical_and.reduce([survives[grid.along(k)] for k in range(len(grid.factors))])
        new = ~told[grid.cells]
        survives[grid.cells[new]], told[grid.cells[new]] = own[new], True
        if (survives[grid.cells] != own).any():
            conflict(None)
    return bool(np.count_nonzero(told) > before)
