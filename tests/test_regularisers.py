"""Group lasso over units, and masks of the graph: by hand, in NumPy, as a gradient, and by what a cut then leaves."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Network, networks

import jaxslim
from jaxslim.core.groups import groups
from jaxslim.core.paths import leaf_paths

STRENGTH, RATE = 0.01, 0.5


def dense(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["a"] + params["bias"][None]) @ params["b"]


def two_units() -> Any:
    """The elements of the first unit are 3, 4, 12 (norm 13), those of the second 0.3, 0, 0.4 (norm 0.5)."""
    return {
        "a": jnp.array([[3.0, 0.3]]),
        "bias": jnp.array([4.0, 0.0]),
        "b": jnp.array([[12.0], [0.4]]),
    }


def traced(params: Any, apply: Any = dense) -> jaxslim.ChannelGraph:
    return jaxslim.trace(apply, params, np.ones((2, len(params["a"])), np.float32))


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def pull_of(tx: optax.GradientTransformation, params: Any, updates: Any = None) -> Any:
    """What one compiled update of a transform gives for updates, or for zeros."""
    return jax.jit(tx.update)(zeros(params) if updates is None else updates, tx.init(params), params)[0]


# Values by hand


def test_the_subgradient_by_hand() -> None:
    params = two_units()
    pull = pull_of(jaxslim.group_lasso_subgradient(STRENGTH, traced(params)), params)
    force = STRENGTH * math.sqrt(3)
    np.testing.assert_allclose(pull["a"], [[force * 3 / 13, force * 0.6]], rtol=1e-6)
    np.testing.assert_allclose(pull["bias"], [force * 4 / 13, 0], rtol=1e-6)
    np.testing.assert_allclose(pull["b"], [[force * 12 / 13], [force * 0.8]], rtol=1e-6)


def test_the_subgradient_comes_on_top_of_the_gradient() -> None:
    params = two_units()
    tx, gradients = jaxslim.group_lasso_subgradient(STRENGTH, traced(params)), jax.tree.map(lambda p: p + 1, params)
    expected = jax.tree.map(jnp.add, gradients, pull_of(tx, params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), pull_of(tx, params, gradients), expected)


def test_the_proximal_step_by_hand() -> None:
    """The threshold, 0.5 * sqrt(3), is over the norm of the second unit after the step."""
    params = two_units()
    updates = zeros(params) | {"bias": jnp.array([0.0, 0.3])}
    tx = jaxslim.group_lasso_proximal(1.0, 0.5, traced(params))
    after = optax.apply_updates(params, pull_of(tx, params, updates))
    left = 1 - 0.5 * math.sqrt(3) / 13
    np.testing.assert_allclose(after["a"], [[3 * left, 0]], rtol=1e-6)
    np.testing.assert_allclose(after["bias"], [4 * left, 0], rtol=1e-6)
    np.testing.assert_allclose(after["b"], [[12 * left], [0]], rtol=1e-6)
    assert [float(leaf.ravel()[-1]) for leaf in after.values()] == [0, 0, 0]


def test_an_element_of_two_units_is_pulled_by_both() -> None:
    """The middle kernel, (1, 1), goes with its input channel and with its output channel."""
    params = {"a": jnp.array([[3.0]]), "m": jnp.array([[4.0]]), "b": jnp.array([[3.0]])}
    graph = traced(params, lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["m"]) @ p["b"])
    pull = pull_of(jaxslim.group_lasso_subgradient(1.0, graph), params)
    root = math.sqrt(2)
    expected = {"a": [[root * 0.6]], "m": [[2 * root * 0.8]], "b": [[root * 0.6]]}
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
        pull,
        jax.tree.map(np.array, expected, is_leaf=lambda x: isinstance(x, list)),
    )
    change = pull_of(jaxslim.group_lasso_proximal(1.0, 1.0, graph), params)
    np.testing.assert_allclose(change["m"] + 4, [[4 * (1 - root / 5) ** 2]], rtol=1e-6)


def test_weak_units_of_a_layer_are_pulled_harder() -> None:
    """DepGraph's weights: 1 for the strongest unit of a layer, 2 ** alpha for the weakest."""
    params = {
        "a": jnp.array([[3.0, 0.0, 5.0]]),
        "bias": jnp.array([4.0, 6.0, 12.0]),
        "b": jnp.array([[0.0], [8.0], [0.0]]),
    }  # norms 5, 10 and 13
    graph = traced(params)
    plain, weighed = (pull_of(jaxslim.group_lasso_subgradient(1.0, graph, alpha=alpha), params) for alpha in (0, 4))
    np.testing.assert_allclose(weighed["bias"] / plain["bias"], [16, 2 ** (4 * 3 / 8), 1], rtol=1e-5)


