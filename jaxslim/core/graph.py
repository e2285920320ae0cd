"""Which channels live and die together, read off the traced program.

Every index of every parameter axis has an integer id, so an axis of length n is a vector of n ids. One walk over the
jaxpr carries the id vectors along and unites ids that must share their fate; each connected set of ids is one *unit*.
The rules of the primitives are in `rules/`. Nothing here knows Flax, parameter names or BatchNorm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxslim.core.paths import Path, Paths, leaf_paths
from jaxslim.core.printing import columns, unit_ranges
from jaxslim.core.rules import RULES
from jaxslim.core.solve import Solution
from jaxslim.core.value import Value
from jaxslim.core.walk import Reason, Walk
from jaxslim.errors import InputError, first_line


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
    reads: tuple[bool, ...] = field(default=())
    """For each leaf, whether a traced mode reads it."""

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
        rows = [
            ("/".join(path), str(shape), " ".join(map(unit_ranges, axes)))
            for path, shape, axes in zip(self.paths, self.shapes, self.units, strict=True)
        ]
        return f"{self!r}\n" + columns(("array", "shape", "units of each axis, 0 is fixed"), rows)


def trace(
    apply: Callable[..., Any] | Sequence[Callable[..., Any]], variables: Any, *inputs: Any, selection: bool = True
) -> ChannelGraph:
    """Derive the channel graph of a network from one abstract evaluation; nothing is computed on a device.

    Args:
      apply: `apply(variables, *inputs)` -> any pytree, for example `module.apply` of a Linen module; or several such
        functions, the modes of one network (evaluation, training): the graph then holds in all of them.
      variables: any pytree of arrays or `jax.ShapeDtypeStruct`s. A leaf that no mode reads has no units.
      *inputs: pytrees of arrays or `ShapeDtypeStruct`s.
      selection: whether channels may go behind a norm that the stream in front of it keeps for other readers (the
        channel selection of Liu et al., ICCV 2017, section 4.5, for pre-activation ResNets and DenseNets). False gives
        uniform widths.

    Returns:
      The `ChannelGraph`. Axes of the inputs and outputs are fixed. An output that stands at the path of a leaf is the
      leaf's new value, such as running statistics, and is cut like the leaf; so is a whole collection of new values
      without its name, as in `(y, new_state)`.

    Raises:
      InputError: `apply` does not run with these variables and inputs.

    Example:
      >>> graph = trace(lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"], {"a": np.ones((3, 8)), "b": np.ones((8, 2))},
      ...               np.ones((1, 3)))
      >>> graph
      ChannelGraph(2 arrays, 8 units, 8 exact)
    """
    leaves = leaf_paths(variables)
    names = Paths(tuple(path for path, _ in leaves))
    walk = Walk(RULES)
    values = [walk.parameter(number, np.shape(leaf)) for number, (_, leaf) in enumerate(leaves)]
    renewed: set[int] = set()
    for mode in [apply] if callable(apply) else apply:
        closed, out_shapes = program(mode, variables, *inputs)
        given = [input_value(walk, path, aval.shape) for (path, _), aval in
                 zip(leaf_paths(inputs), closed.in_avals[len(leaves) :], strict=True)]  # fmt: skip
        outs = walk.follow(closed, [*values, *given])
        named = leaf_paths(out_shapes)
        news = names.renewed([path for path, _ in named])
        for (path, aval), out, number in zip(named, outs, news, strict=True):
            if number is not None and values[number].shape == tuple(aval.shape):
                renewed.add(number)
                for axis, own in zip(out.axes, values[number].axes, strict=True):
                    walk.unite(axis.ids, own.ids)
            else:
                reason = Reason(f"output {'/'.join(path)}".strip(), expected=True)
                for axis in out.axes:
                    walk.fix(axis.ids, reason)
    for number, value in enumerate(values):
        if number not in walk.reads and number not in renewed:
            for axis in value.axes:
                walk.fix(axis.ids, Reason("read by no mode", expected=True))
    order = list(dict.fromkeys([*walk.reads, *range(len(leaves))]))
    return _graph(
        Solution(walk, selection=selection),
        walk,
        [leaves[number][0] for number in order],
        [tuple(axis.ids for axis in values[number].axes) for number in order],
        tuple(number in walk.reads for number in order),
    )


def input_value(walk: Walk, path: Path, shape: Sequence[int]) -> Value:
    """An input, whose axes all stay."""
    reason = Reason(f"input {'/'.join(path)}".strip(), expected=True)
    return Value(tuple(walk.fixed_axis(n, reason) for n in shape))


def program(apply: Callable[..., Any], variables: Any, *inputs: Any) -> tuple[Any, Any]:
    """The jaxpr of `apply(variables, *inputs)` and the shapes of its outputs; an InputError where it does not run."""
    try:
        return jax.make_jaxpr(apply, return_shape=True)(variables, *inputs)
    except InputError:
        raise
    except Exception as error:  # whatever the network, Flax and JAX find wrong
        reason = first_line(error).partition(" (http")[0]  # Flax appends the address of a page
        advice = "pass its apply, all that its init returned, and inputs that it was made for."
        raise InputError(f"The network cannot be applied ({reason}); {advice}") from error


def _graph(
    solution: Solution, walk: Walk, paths: list[Path], ids: list[tuple[np.ndarray, ...]], reads: tuple[bool, ...]
) -> ChannelGraph:
    """Number the classes that leaves have, in order, then those above them."""
    classes = [tuple(solution.of(axis) for axis in axes) for axes in ids]
    unit = np.full(solution.num, -1)
    unit[solution.fixed] = 0
    below, above = np.concatenate([solution.selected, solution.composite], axis=1)
    count = 1
    wave = np.concatenate([np.zeros(0, np.int64), *(axis for axes in classes for axis in axes)])
    while len(wave):
        fresh, first = np.unique(wave[unit[wave] < 0], return_index=True)
        fresh = fresh[np.argsort(first)]
        unit[fresh] = np.arange(count, count + len(fresh))
        count += len(fresh)
        wave = above[np.isin(below, fresh)]
    choosable = np.ones(count, bool)
    choosable[0] = False
    cells = unit[solution.composite[0]]
    choosable[cells[cells > 0]] = False
    exact, closed = np.ones(count, bool), np.zeros(count, bool)
    named = unit >= 0
    exact[unit[named & solution.inexact]] = False
    closed[unit[named & solution.closed]] = True
    exact[0], closed[0] = True, False
    pairs = unit[np.stack([below, above])]
    return ChannelGraph(
        paths=tuple(paths),
        shapes=tuple(tuple(map(len, axes)) for axes in ids),
        units=tuple(tuple(unit[axis] for axis in axes) for axes in classes),
        num_units=count - 1,
        exact=exact,
        choosable=choosable,
        below=pairs[:, (pairs > 0).all(0)],
        closed=closed,
        stops=tuple(_stops(solution, walk, paths, classes)),
        reads=reads,
    )


def _stops(solution: Solution, walk: Walk, paths: list[Path], classes: list[tuple[np.ndarray, ...]]) -> list[Stop]:
    """For each axis with fixed indices, the first reasons, those before all that somebody may not expect."""
    by_class: dict[int, list[Reason]] = {}
    for number, reason in zip(solution.label[: solution.reasons][::-1], walk.reasons, strict=True):
        by_class.setdefault(int(number), []).append(reason)
    stops = []
    for path, axes in zip(paths, classes, strict=True):
        for axis, own in enumerate(axes):
            found = [reason for number in np.unique(own[solution.fixed[own]]).tolist() for reason in by_class[number]]
            if found:
                reason = next((one for one in found if not one.expected), found[0])
                stops.append(Stop(path, axis, reason.cause, _source(reason.source), reason.expected))
    return stops


def _source(infos: Any) -> str:
    """File, line and function of the innermost frame outside JAX, its libraries and this package."""
    for info in infos:
        for frame in info.traceback.frames if info is not None and info.traceback is not None else ():
            if not any(part in frame.file_name for part in _INNER):
                return f"{frame.file_name}:{frame.line_num} ({frame.function_name.rpartition('<locals>.')[2]})"
    return ""


_INNER = ("<", *(f"/{package}/" for package in ("site-packages", "jaxslim/core", "jaxslim/slim", "importlib")))
