"""One battery over the zoo: every network is traced, cut, run, trained and compared with the masked network."""

import functools
import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from zoo import Network, difference, fitted, random_plan

import jaxslim

FAMILIES = sorted(path.stem for path in (Path(__file__).parent / "zoo").glob("[a-z]*.py"))
SAMPLE = 1e-4  # largest difference, relative to the largest output, in float32


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Network, ...]:
    return importlib.import_module(f"zoo.{request.param}").NETWORKS


def test_every_network_of_a_family_is_cut_right(family: tuple[Network, ...]) -> None:
    for network in family:
        graph = jaxslim.trace(network.modes, network.variables, *network.inputs)
        assert {cause.split()[0] for cause in graph.opaque} == set(network.stops), network.name
        lost = random_plan(graph, 0.6, exact=False)
        small = jax.eval_shape(functools.partial(jaxslim.cut, graph, plan=lost), network.variables)
        outputs = jax.eval_shape(jaxslim.narrow(network.apply, graph, lost), small, *network.inputs)
        assert jax.tree.structure(outputs) == jax.tree.structure(
            jax.eval_shape(network.apply, network.variables, *network.inputs)
        )
        if network is family[0] or network is family[-1]:  # `python -m zoo` runs all of them
            check(network, graph, random_plan(graph, 0.6, exact=True), trains=True)
        if network is family[0]:
            check(network, graph, random_plan(graph, 0.3, exact=True), trains=False)


def check(network: Network, graph: jaxslim.ChannelGraph, plan: jaxslim.Plan, *, trains: bool) -> None:
    """Compare with the masked network, in evaluation or in training, by one compiled program."""
    small, masked = (change(graph, network.variables, plan) for change in (jaxslim.cut, jaxslim.mask))
    assert any(np.shape(a) != np.shape(b) for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(masked), strict=True))
    apply = network.train if trains and network.train is not None else network.apply
    first = (jax.random.key(3),) if apply is network.train else ()
    narrowed = jaxslim.narrow(apply, graph, plan)

    @jax.jit
    def both(small: Any, masked: Any, *inputs: Any) -> Any:
        return narrowed(small, *first, *inputs), apply(masked, *first, *inputs)

    got, wanted = both(small, masked, *network.inputs)
    assert difference(fitted(wanted, got, graph, plan), got) < SAMPLE, network.name


def test_optimizer_state_is_cut_with_the_network() -> None:
    for name in ("resnet", "gpt", "recurrent"):
        network = importlib.import_module(f"zoo.{name}").NETWORKS[0]
        graph = jaxslim.trace(network.apply, network.variables, *network.inputs)
        plan = random_plan(graph, 0.5, exact=False)
        optimizer = optax.adam(1e-3)
        small = jaxslim.cut(graph, network.variables, plan)
        state = jaxslim.cut(graph, optimizer.init(network.variables), plan)
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, optimizer.init(small)), name
