"""Which channels live and die together, read off the traced program.

Every index of every parameter axis gets an integer id, so an axis of length n is a vector of n ids. One walk over the
jaxpr carries id vectors along and unites those that must share their fate; what ends up connected is one *unit*. The
per-primitive rules are in `rules/`. Nothing here knows of Flax, of parameter names or of BatchNorm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxslim.core.rules import RULES
from jaxslim.core.walk import Walk
from jaxslim.errors import InputError, first_line

Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
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
    """How many units there are; unit 0, which collects everything fixed, is not counted."""
    exact: np.ndarray
    """bool (num_units + 1,): whether zeroing the vectors of a unit gives the same outputs as cutting the unit out, in a
    network that does not compute with its widths as numbers."""
    opaque: tuple[str, ...]
    """Primitives that fixed a channel, since no rule follows it through them. A channel that meets an array which is no
    parameter is fixed too, and nothing is named."""

    def find(self, path: Path) -> int | None:
        """Number of the leaf that `path` names, or None.

        A path names the leaf whose own path, whole or without the first part (a collection such as `params`), it ends
        with; so the paths of `variables`, of `variables["params"]` and of optimizer states over either all work.

        Raises:
          InputError: two collections have leaves of that name that are cut differently.
        """
        for start in range(len(path) + 1):
            tail = path[start:]
            if tail in self.paths:
                return self.paths.index(tail)
            found = [i for i, own in enumerate(self.paths) if tail and own[1:] == tail]
            for other in found[1:]:
                if not _same(self.units[found[0]], self.units[other]):
                    names = " and ".join("/".join(self.paths[i]) for i in (found[0], other))
                    raise InputError(f"{'/'.join(path)} can mean {names}; pass the tree with its collections.")
            if found:
                return found[0]
        return None


def trace(apply: Callable[..., Any], variables: Any, images: Any) -> ChannelGraph:
    """Derive the channel graph of a network from one abstract evaluation; nothing is computed on a device.

    Args:
      apply: `apply(variables, images)` -> logits, for example `module.apply` of a Linen module. For the cut network to
        run, it must take its widths from its parameters or from shapes: slices and splits as shares of an axis, groups
        of one channel as many as there are channels. One that computes with a width as a number, say 1 / sqrt(width),
        computes something else after the cut.
      variables: any pytree of arrays or `jax.ShapeDtypeStruct`s.
      images: array or `ShapeDtypeStruct` of the input, batch first.

    Returns:
      The `ChannelGraph`. Axes of the inputs and outputs are fixed.

    Raises:
      InputError: `apply` does not run with these variables and images.

    Example:
      >>> graph = trace(lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"], {"a": np.ones((3, 8)), "b": np.ones((8, 2))},
      ...               np.ones((1, 3)))
      >>> graph.num_units
      8
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    closed = program(apply, variables, images)
    walk = Walk(RULES)
    values = [walk.parameter(number, np.shape(leaf)) for number, (_, leaf) in enumerate(leaves)]
    inputs = [walk.fixed(aval.shape) for aval in closed.in_avals[len(leaves) :]]
    for out in walk.follow(closed, [*values, *inputs]):
        for ids in out.ids:
            walk.fix(ids)

    order = list(dict.fromkeys([*walk.reads, *range(len(leaves))]))
    per_leaf = [value.ids for value in values]
    units, num_units, exact = _number([axis for leaf in order for axis in per_leaf[leaf]], walk)
    per_axis = iter(units)
    return ChannelGraph(
        paths=tuple(_names(leaves[leaf][0]) for leaf in order),
        shapes=tuple(tuple(np.shape(leaves[leaf][1])) for leaf in order),
        units=tuple(tuple(next(per_axis) for _ in per_leaf[leaf]) for leaf in order),
        vectors=tuple(leaf in walk.vectors for leaf in order),
        num_units=num_units,
        exact=exact,
        opaque=tuple(walk.opaque),
    )


def program(apply: Callable[..., Any], variables: Any, images: Any) -> Any:
    """The jaxpr of `apply(variables, images)`.

    Raises:
      InputError: there is none.
    """
    try:
        return jax.make_jaxpr(apply)(variables, images)
    except InputError:
        raise
    except Exception as error:  # whatever the network, Flax and JAX find wrong
        reason = first_line(error).partition(" (http")[0]  # Flax names a page
        raise InputError(
            f"The network cannot be applied ({reason}); pass its apply, all that its init returned, and a batch of "
            "images that it was made for."
        ) from error


def leaf_paths(tree: Any) -> list[tuple[Path, Any]]:
    """Each leaf of a pytree with its path as plain names."""
    return [(_names(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _names(path: Any) -> Path:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _number(axes: list[np.ndarray], walk: Walk) -> tuple[list[np.ndarray], int, np.ndarray]:
    """Turn ids into units, numbered in the order of `axes`, with 0 for what is connected to id 0."""
    walk.settle_merges()
    group = walk.components()
    flat = group[np.concatenate([*axes, np.zeros(0, np.int64)])]
    groups, first = np.unique(flat[flat != group[0]], return_index=True)
    numbers = np.zeros(walk.size, np.int64)
    numbers[groups[np.argsort(first)]] = np.arange(1, len(groups) + 1)
    exact = np.ones(len(groups) + 1, bool)
    exact[numbers[group[np.concatenate([*walk.inexact, np.zeros(0, np.int64)])]]] = False
    exact[0] = True
    units = np.split(numbers[flat], np.cumsum([len(axis) for axis in axes])[:-1]) if axes else []
    return units, len(groups), exact


def _same(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