def test_the_strength_may_grow_with_the_steps() -> None:
    params = two_units()
    graph, half = traced(params), 0.5 * math.sqrt(3) / 13
    grow = optax.linear_schedule(0.0, 1.0, 2)
    for tx, expected in (
        (jaxslim.group_lasso_subgradient(grow, graph), [0, 4 * half, 8 * half]),
        (jaxslim.group_lasso_proximal(grow, lambda step: 1.0, graph), [0, -4 * half, -8 * half]),
        (jaxslim.group_lasso_proximal(1.0, grow, graph), [0, -4 * half, -8 * half]),
    ):
        state = tx.init(params)
        for value in expected:
            updates, state = jax.jit(tx.update)(zeros(params), state, params)
            np.testing.assert_allclose(updates["bias"][0], value, rtol=1e-5)


@pytest.mark.parametrize("make", [jaxslim.group_lasso_subgradient, None])
def test_units_at_zero_stay_and_a_strength_of_zero_does_nothing(make: Any) -> None:
    params = zeros(two_units()) | {"a": jnp.array([[0.0, 2.0]])}
    graph = traced(params)
    made = [make(s, graph) if make else jaxslim.group_lasso_proximal(s, 0.1, graph) for s in (0.5, 0.0)]
    strong, none = (pull_of(tx, params) for tx in made)
    assert strong["a"][0, 0] == strong["bias"][0] == strong["b"][0, 0] == 0
    assert strong["a"][0, 1] != 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(none))


# Against NumPy


def going_with(graph: jaxslim.ChannelGraph, unit: int) -> set[int]:
    """The unit and all units below it."""
    found, waiting = {unit}, [unit]
    while waiting:
        top = waiting.pop()
        new = {int(below) for below, above in graph.below.T if above == top} - found
        found |= new
        waiting += new
    return found


def slices(graph: jaxslim.ChannelGraph, unit: int, params: Any) -> list[tuple[int, Any]]:
    """Each parameter's number in the tree and where the elements of a unit stand, once for each axis."""
    goes, found = list(going_with(graph, unit)), []
    for at, (path, _) in enumerate(leaf_paths(params)):
        for axis, units in enumerate(graph.units[graph.find(path)]):
            where = np.isin(units, goes)
            if where.any():
                found.append((at, (slice(None),) * axis + (where,)))
    return found


def each_unit(graph: jaxslim.ChannelGraph, params: Any) -> list[tuple[int, list[tuple[int, Any]], float, float]]:
    """Each choosable unit, its slices, their norm, and the root of the number of their elements."""
    leaves, found = jax.tree.leaves(params), []
    for unit in np.flatnonzero(graph.choosable):
        own = slices(graph, unit, params)
        parts = np.concatenate([np.ravel(leaves[at][where]) for at, where in own] or [np.zeros(0)])
        found.append((unit, own, np.linalg.norm(parts.astype(np.float64)), math.sqrt(parts.size)))
    return found


