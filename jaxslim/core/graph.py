"""Which channels live and die together: the units of a traced network."""

import difflib
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jaxslim.core.paths import Path, Paths
from jaxslim.core.printing import columns, unit_ranges
from jaxslim.errors import InputError

MOST_BESIDE = 8
"""Axes that `explain` names one by one."""


class Stop(NamedTuple):
    """What keeps an axis of a leaf, or some indices of the axis, from being cut."""

    path: Path
    axis: int
    cause: str
    """The primitive, `input` or `output`, and what of it."""
    source: str
    """File, line and function of the user's code; empty if there is none."""
    expected: bool
    """Whether nobody would expect this axis to shrink, as the window of a kernel."""

    def __str__(self) -> str:
        where = f" at {self.source}" if self.source else ""
        return f"axis {self.axis} of {'/'.join(self.path)}: {self.cause}{where}"


class Work(NamedTuple):
    """A convolution or product of the traced network."""

    macs: int
    """Multiply-accumulates in the full network, on the traced inputs."""
    axes: tuple[np.ndarray, ...]
    """For each axis that it takes time along, int (n, ...): the units of each index, all of which have to survive."""

    def left(self, alive: np.ndarray) -> int:
        """Multiply-accumulates once the units that are not `alive`, bool (num_units + 1,), are gone."""
        macs = self.macs
        for units in self.axes:
            macs = macs // len(units) * int(np.count_nonzero(alive[units].all(1)))
        return macs


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ChannelGraph:
    """The prunable units of one traced network. Leaves are numbered in the order the program first reads them."""

    paths: tuple[Path, ...]
    """Path of each leaf of the traced variables."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of each leaf."""
    units: tuple[tuple[np.ndarray, ...], ...]
    """For each leaf and axis, the unit of each index: 0 is fixed, 1 to `num_units` can be cut."""
    num_units: int
    """Number of units, without unit 0, which collects everything fixed."""
    exact: np.ndarray
    """bool (num_units + 1,): whether cutting the unit gives what the full network gives with every slice of the unit,
    and of the units below it, at zero; see `jaxslim.mask`."""
    choosable: np.ndarray
    """bool (num_units + 1,): whether a plan may choose the unit. Unit 0 is not, and neither are the elements of a grid,
    which go with their row or their column (an element of a dense layer behind which code splits heads and widths)."""
    below: np.ndarray
    """int (2, n): units, and units above them. A unit goes if one above goes. A choosable one can also go alone: it
    lies behind a norm, and the stream in front of the norm keeps the channel for other readers."""
    closed: np.ndarray
    """bool (num_units + 1,): units that also go when all units below are gone, since nothing else reads them."""
    stops: tuple[Stop, ...]
    """What keeps axes of leaves from being cut, in the order of the leaves."""
    places: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int (num_units + 1,): for a row or column of a grid the number of its factor, the last factor is 1; else 0."""
    reads: tuple[bool, ...] = field(default=())
    """For each leaf, whether a traced mode reads it."""
    scales: tuple[int, ...] = field(default=())
    """Numbers of the leaves that are vectors and multiply channels: the scales of norms, and layer scales."""
    batch_scales: tuple[int, ...] = field(default=())
    """Those of them whose channels the root of another leaf normalises: the scales of BatchNorm layers."""
    trained: tuple[bool, ...] = ()
    """For each leaf, whether training adjusts it: all of `params`, or without one all floats that no mode renews."""
    work: tuple[Work, ...] | None = None
    """What the first mode multiplies; None if this cannot be counted."""

    def survivors(self, keep: np.ndarray) -> np.ndarray:
        """`keep`, bool (num_units + 1,), without the units that go because others go."""
        alive = np.where(self.choosable, keep, True)
        below, above = self.below
        while True:
            before = alive
            alive = alive.copy()
            np.logical_and.at(alive, below, before[above])
            some = np.zeros(len(alive), bool)
            np.logical_or.at(some, above, alive[below])
            alive &= some | ~self.closed
            if (alive == before).all():
                return alive

    @property
    def opaque(self) -> tuple[str, ...]:
        """What stopped channels that one would expect to go: primitives without a rule, inputs, outputs."""
        return tuple(dict.fromkeys(stop.cause for stop in self.stops if not stop.expected))

    def find(self, path: Path) -> int | None:
        """Number of the leaf that has this path, with its leading collection (`params`) or without it, or None.

        Raises:
          InputError: leaves of two collections fit.
        """
        return self.names.find(path)

    @cached_property
    def names(self) -> Paths:
        return Paths(self.paths)

    def __repr__(self) -> str:
        opaque = f", opaque: {', '.join(self.opaque)}" if self.opaque else ""
        exact = np.count_nonzero(self.exact[1:])
        return f"ChannelGraph({len(self.paths)} arrays, {self.num_units} units, {exact} exact{opaque})"

    def __str__(self) -> str:
        rows = []
        for number, (path, shape, axes) in enumerate(zip(self.paths, self.shapes, self.units, strict=True)):
            stops = [stop for stop in self._stops_of(number) if not stop.cause.endswith("window")]
            held = [f"axis {stop.axis}: {stop.cause}" for stop in stops]
            units = np.unique(np.concatenate([np.zeros(1, np.int64), *axes]))[1:]
            exact = np.count_nonzero(self.exact[units])
            share = "all" if exact == len(units) else f"{exact} of {len(units)}"
            names = "/".join(path), str(shape), " ".join(map(unit_ranges, axes))
            rows.append((*names, share if len(units) else "", "; ".join(held)))
        header = ("array", "shape", "units of each axis, 0 is fixed", "exact", "fixed by")
        return f"{self!r}\n" + columns(header, rows)

    def explain(self, path: str) -> str:
        """What can go of an array, what goes along, and what holds the rest, as text.

        Args:
          path: of the array, with `/` between its parts, with its collection or without.

        Raises:
          InputError: no traced array has this path; the message names the nearest.
        """
        names = ["/".join(known) for known in self.paths]
        number = names.index(path) if path in names else self.find(tuple(path.split("/")))
        if number is None:
            near = difflib.get_close_matches(path, names, 3, 0.3) or names[:3]
            raise InputError(f"There is no array {path}; the nearest are {', '.join(near)}.")
        lines = [f"{'/'.join(self.paths[number])} {self.shapes[number]}"]
        for axis, units in enumerate(self.units[number]):
            own = np.unique(units[units > 0])
            lines.append(f"axis {axis}: {np.count_nonzero(units)} of {len(units)} indices can go")
            if len(own):
                inexact = np.count_nonzero(~self.exact[own])
                lines.append(f"  {f'{inexact} of {len(own)} units are inexact' if inexact else 'cutting is exact'}")
                if not self.choosable[own].all():
                    lines.append("  an element goes with its row or its column, such as a head or a width of all heads")
                lines += [f"  with {place}" for place in self._beside(number, axis, own)]
            lines += [
                f"  held by {stop.cause}" + (f" at {stop.source}" if stop.source else "")
                for stop in self._stops_of(number)
                if stop.axis == axis
            ]
        return "\n".join(lines)

    def _beside(self, number: int, axis: int, units: np.ndarray) -> list[str]:
        """The axes of other arrays on which some of the units stand."""
        found = []
        for other, axes in enumerate(self.units):
            for k, there in enumerate(axes):
                if (other, k) != (number, axis) and (shared := np.isin(units, there).sum()):
                    part = "" if shared == len(units) else f", {shared} of the {len(units)} units"
                    found.append(f"axis {k} of {'/'.join(self.paths[other])}{part}")
        return found if len(found) <= MOST_BESIDE else [*found[:MOST_BESIDE], f"{len(found) - MOST_BESIDE} more axes"]

    def _stops_of(self, number: int) -> list[Stop]:
        return self._stops_by_path.get(self.paths[number], [])

    @cached_property
    def _stops_by_path(self) -> dict[Path, list[Stop]]:
        found: dict[Path, list[Stop]] = {}
        for stop in self.stops:
            found.setdefault(stop.path, []).append(stop)
        return found


def check_size(graph: ChannelGraph, keep: np.ndarray) -> None:
    """Refuse a plan that is for another number of units than the graph has."""
    if len(keep) != graph.num_units + 1:
        sizes = f"The plan is for {len(keep) - 1} units and the graph has {graph.num_units}"
        raise InputError(f"{sizes}; trace the network that the plan was made for.")
