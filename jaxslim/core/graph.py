"""Which channels live and die together, read off the traced program.

Every index of every parameter axis has an integer id, so an axis of length n is a vector of n ids. One walk over the
jaxpr carries the id vectors along and unites ids that must share their fate; each connected set of ids is one *unit*.
The rules of the primitives are in `rules/`. Nothing here knows Flax, parameter names or BatchNorm.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxslim.core.printing import columns, unit_ranges
from jaxslim.core.rules import RULES
from jaxslim.core.value import Value, fixed_axes
from jaxslim.core.walk import Walk
from jaxslim.errors import InputError, first_line

Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ChannelGraph:
    """The prunable units of one traced network. Leaves are numbered in the order the program first reads them."""

    paths: tuple[Path, ...]
    """Path of each leaf of the traced variables."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of each leaf."""
    units: tuple[tuple[np.ndarray, ...], ...]
    """For each leaf and axis, the unit of each index: 0 is fixed, 1 to `num_units` can be cut."""
    vectors: tuple[bool, ...]
    """Whether each leaf acts as a vector (a bias, a norm's scale or statistic), alone or as a slice in a scan."""
    num_units: int
    """Number of units, without unit 0, which collects everything fixed."""
    exact: np.ndarray
    """bool (num_units + 1,): whether zeroing the vectors of a unit gives the same outputs as cutting the unit out, in a
    network that does not compute with its widths as numbers."""
    opaque: tuple[str, ...]
    """Primitives without a rule that fixed a channel. An array that is no parameter also fixes the channels it meets;
    it is not named."""

    def find(self, path: Path) -> int | None:
        """Number of the leaf that `path` names, or None.

        `path` matches the leaf whose path it ends with; the leaf's leading collection (`params`) may be missing. Paths
        into `variables`, `variables["params"]` and optimizer state over either all resolve.

        Raises:
          InputError: the path matches leaves of two collections that are cut differently.
        """
        tails = (path[start:] for start in range(len(path) + 1))
        found = next((self._numbers[tail] for tail in tails if tail in self._numbers), None)
        if found is None:
            return None
        first, *others = found
        for other in others:
            if [ids.tolist() for ids in self.units[first]] != [ids.tolist() for ids in self.units[other]]:
                names = " and ".join("/".join(self.paths[number]) for number in (first, other))
                raise InputError(f"{'/'.join(path)} can mean {names}; pass the tree with its collections.")
        return first

    @cached_property
    def _numbers(self) -> dict[Path, list[int]]:
        """Numbers of the leaves that a path can mean, with their collection or without it."""
        numbers = defaultdict(list)
        for number, path in enumerate(self.paths):
            if len(path) > 1:
                numbers[path[1:]].append(number)
        return numbers | {path: [number] for number, path in enumerate(self.paths)}

    def __repr__(self) -> str:
        opaque = f", opaque: {' '.join(self.opaque)}" if self.opaque else ""
        exact = np.count_nonzero(self.exact[1:])
        return f"ChannelGraph({len(self.paths)} arrays, {self.num_units} units, {exact} exact{opaque})"

    def __str__(self) -> str:
        rows = [
            ("/".join(path), str(shape), " ".join(map(unit_ranges, axes)))
            for path, shape, axes in zip(self.paths, self.shapes, self.units, strict=True)
        ]
        return f"{self!r}\n" + columns(("array", "shape", "units of each axis, 0 is fixed"), rows)


def trace(apply: Callable[..., Any], variables: Any, images: Any) -> ChannelGraph:
    """Derive the channel graph of a network from one abstract evaluation; nothing is computed on a device.

    The cut network has to run, so `apply` must take its widths from its parameters or from shapes: slices and splits as
    shares of an axis, one group per channel as many groups as there are channels. A network that computes with a width
    as a number, such as 1 / sqrt(width), computes something else after the cut.

    Args:
      apply: `apply(variables, images)` -> logits, for example `module.apply` of a Linen module.
      variables: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      images: array or `ShapeDtypeStruct` of the input, batch first.

    Returns:
      The `ChannelGraph`. Axes of the inputs and outputs are fixed.

    Raises:
      InputError: `apply` does not run with these variables and images.

    Example:
      >>> graph = trace(lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"], {"a": np.ones((3, 8)), "b": np.ones((8, 2))},
      ...               np.ones((1, 3)))
      >>> graph
      ChannelGraph(2 arrays, 8 units, 0 exact)
    """
    leaves = leaf_paths(variables)
    closed = program(apply, variables, images)
    walk = Walk(RULES)
    values = [walk.parameter(number, np.shape(leaf)) for number, (_, leaf) in enumerate(leaves)]
    inputs = [Value(fixed_axes(aval.shape)) for aval in closed.in_avals[len(leaves) :]]
    for out in walk.follow(closed, [*values, *inputs]):
        for axis in out.axes:
            walk.fix(axis.ids)
    walk.resolve_merges()

    order = list(dict.fromkeys([*walk.reads, *range(len(leaves))]))
    units, exact = _units([[axis.ids for axis in values[leaf].axes] for leaf in order], walk)
    return ChannelGraph(
        paths=tuple(leaves[leaf][0] for leaf in order),
        shapes=tuple(np.shape(leaves[leaf][1]) for leaf in order),
        units=units,
        vectors=tuple(leaf in walk.vectors for leaf in order),
        num_units=len(exact) - 1,
        exact=exact,
        opaque=tuple(walk.opaque),
    )


def program(apply: Callable[..., Any], variables: Any, images: Any) -> Any:
    """The jaxpr of `apply(variables, images)`; an InputError where it does not run."""
    try:
        return jax.make_jaxpr(apply)(variables, images)
    except InputError:
        raise
    except Exception as error:  # whatever the network, Flax and JAX find wrong
        reason = first_line(error).partition(" (http")[0]  # Flax appends the address of a page
        advice = "pass its apply, all that its init returned, and a batch of images that it was made for."
        raise InputError(f"The network cannot be applied ({reason}); {advice}") from error


def leaf_paths(tree: Any) -> list[tuple[Path, Any]]:
    """Each leaf of a pytree with its path as plain names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf) for path, leaf in leaves]


def _units(leaves: list[list[np.ndarray]], walk: Walk) -> tuple[tuple[tuple[np.ndarray, ...], ...], np.ndarray]:
    """`ChannelGraph.units` and `ChannelGraph.exact` from the ids of each axis of each leaf.

    Units are numbered in the order they appear; unit 0 is what is connected to `FIXED`.
    """
    group = walk.components()
    appearing = group[np.concatenate([np.zeros(1, np.int64), *(ids for axes in leaves for ids in axes)])]
    groups, first = np.unique(appearing, return_index=True)  # the group of FIXED appears first
    unit = np.zeros(len(group), np.int64)
    unit[groups[np.argsort(first)]] = np.arange(len(groups))
    exact = np.ones(len(groups), bool)
    for ids in walk.inexact:
        exact[unit[group[ids]]] = False
    exact[0] = True
    return tuple(tuple(unit[group[ids]] for ids in axes) for axes in leaves), exact