def by_numpy(graph: jaxslim.ChannelGraph, params: Any, method: str, alpha: float) -> Any:
    """What the transforms make of zero updates."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    pulls, factors = [np.zeros_like(leaf) for leaf in leaves], [np.ones_like(leaf) for leaf in leaves]
    all_units, layer = each_unit(graph, params), groups(graph)
    for unit, own, norm, root in all_units:
        norms = [other for at, _, other, size in all_units if layer[at] == layer[unit] and size]
        if root and max(norms) > min(norms):
            root *= 2 ** (alpha * (max(norms) - norm) / (max(norms) - min(norms)))
        for at, where in own:
            pulls[at][where] += STRENGTH * root * leaves[at][where] / norm
            factors[at][where] *= max(0, 1 - RATE * STRENGTH * root / norm)
    found = pulls if method == "subgradient" else [f * leaf - leaf for f, leaf in zip(factors, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def transform(method: str, graph: jaxslim.ChannelGraph, **options: Any) -> optax.GradientTransformation:
    if method == "subgradient":
        return jaxslim.group_lasso_subgradient(STRENGTH, graph, **options)
    return jaxslim.group_lasso_proximal(STRENGTH, RATE, graph, **options)


@settings(max_examples=5)
@given(networks(), st.sampled_from(["subgradient", "proximal"]), st.sampled_from([0.0, 4.0]))
def test_random_networks_against_numpy(network: Network, method: str, alpha: float) -> None:
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network.init())
    graph, params = jaxslim.trace(network, variables, network.images()), variables["params"]
    found, expected = pull_of(transform(method, graph, alpha=alpha), params), by_numpy(graph, params, method, alpha)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)


def heads(params: Any, x: Any) -> Any:
    """Units are heads and their widths; an element of `a` belongs to one of each."""
    split = (x @ params["a"]).reshape(len(x), 2, 3)
    return jnp.einsum("bhd,hd->b", jnp.tanh(split), params["b"])[:, None] * jnp.ones((1, 2))


@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_elements_of_a_grid_go_with_their_row_and_their_column(method: str) -> None:
    params = {"a": jnp.array([[1.0, 2, 3, 4, 5, 6]]), "b": jnp.array([[1.0, -1, 2], [0, 1, 1]])}
    graph = traced(params, heads)
    assert not graph.choosable[graph.units[graph.find(("a",))][1]].any()
    found, expected = pull_of(transform(method, graph), params), by_numpy(graph, params, method, 0)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)
    row, column = (math.sqrt(n) / math.sqrt(norm) for n, norm in ((6, 14 + 6), (4, 17 + 1)))
    if method == "subgradient":
        np.testing.assert_allclose(found["a"][0, 0], STRENGTH * (row + column), rtol=1e-5)


def chain(params: Any, x: Any) -> Any:
    return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["c"]


@pytest.mark.parametrize("apply", [chain, heads])
def test_the_subgradient_is_the_gradient_of_the_penalty(apply: Any) -> None:
    shapes = {"a": (2, 4), "b": (4, 3), "c": (3, 2)} if apply is chain else {"a": (1, 6), "b": (2, 3)}
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    graph = traced(params, apply)
    units = [(own, root) for _, own, _, root in each_unit(graph, params) if own]
    assert len(units) == (7 if apply is chain else 5)

    def penalty(params: Any) -> Any:
        leaves = jax.tree.leaves(params)
        return STRENGTH * sum(root * jnp.sqrt(sum((leaves[at][w] ** 2).sum() for at, w in own)) for own, root in units)

    found = pull_of(jaxslim.group_lasso_subgradient(STRENGTH, graph), params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, jax.jit(jax.grad(penalty))(params))


# What it is for


def test_whole_units_reach_zero_and_their_cut_changes_nothing() -> None:
    """Four hidden channels of eight are weak; nothing normalises them."""
    rng = np.random.default_rng(0)
    size = np.array([1, 0.01, 1, 0.02, 1, 0.01, 1, 0.03])
    params = {
        "a": jnp.asarray(rng.normal(size=(5, 8)) * size, jnp.float32),
        "bias": jnp.asarray(rng.normal(size=8) * size, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(8, 3)) * size[:, None], jnp.float32),
    }
    graph, x = traced(params), rng.normal(size=(4, 5)).astype(np.float32)
    tx = optax.chain(optax.sgd(0.1), jaxslim.group_lasso_proximal(0.01, 0.1, graph))
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(40):
        updates, state = step(zeros(params), state, params)
        params = optax.apply_updates(params, updates)
    for leaf in (params["a"].T, params["bias"][:, None], params["b"]):
        assert (jnp.abs(leaf).max(1) == 0).tolist() == [False, True] * 4
    pruned = jaxslim.prune(dense, params, 0.5, x, scores=jaxslim.criteria.magnitude)
    assert pruned.variables["a"].shape == (5, 4)
    np.testing.assert_allclose(pruned.module(pruned.variables, x), dense(params, x), rtol=1e-5, atol=1e-6)


# Which parameters


def test_what_has_no_units_or_is_not_trained_stays() -> None:
    def apply(variables: Any, x: Any) -> Any:
        p, stats = variables["params"], variables["stats"]
        return jax.nn.relu((x @ p["a"] - stats["mean"][None]) * p["gain"]) @ p["b"] + p["out"][None]

    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2)), "gain": jnp.ones(()), "out": jnp.ones(2)}
    variables = {"params": params, "stats": {"mean": jnp.ones(3)}}
    graph = jaxslim.trace(apply, variables, np.ones((4, 2), np.float32))
    whole = pull_of(jaxslim.group_lasso_subgradient(1.0, graph), variables)
    assert whole["stats"]["mean"].tolist() == [0, 0, 0]
    assert not whole["params"]["gain"].any()
    assert not whole["params"]["out"].any()
    np.testing.assert_allclose(whole["params"]["a"], np.ones((2, 3)))  # sqrt(4) * 1 / 2
    part = pull_of(jaxslim.group_lasso_subgradient(1.0, graph), params)
    jax.tree.map(np.testing.assert_array_equal, part, whole["params"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_types_stay_and_norms_are_added_up_in_float32(method: str, dtype: Any) -> None:
    """The sum of the squares, 3 * 300 ** 2, lies beyond float16, and a bfloat16 sum stops growing early."""
    params = {"a": jnp.full((2, 600), 300, dtype), "b": jnp.full((600, 1), 300, dtype)}
    graph = traced(params, lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"])
    options: Any = {"subgradient": jaxslim.group_lasso_subgradient(1.0, graph)}
    options["proximal"] = jaxslim.group_lasso_proximal(100.0, 1.0, graph)
    updates = pull_of(options[method], params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    expected = 1.0 if method == "subgradient" else -100.0  # each element is as large as the root mean square
    np.testing.assert_allclose(updates["a"].astype(np.float32), expected, rtol=1e-2)


class Normed(nn.Module):
    """A BatchNorm and a LayerNorm between dense layers, and a LayerNorm whose channels the input fixes."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.LayerNorm(name="fixed")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="batch")(nn.Dense(4, name="one")(x)))
        x = nn.relu(nn.LayerNorm(name="layer")(nn.Dense(4, name="two")(x)))
        return nn.Dense(2, name="three")(x)


