"""Print the table of the zoo: `cd tests && python -m zoo`. Four minutes on 2 CPU cores."""

import contextlib
import importlib
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import jaxslim

from . import Network, difference, fitted, random_plan


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


def row(network: Network) -> str:
    start = time.perf_counter()
    graph = jaxslim.trace(network.modes, network.variables, *network.inputs)
    seconds = time.perf_counter() - start
    total, can_go, exact = shares(graph)
    plan = random_plan(graph, 0.3, exact=True)
    small, masked = (change(graph, network.variables, plan) for change in (jaxslim.cut, jaxslim.mask))
    got = jax.jit(jaxslim.narrow(network.apply, graph, plan))(small, *network.inputs)
    gap = difference(fitted(jax.jit(network.apply)(masked, *network.inputs), got, graph, plan), got)
    held = ", ".join(graph.opaque) or "-"
    shown = f"{seconds:.2f} s | {gap:.0e} | {exported(network)}"
    return f"| {network.name} | {total:,} | {can_go:.1%} | {exact:.1%} | {shown} | {held} |"


def exported(network: Network) -> str:
    """How far onnxruntime's outputs of the network's ONNX file are from JAX's, or what the file lacks."""
    with tempfile.TemporaryDirectory() as folder:
        for open_batch in (True, False):
            with contextlib.suppress(jaxslim.InputError):
                how = {"open_batch": open_batch}
                done = jaxslim.export(f"{folder}/net.onnx", network.apply, network.variables, *network.inputs, **how)
                return f"{done.difference:.0e}{'' if open_batch else ', fixed batch'}"
    return "-"


def main() -> None:
    print("| Network | Parameters | Can be cut | Exact | Trace | Difference | ONNX | Held by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        for network in importlib.import_module(f"zoo.{path.stem}").NETWORKS:
            print(row(network), flush=True)


if __name__ == "__main__":
    main()
