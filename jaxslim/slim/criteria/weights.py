"""Criteria that look at the weights alone."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.groups import groups
from jaxslim.errors import InputError
from jaxslim.slim.criteria.units import Normalize, Reduce, normalized, parts, reduced


def magnitude(
    graph: ChannelGraph, variables: Any, p: float = 2, reduce: Reduce = "sum", normalize: Normalize | None = None
) -> np.ndarray:
    """The p-norm of all parameters that go with a unit, in and out: (sum |w|^p)^(1/p).

    Li et al. (ICLR 2017, section 3.1) rank filters by the 1-norm of their own weights; DepGraph (Fang et al., CVPR
    2023, section 3.3) by the norm of everything that goes along.

    Args:
      graph: of the network.
      variables: the traced variables, or those among them that are to count, at the same paths. Only what training
        adjusts counts.
      p: of the norm, from 1 on; `math.inf` takes the largest |w|.
      reduce: `sum` takes the norm of all elements together; `mean` and `max` take that of the norms of each parameter's
        part.
      normalize: what makes layers comparable: `size` takes the mean of |w|^p over the elements in place of the sum;
        `mean`, `max` and `sum` divide by that of the scores of the layer.

    Returns:
      (num_units + 1,) scores; 0 for unit 0 and for units without elements.

    Raises:
      InputError: p is below 1, or another argument is none of the above.
    """
    if not p >= 1:
        raise InputError(f"p is {p}; it must be at least 1, for example 2 or math.inf.")
    if math.isinf(p):
        scores = reduced(graph, ((units, np.abs(w).max(1)) for units, w in parts(graph, variables)), "max")
        return normalized(graph, scores, normalize)
    root = 1 if reduce == "sum" else 1 / p
    norms: Iterator[Any] = ((units, (np.abs(w) ** p).sum(1) ** root) for units, w in parts(graph, variables))
    scores = reduced(graph, norms, reduce)
    if normalize == "size":
        sizes = ((units, np.full(len(units), w.shape[1] ** root)) for units, w in parts(graph, variables))
        scores = scores / np.maximum(reduced(graph, sizes, reduce), 1)
    scores = scores ** (1 / p) if reduce == "sum" else scores
    return normalized(graph, scores, normalize)


def lamp(graph: ChannelGraph, variables: Any) -> np.ndarray:
    """Layer-adaptive magnitude: |w|^2 of a unit, divided by that of all units of its layer that are no smaller.

    Lee et al. (ICLR 2021, section 3.1) score single weights. Here |w|^2 is the sum of squares of everything that goes
    with a unit. The best unit of each layer has score 1.

    Args:
      graph: of the network.
      variables: as for `magnitude`.

    Returns:
      (num_units + 1,) scores.
    """
    squares = magnitude(graph, variables) ** 2
    group = np.where(graph.choosable, groups(graph), 0)
    order = np.lexsort((squares, group))
    scores = np.zeros(len(squares))
    for own in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        no_smaller = np.cumsum(squares[own][::-1])[::-1]
        scores[own] = squares[own] / np.maximum(no_smaller, np.finfo(float).tiny)
    scores[group == 0] = 0
    return scores


def geometric_median(graph: ChannelGraph, variables: Any, reduce: Reduce = "mean") -> np.ndarray:
    """How far the weights of a unit are from those of the others: sum over j of |w_i - w_j| (2-norm).

    The unit nearest to the geometric median of its layer goes first, since the others can stand in for it (FPGM: He et
    al., CVPR 2019, section 3.3). The distances are taken along each axis of each parameter of at least two axes, and
    divided by the number of indices.

    Args:
      graph: of the network.
      variables: as for `magnitude`.
      reduce: what is made of the distances along the axes that a unit stands on.

    Returns:
      (num_units + 1,) scores; 0 for units that stand in vectors alone.
    """

    def distances(w: np.ndarray) -> np.ndarray:
        squares, sums = (np.abs(w) ** 2).sum(1), []
        for start in range(0, len(w), 512):  # so that few rows of all distances are in memory
            rows = slice(start, start + 512)
            between = squares[rows, None] + squares[None] - 2 * (w[rows] @ w.conj().T).real
            sums.append(np.sqrt(np.maximum(between, 0)).sum(1))
        return np.concatenate(sums) / len(w)

    return reduced(graph, ((units, distances(w)) for units, w in parts(graph, variables) if w.shape[1] > 1), reduce)


def random(graph: ChannelGraph, variables: Any = None, seed: int = 0) -> np.ndarray:
    """Uniform random scores, which every criterion has to beat.

    Args:
      graph: of the network.
      variables: not looked at.
      seed: of the numbers.

    Returns:
      (num_units + 1,) scores in [0, 1).
    """
    scores = np.random.default_rng(seed).random(graph.num_units + 1)
    scores[0] = 0
    return scores


def weighted_sum(scores: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Several criteria together: the sum of weight * scores / mean of the scores.

    Args:
      scores: arrays (num_units + 1,) of one graph.
      weights: one for each.

    Returns:
      (num_units + 1,) scores; -inf where any of them is.

    Raises:
      InputError: there are not as many weights as scores, or the scores differ in length.
    """
    if len(scores) != len(weights) or not len(scores):
        raise InputError(f"There are {len(scores)} scores and {len(weights)} weights; give one weight for each.")
    if len({np.shape(one) for one in scores}) > 1:
        shapes = ", ".join(str(np.shape(one)) for one in scores)
        raise InputError(f"The scores have shapes {shapes}; give scores of one graph.")
    total, unscored = np.zeros(np.shape(scores[0])), np.zeros(np.shape(scores[0]), bool)
    for one, weight in zip(np.asarray(scores, np.float64), weights, strict=True):
        known = np.abs(one[1:][np.isfinite(one[1:])])
        scale = float(known.mean()) if known.any() else 1.0
        total += weight * np.where(np.isneginf(one), 0.0, one) / scale
        unscored |= np.isneginf(one)
    total[unscored], total[0] = -np.inf, 0
    return total