def named(mask: Any) -> set[str]:
    return {"/".join(path) for path, use in leaf_paths(mask) if use}


def test_scales_of_a_linen_module() -> None:
    variables = Normed().init(jax.random.key(0), jnp.ones((2, 3)))
    graph = jaxslim.trace(Normed().apply, variables, np.ones((2, 3), np.float32))
    mask = jaxslim.scale_mask(graph, variables["params"])
    assert jax.tree.structure(mask) == jax.tree.structure(variables["params"])
    assert named(mask) == {"batch/scale", "layer/scale"}
    assert named(jaxslim.scale_mask(graph, variables)) == {"params/batch/scale", "params/layer/scale"}
    only = jaxslim.scale_mask(graph, variables["params"], batch_only=True)
    assert only == jaxslim.bn_scale_mask(variables)
    pulled = pull_of(jaxslim.l1_subgradient(0.5, mask), variables["params"])
    assert pulled["layer"]["scale"].tolist() == [0.5] * 4
    assert pulled["fixed"]["scale"].tolist() == [0] * 3


def test_scales_of_a_plain_function_have_any_name() -> None:
    params = {"a": jnp.ones((2, 3)), "gamma": jnp.ones(3), "bias": jnp.ones(3), "b": jnp.ones((3, 2))}
    graph = traced(params, lambda p, x: jax.nn.relu(p["gamma"][None] * (x @ p["a"]) + p["bias"][None]) @ p["b"])
    assert named(jaxslim.scale_mask(graph, params)) == {"gamma"}


