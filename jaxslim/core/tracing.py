"""Derives the channel graph of a network from its traced program.

Every index of every parameter axis has an integer id, so an axis of length n is a vector of n ids. One walk over the
jaxpr carries the id vectors along and unites ids that must share their fate; each connected set of ids is one *unit*.
The rules of the primitives are in `rules/`. Nothing here knows Flax, parameter names or BatchNorm.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxslim.core.graph import ChannelGraph, Stop, Work
from jaxslim.core.paths import Path, Paths, leaf_paths
from jaxslim.core.programs import program
from jaxslim.core.rules import RULES
from jaxslim.core.scales import scale_leaves
from jaxslim.core.solve import Solution
from jaxslim.core.sources import source_line
from jaxslim.core.value import Value
from jaxslim.core.walk import Reason, Walk
from jaxslim.core.work import Contraction, contractions
from jaxslim.errors import InputError


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
    scales: dict[int, bool] = {}
    work: list[Contraction] | None = None
    for at, mode in enumerate([apply] if callable(apply) else apply):
        closed, out_shapes = program(mode, variables, *inputs)
        given = [input_value(walk, path, aval.shape) for (path, _), aval in
                 zip(leaf_paths(inputs), closed.in_avals[len(leaves) :], strict=True)]  # fmt: skip
        outs = walk.follow(closed, [*values, *given])
        work = work if at else _work(closed, walk)
        for leaf, batch in scale_leaves(closed, len(leaves)).items():
            scales[leaf] = scales.get(leaf, False) or batch
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
    place = {number: at for at, number in enumerate(order)}
    return _graph(
        Solution(walk, selection=selection),
        walk,
        [leaves[number][0] for number in order],
        [tuple(axis.ids for axis in values[number].axes) for number in order],
        work,
        reads=tuple(number in walk.reads for number in order),
        trained=_trained(leaves, renewed, order),
        scales=tuple(sorted(place[number] for number in scales)),
        batch_scales=tuple(sorted(place[number] for number, batch in scales.items() if batch)),
    )


def input_value(walk: Walk, path: Path, shape: Sequence[int]) -> Value:
    """An input, whose axes all stay."""
    reason = Reason(f"input {'/'.join(path)}".strip(), expected=True)
    return Value(tuple(walk.fixed_axis(n, reason) for n in shape))


def _trained(leaves: list[tuple[Path, Any]], renewed: set[int], order: list[int]) -> tuple[bool, ...]:
    collected = any(path[:1] == ("params",) for path, _ in leaves)
    statistics = renewed if len(renewed) < len(leaves) else set()

    def trained(number: int) -> bool:
        path, leaf = leaves[number]
        is_float = jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else type(leaf), jnp.inexact)
        return is_float and (path[0] == "params" if collected else number not in statistics)

    return tuple(map(trained, order))


def _work(closed: Any, walk: Walk) -> list[Contraction] | None:
    try:
        return contractions(closed, walk.inner[-1])
    except InputError:  # it loops as often as its values say
        return None


def _graph(
    solution: Solution,
    walk: Walk,
    paths: list[Path],
    ids: list[tuple[np.ndarray, ...]],
    work: list[Contraction] | None,
    **rest: Any,
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
    places = np.zeros(count, np.int64)
    places[unit[named]] = solution.places[named]
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
        places=places,
        work=None if work is None else _work_of_units(solution, unit, work),
        **rest,
    )


def _work_of_units(solution: Solution, unit: np.ndarray, work: list[Contraction]) -> tuple[Work, ...]:
    """Contractions in terms of units. A cell of a grid that no leaf has goes with the index along either factor."""
    cells, above = solution.composite
    number = np.arange(len(cells)) - np.searchsorted(cells, cells)  # of the factor
    needed = np.zeros((solution.num, 1 + int(number.max(initial=0))), np.int64)
    loose = unit[cells] < 0
    needed[cells[loose], number[loose]] = unit[above[loose]]
    needed[unit >= 0, 0] = unit[unit >= 0]
    needed = np.maximum(needed, 0)
    return tuple(Work(macs, tuple(needed[solution.of(axis)] for axis in axes)) for macs, axes in work)


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
                stops.append(Stop(path, axis, reason.cause, source_line(reason.source), reason.expected))
    return stops
