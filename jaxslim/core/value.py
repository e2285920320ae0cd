"""What the rules work on: traced arrays, with the id of each index of each axis."""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax import dtypes

FREE = -1
"""Id of every index of an axis that no parameter and no input gave its length, for example of a constant. A cut leaves
the axis whole; where the axis meets a channel, the surviving indices are taken there."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a traced array.

    Ids from 0 on belong to indices that can be cut, as far as the walk knows yet. Ids below `FREE` belong to fixed
    indices, one id for each reason.
    """

    ids: np.ndarray
    """int (n,): id of each index; all of them are `FREE`, or none is."""
    zeroed: np.ndarray
    """float (n,): what each index holds once everything of its unit, and of the units above, is zero; NaN where
    unknown. After a BatchNorm it is 0, after a ReLU behind it still 0, after a sigmoid 0.5."""
    alone: np.ndarray
    """The same while the units above are not zero."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice | np.ndarray) -> "Axis":
        alone = self.alone[part]
        return Axis(self.ids[part], alone if self.alone is self.zeroed else self.zeroed[part], alone)

    @property
    def free(self) -> bool:
        return len(self.ids) > 0 and bool(self.ids[0] == FREE)

    @property
    def open(self) -> bool:
        """Whether some index can be cut."""
        return bool((self.ids >= 0).any())

    def map(self, change: Callable[[np.ndarray], np.ndarray], ids: np.ndarray | None = None) -> "Axis":
        """The axis with what it holds changed, and perhaps with other ids."""
        zeroed = change(self.zeroed)
        alone = zeroed if self.alone is self.zeroed else change(self.alone)
        return Axis(self.ids if ids is None else ids, zeroed, alone)


class Value(NamedTuple):
    """One traced array."""

    axes: tuple[Axis, ...]
    const: float = math.nan
    """The number that every element is; NaN if they differ or are unknown."""
    leaf: int | None = None
    """Number of the leaf that this array is, unchanged."""
    vector: int | None = None
    """The axis along which this array varies, if it is made of parameter vectors alone."""
    normed: bool = False
    """Whether the array came out of an operation with a parameter vector, so that the next one selects no more."""
    origin: Any = None
    """What a constant is made of: the array, or (equation, inputs); None for all else."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes))

    @property
    def free(self) -> bool:
        return all(axis.free or not len(axis) for axis in self.axes)

    def without(self, gone: Collection[int]) -> tuple[Axis, ...]:
        """The axes whose numbers are not in `gone`."""
        return tuple(axis for number, axis in enumerate(self.axes) if number not in gone)


def constant(value: Any) -> Value:
    """A number or array that the program holds."""
    axes, dtype = tuple(map(free_axis, np.shape(value))), getattr(value, "dtype", None) or np.result_type(value)
    if axes or dtypes.issubdtype(dtype, dtypes.extended):
        return Value(axes, origin=(value,))
    # bfloat16 is of kind "V".
    is_number = dtype.kind in "biuf" or dtypes.issubdtype(dtype, np.floating)
    return Value(axes, float(value) if is_number else math.nan, origin=(value,))


@functools.lru_cache(4096)
def unknown(n: int) -> np.ndarray:
    return np.broadcast_to(np.float64(math.nan), (n,))


@functools.lru_cache(4096)
def free_axis(n: int) -> Axis:
    return unknown_axis(np.broadcast_to(np.int64(FREE), (n,)))


def unknown_axis(ids: np.ndarray) -> Axis:
    """An axis of which nothing is known but its ids."""
    nothing = unknown(len(ids))
    return Axis(ids, nothing, nothing)


def free_axes(shape: Iterable[int]) -> tuple[Axis, ...]:
    return tuple(map(free_axis, shape))


def concatenated(axes: Sequence[Axis]) -> Axis:
    """Several axes, one after the other, as one."""
    alone = np.concatenate([axis.alone for axis in axes])
    same = all(axis.alone is axis.zeroed for axis in axes)
    return Axis(
        np.concatenate([axis.ids for axis in axes]),
        alone if same else np.concatenate([axis.zeroed for axis in axes]),
        alone,
    )


def agreed(one: Any, other: Any) -> Any:
    """The numbers on which both agree, NaN elsewhere."""
    return np.where(one == other, one, math.nan)


def combined(change: Callable[..., np.ndarray], ids: np.ndarray, *axes: Axis) -> Axis:
    """An axis whose contents are `change` of those of `axes`."""
    zeroed = change(*(axis.zeroed for axis in axes))
    same = all(axis.alone is axis.zeroed for axis in axes)
    return Axis(ids, zeroed, zeroed if same else change(*(axis.alone for axis in axes)))


def index_along(lengths: Sequence[int], k: int) -> np.ndarray:
    """For each index of a flattened grid of these lengths, its index along axis `k`."""
    n, after = math.prod(lengths), math.prod(lengths[k + 1 :])
    return np.arange(n) // after % lengths[k]


def lines(grid: np.ndarray, k: int) -> np.ndarray:
    """All lines of a grid along axis `k`, as rows."""
    return np.moveaxis(grid, k, -1).reshape(-1, grid.shape[k])