class NNX(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.one, self.norm, self.two = (
            nnx.Linear(3, 4, rngs=rngs),
            nnx.LayerNorm(4, rngs=rngs),
            nnx.Linear(4, 2, rngs=rngs),
        )

    def __call__(self, x: Any) -> Any:
        return self.two(nnx.relu(self.norm(self.one(x))))


def test_an_nnx_module_in_its_optimizer() -> None:
    net = NNX()
    graph = jaxslim.prune(net, None, 0.0, np.ones((2, 3), np.float32)).graph
    assert named(jaxslim.scale_mask(graph, nnx.state(net, nnx.Param))) == {"norm/scale/value"}
    pulls = [
        jaxslim.l1_subgradient(0.5, functools.partial(jaxslim.scale_mask, graph)),
        jaxslim.group_lasso_subgradient(0.25, graph),
    ]
    optimizer = nnx.Optimizer(net, optax.chain(*pulls, optax.sgd(1.0)), wrt=nnx.Param)
    before = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    optimizer.update(net, jax.tree.map(jnp.zeros_like, nnx.state(net, nnx.Param)))
    after = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    one, norm, two = before["one"]["kernel"], before["norm"]["scale"], before["two"]["kernel"]
    size = np.sqrt((one**2).sum(0) + norm**2 + (two**2).sum(1))  # both biases are zero
    np.testing.assert_allclose(
        after["one"]["kernel"], one * (1 - 0.25 * np.sqrt(3 + 1 + 1 + 1 + 2) / size)[None], rtol=1e-5
    )
    np.testing.assert_allclose(after["norm"]["scale"], norm - 0.5 - 0.25 * np.sqrt(8) / size, rtol=1e-5)
    np.testing.assert_array_equal(after["two"]["bias"], before["two"]["bias"])


def test_an_equinox_module_in_its_optimizer() -> None:
    eqx = pytest.importorskip("equinox", reason="belongs to the optional extra `zoo`")
    with jax.numpy_rank_promotion("allow"):
        net = eqx.nn.Sequential(
            [
                eqx.nn.Linear(3, 4, key=jax.random.key(0)),
                eqx.nn.LayerNorm(4),
                eqx.nn.Linear(4, 2, key=jax.random.key(1)),
            ]
        )
        graph = jaxslim.prune(net, None, 0.0, np.ones(3, np.float32)).graph
    params = eqx.filter(net, eqx.is_inexact_array)
    assert [path[-1] for path, use in leaf_paths(jaxslim.scale_mask(graph, params)) if use] == ["weight"]
    pull = pull_of(jaxslim.group_lasso_subgradient(0.25, graph), params)
    assert pull.layers[0].weight.any(1).all()
    assert not pull.layers[2].bias.any()


# What is refused


def both(graph: jaxslim.ChannelGraph, strength: Any = 0.5, **options: Any) -> list[Any]:
    return [
        lambda: jaxslim.group_lasso_subgradient(strength, graph, **options),
        lambda: jaxslim.group_lasso_proximal(strength, 0.1, graph, **options),
    ]


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_numbers_that_are_none_are_refused(value: Any) -> None:
    graph = traced(two_units())
    for make in both(graph, value):
        with pytest.raises(
            jaxslim.InputError, match=r"The group lasso strength is .*; it must be a number of at least 0"
        ):
            make()
    for make in both(graph, alpha=value):
        with pytest.raises(jaxslim.InputError, match=r"alpha is .*; it must be a number of at least 0, for example 4"):
            make()
    with pytest.raises(jaxslim.InputError, match=r"The learning rate is .*; it must be a number of at least 0"):
        jaxslim.group_lasso_proximal(1e-4, value, graph)


def test_parameters_that_do_not_fit_are_refused() -> None:
    params = two_units()
    graph = traced(params)
    small = jax.tree.map(lambda leaf: leaf[:1] if leaf.ndim == 1 else leaf, params)
    state = jaxslim.group_lasso_subgradient(0.5, graph).init(params)
    for make in both(graph):
        tx = make()
        for act in (tx.init, lambda params, tx=tx: tx.update(params, state, params)):
            with pytest.raises(jaxslim.InputError) as caught:
                act({"other": jnp.ones(2)})
            assert str(caught.value) == (
                "The parameters have no units that can be cut, so the group lasso would pull on nothing; pass the "
                "trained parameters, at the paths that the graph was traced with."
            )
            with pytest.raises(jaxslim.InputError) as caught:
                act(small)
            assert str(caught.value) == (
                "bias is of shape (1,), and the graph was traced with (2,); trace the network that you train."
            )
        with pytest.raises(
            jaxslim.InputError, match=r"group_lasso_\w+ needs the parameters: call update\(gradients, s"
        ):
            tx.update(params, state)


def test_a_mask_without_scales_is_refused() -> None:
    params = two_units()
    with pytest.raises(jaxslim.InputError) as caught:
        jaxslim.scale_mask(traced(params), params)
    assert str(caught.value) == (
        "The parameters hold no scale vector whose channels can be cut; pull on whole units with "
        "group_lasso_subgradient, or pass a mask of your own."
    )
    variables = Normed().init(jax.random.key(0), jnp.ones((2, 3)))
    graph = jaxslim.trace(Normed().apply, variables, np.ones((2, 3), np.float32))
    with pytest.raises(
        jaxslim.InputError, match=r"hold no scale of a BatchNorm .*; pass those that hold params/batch/sc"
    ):
        jaxslim.scale_mask(graph, variables["batch_stats"], batch_only=True)
