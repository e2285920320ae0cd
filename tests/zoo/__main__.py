"""Print the table of the zoo: `cd tests && python -m zoo`. Two minutes on 2 CPU cores."""

import importlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxslim

from . import Network


def shares(graph: jaxslim.ChannelGraph) -> tuple[int, float, float]:
    """Numbers in all leaves, the share on an axis that can be cut, and the share on an axis of an exact unit."""
    total = can_go = exact = 0
    for shape, axes in zip(graph.shapes, graph.units, strict=True):
        reached = [np.zeros(shape, bool), np.zeros(shape, bool)]
        for k, units in enumerate(axes):
            along = [-1 if axis == k else 1 for axis in range(len(shape))]
            reached[0] |= (units > 0).reshape(along)
            reached[1] |= ((units > 0) & graph.exact[units]).reshape(along)
        total, can_go, exact = total + int(np.prod(shape)), can_go + reached[0].sum(), exact + reached[1].sum()
    return total, can_go / total, exact / total


def difference(network: Network, graph: jaxslim.ChannelGraph) -> float:
    """How far the network without 30 % of its exact units is from the masked one, as a share of the largest output."""
    scores = np.random.default_rng(0).random(graph.num_units + 1)
    chosen = jaxslim.plan(graph, np.where(graph.exact, scores, np.inf), None, threshold=0.3)
    plan = jaxslim.Plan(keep=graph.survivors(chosen.keep | ~graph.exact))
    small, masked = (change(graph, network.variables, plan) for change in (jaxslim.cut, jaxslim.mask))
    got = jax.jit(jaxslim.narrow(network.apply, graph, plan))(small, *network.inputs)
    wanted = jax.jit(network.apply)(masked, *network.inputs)
    gaps = [
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(a)).max())
        for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True)
        if np.shape(a) == np.shape(b)
    ]
    return max(gaps)


def row(network: Network) -> str:
    trained: Any = network.train
    modes = [network.apply]
    if trained is not None:
        modes.append(lambda variables, *inputs: trained(variables, jax.random.key(0), *inputs))
    start = time.perf_counter()
    graph = jaxslim.trace(modes, network.variables, *network.inputs)
    seconds = time.perf_counter() - start
    total, can_go, exact = shares(graph)
    gap = difference(network, graph)
    held = ", ".join(graph.opaque) or "-"
    return f"| {network.name} | {total:,} | {can_go:.1%} | {exact:.1%} | {seconds:.2f} s | {gap:.0e} | {held} |"


def main() -> None:
    print("| Network | Parameters | Can be cut | Exact | Trace | Difference | Held by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        for network in importlib.import_module(f"zoo.{path.stem}").NETWORKS:
            print(row(network), flush=True)


if __name__ == "__main__":
    main()
