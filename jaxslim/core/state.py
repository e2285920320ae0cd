"""Arrays that an optimizer keeps beside a parameter: which axes of the parameter theirs are."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from jaxslim.core.paths import Path, Place
from jaxslim.errors import InputError

Shape = tuple[int, ...]
Axes = tuple[int | None, ...]
"""For each axis of an array, the axis of the parameter that it runs along; None for an axis of another kind."""

ROW, COLUMN = "v_row", "v_col"  # optax's names of Adafactor's factored moments
PROJECTION = "projector"  # optax's name of GaLore's projections, which mix the channels of a matrix
DEFAULT_LEAST = 128  # optax's default of `min_dim_size_to_factor`, which the state does not tell


def axes_beside(shape: Shape, parameter: Shape, place: Place) -> list[Axes]:
    """The ways to read an array at the place of a parameter of this shape; none if nobody can tell."""
    rank = len(parameter)
    same: list[Axes] = [tuple(range(rank))]
    if not place.copy:
        return same if shape == parameter else [()] if not shape else []
    field, position = place.copy[-1], place.position
    if field == PROJECTION:
        return []
    if position is not None and position < rank and shape == (parameter[position],):
        return [(position,)]  # SM3: a vector for each axis
    if shape == parameter:
        return same
    if math.prod(shape) == 1:
        return [(None,) * len(shape)]  # a number for the whole parameter, or nothing in its place
    if shape[1:] == parameter:
        return [(None, *range(rank))]  # several, stacked: the memory of L-BFGS
    if len(shape) == rank:
        axes = tuple(axis if shape[axis] == parameter[axis] else None for axis in range(rank))
        return [axes] if all(axis is not None or n == 1 for axis, n in zip(axes, shape, strict=True)) else []
    gone = [_factors(parameter)[field == ROW]] if field in (ROW, COLUMN) and rank > 1 else range(rank)
    left = [tuple(axis for axis in range(rank) if axis != one) for one in gone]
    return [axes for axes in left if shape == tuple(parameter[axis] for axis in axes)]


def check_factors(
    placed: Iterable[tuple[Shape, Place]], names: Sequence[Path], before: Sequence[Shape], after: Sequence[Shape]
) -> None:
    """Refuse where Adafactor would factor the moments of a parameter of the new shape in another way, or not at all.

    Args:
      placed: shapes and places of the arrays of a tree.
      names: path of each parameter.
      before: shape of each parameter, as in the tree.
      after: shape that each parameter gets.
    """
    states: defaultdict[Path, dict[int, bool]] = defaultdict(dict)
    for shape, place in placed:
        if place.copy[-1:] == (ROW,) and len(before[place.number]) > 1:
            states[place.copy[:-1]][place.number] = math.prod(shape) > 1
    for is_factored in states.values():
        most = min((_least(before[one]) for one, factored in is_factored.items() if factored), default=0)
        plain = max((_least(before[one]) for one, factored in is_factored.items() if not factored), default=0)
        # optax factors from some length on, above `plain` and up to `most`. Where its default fits, it is that.
        enough, too_much = (DEFAULT_LEAST,) * 2 if plain < DEFAULT_LEAST <= most else (most, plain + 1)
        for number, factored in is_factored.items():
            old, new = before[number], after[number]
            fits = _least(new) >= enough and _factors(new) == _factors(old) if factored else _least(new) < too_much
            if most and not fits:
                name = "/".join(names[number])
                raise uncuttable(f"Adafactor may factor the moments of {name} otherwise at {new} than at {old}")


def uncuttable(cause: str) -> InputError:
    return InputError(
        f"This optimizer's state cannot be cut: {cause}; start it anew on the cut parameters: tx.init(small)."
    )


def _factors(shape: Shape) -> tuple[int, int]:
    """The two axes over which optax's Adafactor takes means: the second largest, for columns, and the largest."""
    *_, second, first = np.argsort(shape).tolist()
    return second, first


def _least(shape: Shape) -> int:
    """The length that decides whether Adafactor factors the moments."""
    return sorted(shape)[-2]
