"""Two cuts, one after the other, as one plan."""

import numpy as np

from jaxslim.core.graph import ChannelGraph, check_size
from jaxslim.core.plan import Layer, Plan
from jaxslim.errors import InputError


def compose(graph: ChannelGraph, plan: Plan, next_graph: ChannelGraph, next_plan: Plan) -> Plan:
    """The plan that cuts at once what `plan` and then `next_plan` cut.

    Args:
      graph: of the full network.
      plan: of the first cut.
      next_graph: of the cut network, for example `trace(narrow(apply, graph, plan), small, *inputs)`.
      next_plan: of the second cut, made for `next_graph`.

    Returns:
      A plan for `graph`. Its layers are those that both plans score.

    Raises:
      InputError: a plan is not for its graph, `next_graph` is not of the network that `plan` leaves, or the second cut
        takes a part of what `graph` holds together.
    """
    check_size(graph, plan.keep)
    check_size(next_graph, next_plan.keep)
    alive, left = graph.survivors(plan.keep), next_graph.survivors(next_plan.keep)
    keep, cuts = alive.copy(), []
    on_leaf = np.zeros(len(keep), bool)
    for path, axes in zip(graph.paths, graph.units, strict=True):
        number = next_graph.find(path)
        small = [units[alive[units]] for units in axes]
        shape = tuple(map(len, small))
        if number is None or next_graph.shapes[number] != shape:
            there = "nothing" if number is None else f"shape {next_graph.shapes[number]}"
            raise InputError(
                f"The first plan leaves {'/'.join(path)} of shape {shape}, and the second graph has {there} there; "
                "trace the network that the first plan leaves."
            )
        for units, own, new in zip(axes, small, next_graph.units[number], strict=True):
            keep[own[~left[new]]] = False
            on_leaf[units] = True
            cuts.append((path, units, own[left[new]]))

    # Rows and columns of a grid may stand on no leaf: such a unit goes if all below it are gone.
    below, above = graph.below
    some = np.zeros(len(keep), bool)
    np.logical_or.at(some, above, keep[below])
    has_below = np.isin(np.arange(len(keep)), above)
    keep = graph.survivors(keep & (on_leaf | some | ~has_below))
    for path, units, wanted in cuts:
        if not np.array_equal(units[keep[units]], wanted):
            raise InputError(
                f"The second plan cuts a part of {'/'.join(path)} that the first graph holds together; make it with "
                "scores on the first graph."
            )
    return Plan(
        keep=keep,
        requested=None,
        achieved=1 - (1 - plan.achieved) * (1 - next_plan.achieved),
        layers=tuple(_merged(plan.layers, next_plan.layers)),
    )


def _merged(first: tuple[Layer, ...], second: tuple[Layer, ...]) -> list[Layer]:
    later = {layer.name: layer for layer in second}
    return [
        Layer(name, before, later[name].after, protected or later[name].protected)
        for name, before, _, protected in first
        if name in later
    ]
