"""What the rules work on: traced arrays, with the id of each index of each axis."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax import dtypes

FIXED = 0  # id of every index that cannot be cut; those above it can, as far as the walk knows yet
FREE = -1  # id of every index that broadcasting made: its axis takes the length of the axis that it meets


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a traced array."""

    ids: np.ndarray
    """int (n,): id of each index, or `FIXED`, or `FREE`."""
    zeroed: np.ndarray
    """float (n,): what each index holds once the vectors (scale, bias) of its unit are zero, NaN where unknown. After a
    BatchNorm it is 0, after a ReLU behind it still 0, after a sigmoid 0.5."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice | np.ndarray) -> "Axis":
        return Axis(self.ids[part], self.zeroed[part])


class Value(NamedTuple):
    """One traced array."""

    axes: tuple[Axis, ...]
    const: float = math.nan
    """The number that every element is; NaN if they differ or are unknown."""
    leaf: int | None = None
    """Number of the leaf that this array is, unchanged."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes))

    def without(self, gone: Collection[int]) -> tuple[Axis, ...]:
        """The axes whose numbers are not in `gone`."""
        return tuple(axis for number, axis in enumerate(self.axes) if number not in gone)


def constant(value: Any) -> Value:
    """A number or array that the program holds."""
    axes, dtype = fixed_axes(np.shape(value)), np.result_type(value)
    # bfloat16 is of kind "V".
    is_number = not axes and (dtype.kind in "biuf" or dtypes.issubdtype(dtype, np.floating))
    return Value(axes, float(value) if is_number else math.nan)


def unknown_axis(ids: np.ndarray) -> Axis:
    """An axis of which nothing is known but its ids."""
    return Axis(ids, np.full(len(ids), math.nan))


def fixed_axis(n: int) -> Axis:
    return unknown_axis(np.full(n, FIXED))


def free_axis(n: int) -> Axis:
    return unknown_axis(np.full(n, FREE))


def fixed_axes(shape: Iterable[int]) -> tuple[Axis, ...]:
    return tuple(map(fixed_axis, shape))


def concatenated(axes: Sequence[Axis]) -> Axis:
    """Several axes, one after the other, as one."""
    return Axis(np.concatenate([fix_free(axis.ids) for axis in axes]), np.concatenate([axis.zeroed for axis in axes]))


def fix_free(ids: np.ndarray) -> np.ndarray:
    """Replace `FREE` by `FIXED`, where the length of the axis matters."""
    return np.where(ids == FREE, FIXED, ids)


def agreed(one: Any, other: Any) -> Any:
    """The numbers on which both agree, NaN elsewhere."""
    return np.where(one == other, one, math.nan)


def index_along(lengths: Sequence[int], k: int) -> np.ndarray:
    """For each index of a flattened grid of these lengths, its index along axis `k`."""
    return np.unravel_index(np.arange(math.prod(lengths)), lengths)[k]


def lines(grid: np.ndarray, k: int) -> np.ndarray:
    """All lines of a grid along axis `k`, as rows."""
    return np.moveaxis(grid, k, -1).reshape(-1, grid.shape[k])
