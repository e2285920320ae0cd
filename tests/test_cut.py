"""Cutting, masking and restoring trees: whose leaves are whose, arrays of all kinds, the state of every optimizer."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from networks import Network, networks
from optax import contrib

import jaxslim
from jaxslim.core.cut import restore
from jaxslim.core.paths import Paths, leaf_paths


def graph_of(tree: Any, seed: int = 0, share: float = 0.6) -> tuple[jaxslim.ChannelGraph, jaxslim.Plan]:
    """A graph in which every index of every axis is a unit of its own, and a random plan that empties no axis."""
    found, rng, count = leaf_paths(tree), np.random.default_rng(seed), 1
    units, keep = [], [True]
    for _, leaf in found:
        axes = []
        for n in np.shape(leaf):
            axes.append(np.arange(count, count + n))
            alive = rng.random(n) < share
            alive[rng.integers(max(n, 1)) :][:1] = True
            keep += alive.tolist()
            count += n
        units.append(tuple(axes))
    return by_hand(found, units, count - 1), jaxslim.Plan(keep=np.array(keep), requested=None, achieved=0.0, layers=())


def by_hand(found: Any, units: Any, num_units: int, below: Any = ((), ())) -> jaxslim.ChannelGraph:
    return jaxslim.ChannelGraph(
        paths=tuple(path for path, _ in found),
        shapes=tuple(np.shape(leaf) for _, leaf in found),
        units=tuple(units),
        num_units=num_units,
        exact=np.ones(num_units + 1, bool),
        choosable=np.arange(num_units + 1) > 0,
        below=np.array(below, int),
        closed=np.zeros(num_units + 1, bool),
        stops=(),
    )


def random_tree(shapes: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))


def on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def assert_same(one: Any, other: Any) -> None:
    """The same structure, shapes, types and numbers."""
    assert described(one) == described(other)
    jax.tree.map(np.testing.assert_array_equal, plain(one), plain(other))


def described(tree: Any) -> list[tuple[str, Any, Any]]:
    return [(jax.tree_util.keystr(path), np.shape(leaf), leaf.dtype) for path, leaf in jax.tree.leaves_with_path(tree)]


def plain(tree: Any) -> Any:
    def numbers(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(lambda leaf: np.asarray(numbers(leaf)), tree)


# ---------------------------------------------------------------------------------------------------------------------
# Paths: one leaf, or none.

LINEN = {
    "params": {"conv": {"kernel": (3, 3, 4, 6), "bias": (6,)}, "bn": {"scale": (6,)}, "head": {"kernel": (6, 5)}},
    "batch_stats": {"bn": {"mean": (6,)}},
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    weight: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Stack:
    """A module whose paths are attributes and positions."""

    layers: Any
    scale: Any


def test_a_path_finds_one_leaf() -> None:
    paths = Paths([("params", "a"), ("params", "block", "a"), ("batch_stats", "m"), ("enc", "w"), ("dec", "w")])
    assert [paths.find(path) for path in paths.paths] == [0, 1, 2, 3, 4]
    assert [paths.find(path) for path in (("a",), ("block", "a"), ("m",))] == [0, 1, 2]
    for path in ((), ("critic", "w"), ("block",), ("x", "params", "a"), ("critic", "enc", "w"), ("params", "m")):
        assert paths.find(path) is None
    with pytest.raises(jaxslim.InputError, match="w can mean enc/w and dec/w; pass the tree with its collections"):
        paths.find(("w",))


def test_the_end_of_a_path_names_a_leaf_but_a_position_does_not() -> None:
    paths = Paths([("batch_stats", "bn", "mean"), ("0",), ("bn", "mean")])
    unnamed = [(), ("0",), ("1", "0"), ("mean",), ("batch_stats", "bn")]
    assert paths.renewed([("1", "batch_stats", "bn", "mean"), ("1", "bn", "mean"), *unnamed]) == [0, 2, *[None] * 5]


def module() -> Stack:
    return random_tree(Stack([Linear((4, 6), (6,)), Linear((6, 6), (6,))], (6,)))


def nnx_model() -> nnx.Module:
    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.bn = nnx.BatchNorm(4, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    return Net()


STATES = {
    "adam": optax.adam(0.1),
    "chain": optax.chain(optax.clip(1.0), optax.chain(optax.trace(0.9), optax.ema(0.9))),
    "named": optax.named_chain(("first", optax.adam(0.1)), ("second", optax.trace(0.9))),
    "masked": optax.masked(optax.trace(0.9), lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
    "partition": optax.partition(
        {"wide": optax.adam(0.1), "other": optax.trace(0.9)},
        lambda tree: jax.tree.map(lambda leaf: "wide" if leaf.ndim > 1 else "other", tree),
    ),
    "multi_steps": optax.MultiSteps(optax.adamw(0.1), 2),
    "injected": optax.inject_hyperparams(optax.adam)(0.1),
}
TREES = {
    "linen": (random_tree(LINEN), "params"),
    "collections": (random_tree(LINEN), None),
    "plain": (random_tree({"a": (3, 4), "b": [(4,), (4, 2)]}), None),
    "haiku": (random_tree({"net/~/linear": {"w": (3, 4), "b": (4,)}, "net/~/out": {"w": (4, 2)}}), None),
    "attributes": (module(), None),
    "positions": (random_tree([(3, 4), (4,), (4, 2)]), None),
    "bare": (random_tree((4, 5)), None),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("state", STATES)
def test_a_copy_is_cut_as_the_parameters_are(tree: str, state: str) -> None:
    """After a step, the state holds the gradients of each parameter, wherever it keeps them."""
    variables, collection = TREES[tree]
    graph, plan = graph_of(variables)
    params = on_device(variables if collection is None else variables[collection])
    small, tx = jaxslim.cut(graph, params, plan), STATES[state]
    assert [np.shape(leaf) for leaf in jax.tree.leaves(small)] != [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    step = jax.jit(lambda params: tx.update(params, tx.init(params), params)[1])
    held, wanted = step(params), step(small)
    assert_same(jaxslim.cut(graph, held, plan), wanted)
    assert_same(jaxslim.cut(graph, {"opt_state": held, "step": 3}, plan)["opt_state"], wanted)
    assert_same(jaxslim.cut(graph, (params, [held, params]), plan), (small, [wanted, small]))


def test_a_train_state_is_cut_whole() -> None:
    class State(TrainState):
        batch_stats: Any
        averages: Any

    variables = on_device(TREES["linen"][0])
    graph, plan = graph_of(variables)
    params, statistics = variables["params"], variables["batch_stats"]
    state = State.create(
        apply_fn=None, params=params, tx=optax.adam(0.1), batch_stats=statistics, averages={"params": params}
    )
    small = jaxslim.cut(graph, state, plan)
    expected = jaxslim.cut(graph, variables, plan)
    assert_same(small.params, expected["params"])
    assert_same(small.batch_stats, expected["batch_stats"])
    assert_same(small.averages, {"params": expected["params"]})
    assert_same(small.opt_state, state.tx.init(expected["params"]))
    read_back = flax.serialization.to_state_dict(state.replace(averages=None))
    assert_same(jaxslim.cut(graph, read_back, plan)["opt_state"]["0"]["mu"], small.opt_state[0].mu)


@pytest.mark.parametrize("state", ["adam", "chain", "masked", "multi_steps", "injected"])
def test_the_state_of_an_nnx_optimizer_is_cut(state: str) -> None:
    model = nnx_model()
    variables = nnx.state(model)
    graph, plan = graph_of(variables)
    optimizer = nnx.Optimizer(model, STATES[state], wrt=nnx.Param)
    nnx.update(model, jaxslim.cut(graph, variables, plan))
    small = nnx.Optimizer(model, STATES[state], wrt=nnx.Param)
    assert described(small) != described(optimizer)
    if state != "masked":  # whose state stands directly below a name
        assert described(jaxslim.cut(graph, nnx.state(optimizer), plan)) == described(nnx.state(small))
    assert described(jaxslim.cut(graph, optimizer.opt_state, plan)) == described(small.opt_state)


# What another network holds is not cut by the traced one's channels.

ENCODER = {"enc": {"w": np.ones((3, 4), np.float32)}}
FOREIGN = {
    "alone": {"critic": {"w": np.ones((3, 4))}},
    "beside": ENCODER | {"critic": {"w": np.ones((3, 4))}},
    "further down": {"critic": {"enc": {"w": np.ones((3, 4))}}},
    "in a list": ENCODER | {"critics": [{"w": np.ones((3, 4))}, {"w": np.ones((3, 4))}]},
    "in a list, by name": {"critics": [{"enc": {"w": np.ones((3, 4))}}]},
    "in an optimizer": optax.adam(0.1).init(ENCODER | {"critic": {"w": np.ones((3, 4))}}),
    "in an optimizer of another": {"opt_state": optax.adam(0.1).init({"critic": {"w": np.ones((3, 4))}})},
    "in dicts of a state": {"opt_state": {0: {"mu": {"critic": {"w": np.ones((3, 4))}}}}},
    "too deep": {"enc": {"w": {"w": np.ones((3, 4))}}},
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("act", [jaxslim.cut, jaxslim.mask])
def test_another_networks_arrays_are_refused(name: str, act: Any) -> None:
    graph, plan = graph_of(ENCODER)
    with pytest.raises(
        jaxslim.InputError, match=r"(critics?/|enc/w/)\S* \(3, 4\) is none of the traced variables; cut the tree"
    ):
        act(graph, FOREIGN[name], plan)


def test_modules_of_another_network_are_refused() -> None:
    graph, plan = graph_of(module())
    with pytest.raises(jaxslim.InputError, match=r"nets/critic/layers/0/weight \(4, 6\) is none of the traced"):
        jaxslim.cut(graph, {"nets": {"critic": module()}}, plan)


def test_a_part_of_a_collection_is_refused() -> None:
    """The `a` of a block would be taken for the `a` of the collection."""
    variables = {"params": {"a": np.ones((3, 4)), "block": {"a": np.ones((3, 4))}}}
    graph, plan = graph_of(variables)
    block = variables["params"]["block"]
    for tree in (block, optax.trace(0.9).init(block), (block, 1)):
        with pytest.raises(jaxslim.InputError, match=r"The tree lacks params/block/a; cut the traced variables or a"):
            jaxslim.cut(graph, tree, plan)
    part = {"params": {"block": block}}  # by its whole path, there is no doubt
    assert jaxslim.cut(graph, part, plan)["params"]["block"]["a"].size < 12


def test_a_name_in_two_collections_is_told_by_the_rest_of_its_collection() -> None:
    variables = {"one": {"w": np.ones((3, 4)), "v": np.ones(3)}, "two": {"w": np.ones((3, 4))}}
    graph, plan = graph_of(variables)
    assert_same(jaxslim.cut(graph, variables["one"], plan), jaxslim.cut(graph, variables, plan)["one"])
    with pytest.raises(jaxslim.InputError, match="w can mean one/w and two/w; pass the tree with its collections"):
        jaxslim.cut(graph, variables["two"], plan)


# ---------------------------------------------------------------------------------------------------------------------
# What is cut, masked and restored.


def test_what_hangs_below_goes_too() -> None:
    """Unit 2 lies below unit 1: a plan that forgets it is closed first, whatever is done."""
    tree = {"above": np.ones(2), "below": np.ones(2)}
    graph = by_hand(leaf_paths(tree), [(np.array([1, 0]),), (np.array([0, 2]),)], 2, below=((2,), (1,)))
    plan = jaxslim.Plan(keep=np.array([True, False, True]), requested=None, achieved=0.0, layers=())
    small = jaxslim.cut(graph, tree, plan)
    assert jax.tree.map(np.shape, small) == {"above": (1,), "below": (1,)}
    masked = {"above": [0, 1], "below": [1, 0]}
    assert jax.tree.map(np.ndarray.tolist, jaxslim.mask(graph, tree, plan)) == masked
    assert jax.tree.map(np.ndarray.tolist, restore(graph, plan, small)) == masked


lengths = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@given(
    st.dictionaries(st.sampled_from("abcde"), lengths, min_size=1), st.integers(0, 999), st.sampled_from([0, 0.5, 1])
)
def test_cut_mask_and_restore_fit_together(shapes: Any, seed: int, share: float) -> None:
    tree = random_tree(shapes, seed)
    graph, plan = graph_of(tree, seed, share)
    for kind in (tree, on_device(tree)):
        small, masked = jaxslim.cut(graph, kind, plan), jaxslim.mask(graph, kind, plan)
        assert_same(restore(graph, plan, small), masked)
        assert_same(jaxslim.cut(graph, masked, plan), small)
        assert_same(jaxslim.mask(graph, masked, plan), masked)
        assert_same(jaxslim.cut(graph, restore(graph, plan, small), plan), small)
        for (name, leaf), axes in zip(sorted(tree.items()), graph.units, strict=True):
            alive = [plan.keep[units] for units in axes]
            assert small[name].shape == tuple(map(np.count_nonzero, alive))
            grid = np.ix_(*alive) if alive else ()
            np.testing.assert_array_equal(small[name], leaf[grid])
            hidden = np.zeros_like(leaf)
            hidden[grid] = leaf[grid]
            np.testing.assert_array_equal(masked[name], hidden)


@settings(max_examples=15)
@given(networks(), st.integers(0, 999))
def test_they_fit_together_in_traced_networks(network: Network, seed: int) -> None:
    variables = network.init()
    graph = jaxslim.trace(network, variables, network.images())
    keep = np.random.default_rng(seed).random(graph.num_units + 1) < 0.6
    plan = jaxslim.Plan(keep=keep, requested=None, achieved=0.0, layers=())
    small = jaxslim.cut(graph, variables, plan)
    assert_same(restore(graph, plan, small), jaxslim.mask(graph, variables, plan))
    tx, params = optax.adam(0.1), jax.eval_shape(lambda: on_device(variables["params"]))
    state = jaxslim.cut(graph, jax.eval_shape(tx.init, params), plan)
    assert described(state) == described(jax.eval_shape(tx.init, jaxslim.cut(graph, params, plan)))


def test_an_empty_axis() -> None:
    tree = {"a": np.ones((2, 3)), "none": np.ones((0, 4))}
    graph, plan = graph_of(tree)
    plan = dataclasses.replace(plan, keep=np.r_[True, np.zeros(graph.num_units, bool)])
    small = jaxslim.cut(graph, tree, plan)
    assert jax.tree.map(np.shape, small) == {"a": (0, 0), "none": (0, 0)}
    for full in (restore(graph, plan, small), jaxslim.mask(graph, tree, plan)):
        assert_same(full, {"a": np.zeros((2, 3)), "none": np.zeros((0, 4))})
    back = jax.jit(lambda tree: restore(graph, plan, jaxslim.cut(graph, tree, plan)))(tree)
    assert not back["a"].any()


def test_masking_hides_infinities_and_nan() -> None:
    tree = {"w": np.ones((3, 4), np.float32)}
    graph, plan = graph_of(tree)
    masked = jaxslim.mask(graph, tree, plan)
    assert not masked["w"].all()
    for value in (np.inf, -np.inf, np.nan):
        bad = {"w": np.where(masked["w"] == 0, np.float32(value), 1)}
        for one in (bad, on_device(bad)):
            assert_same(jaxslim.mask(graph, one, plan), masked)
        assert_same(jax.jit(lambda one: jaxslim.mask(graph, one, plan))(bad), masked)


ACTS = {
    "cut": jaxslim.cut,
    "mask": jaxslim.mask,
    "restore": lambda graph, tree, plan: restore(graph, plan, jaxslim.cut(graph, tree, plan)),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "complex64"])
def test_types_and_kinds_of_arrays_stay(act: str, dtype: str) -> None:
    tree = {"w": (np.arange(20).reshape(4, 5) % 7).astype(dtype), "b": np.ones(5, dtype)}
    graph, plan = graph_of(tree)
    before = jax.tree.map(np.copy, tree)
    done = ACTS[act](graph, tree, plan)
    assert {(type(leaf), leaf.dtype) for leaf in jax.tree.leaves(done)} == {(np.ndarray, np.dtype(dtype))}
    jax.tree.map(np.testing.assert_array_equal, tree, before)
    arrays = ACTS[act](graph, on_device(tree), plan)
    assert all(isinstance(leaf, jax.Array) and not leaf.committed for leaf in jax.tree.leaves(arrays))
    assert_same(arrays, done)
    assert_same(jax.jit(lambda tree: ACTS[act](graph, tree, plan))(tree), done)
    shapes = ACTS[act](graph, jax.eval_shape(lambda: on_device(tree)), plan)
    assert shapes == jax.eval_shape(lambda: on_device(done))


@pytest.mark.parametrize("act", ACTS)
def test_gradients_pass(act: str) -> None:
    tree = random_tree({"w": (4, 5)})
    graph, plan = graph_of(tree)
    weight = on_device(ACTS[act](graph, random_tree({"w": (4, 5)}, 1), plan))
    gradient = jax.grad(lambda tree: jnp.vdot(ACTS[act](graph, tree, plan)["w"], weight["w"]))(tree)
    back = restore(graph, plan, weight) if act == "cut" else weight
    np.testing.assert_array_equal(gradient["w"], back["w"])


@pytest.mark.parametrize("act", ACTS)
def test_random_keys_pass_or_are_cut(act: str) -> None:
    tree = {"dropout": jax.random.key(0), "each": jax.random.split(jax.random.key(1), 5), "w": np.ones(3)}
    graph, plan = graph_of(tree)
    done = ACTS[act](graph, tree, plan)
    assert done["dropout"] == tree["dropout"]
    alive = plan.keep[graph.units[list(graph.paths).index(("each",))][0]]
    assert 0 < np.count_nonzero(alive) < 5
    data = jax.random.key_data(done["each"])
    if act != "cut":
        assert not data[~alive].any()
        data = data[alive]
    np.testing.assert_array_equal(data, jax.random.key_data(tree["each"])[alive])


def test_what_is_no_parameter_passes() -> None:
    tree = {"w": np.ones((3, 4), np.float32)}
    graph, plan = graph_of(tree)
    others = {"step": 7, "rate": jnp.float32(0.1), "seed": np.arange(3), "none": None, "name": "net", "f": np.sin}
    others |= {"keys": jax.random.split(jax.random.key(0), 2), "raw": jax.random.PRNGKey(0), "hidden": np.ones(2, bool)}
    done = jaxslim.cut(graph, tree | others, plan)
    assert done.pop("w").size < 12
    assert all(done[name] is other for name, other in others.items())


def columns_gone() -> tuple[Any, jaxslim.ChannelGraph, jaxslim.Plan]:
    """Of eight columns, `odd` keeps 6 and `w` 7."""
    tree = {"odd": np.ones((4, 8), np.float32), "w": np.ones((4, 8), np.float32)}
    rows = np.zeros(4, int)
    graph = by_hand(leaf_paths(tree), [(rows, np.arange(1, 9)), (rows, np.arange(9, 17))], 16)
    keep = ~np.isin(np.arange(17), (1, 2, 9))
    return tree, graph, jaxslim.Plan(keep=keep, requested=None, achieved=0.0, layers=())


@pytest.mark.parametrize("act", ACTS)
def test_shardings_of_shapes_stay_where_the_new_widths_can_be_divided(act: str) -> None:
    tree, graph, plan = columns_gone()
    mesh = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    spec = PartitionSpec("data", "model")
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)), tree
    )
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, ACTS[act](graph, shapes, plan))
    divided = spec if act == "mask" else PartitionSpec("data", None)
    assert specs == {"odd": spec, "w": divided}


def act_on_four_devices() -> None:
    tree, graph, plan = columns_gone()
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    both = NamedSharding(mesh, PartitionSpec("data", "model"))
    sharded = jax.tree.map(lambda leaf: jax.device_put(leaf, both), tree)
    small, masked = jaxslim.cut(graph, sharded, plan), jaxslim.mask(graph, sharded, plan)
    assert small["odd"].sharding == both
    assert small["w"].sharding == NamedSharding(mesh, PartitionSpec("data", None))
    assert {leaf.sharding for leaf in jax.tree.leaves(masked)} == {both}
    assert_same(small, jaxslim.cut(graph, tree, plan))
    assert_same(masked, jaxslim.mask(graph, tree, plan))
    assert_same(restore(graph, plan, small), masked)


def test_shardings_of_arrays_stay() -> None:
    """In another process, on four devices."""
    command = [sys.executable, "-c", "import test_cut; test_cut.act_on_four_devices()"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    subprocess.run(command, cwd=Path(__file__).parent, env=environment, check=True)


def test_trees_of_other_shapes_and_plans_of_other_networks_are_refused() -> None:
    tree = {"params": {"w": np.ones((3, 4))}}
    graph, plan = graph_of(tree)
    wide = {"params": {"w": np.ones((3, 5))}}
    with pytest.raises(
        jaxslim.InputError, match=r"params/w has shape \(3, 5\), where params/w was traced with shape \(3, 4\); cut a"
    ):
        jaxslim.cut(graph, wide, plan)
    with pytest.raises(jaxslim.InputError, match=r"params/w has shape \(3, 4\), where"):
        restore(graph, plan, tree)
    foreign, _ = graph_of(wide)
    with pytest.raises(jaxslim.InputError, match="The plan is for 7 units and the graph has 8; trace the network that"):
        jaxslim.mask(foreign, wide, plan)


# ---------------------------------------------------------------------------------------------------------------------
# The state of every optimizer.

RATE = 0.1


def wide_only(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


# Each parameter's step depends on its own past alone: the cut state takes the very steps of the full one.
ELEMENTWISE = {
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9, nesterov=True),
    "adabelief": optax.adabelief(RATE),
    "adadelta": optax.adadelta(RATE),
    "adagrad": optax.adagrad(RATE),
    "adam": optax.adam(RATE),
    "adamax": optax.adamax(RATE),
    "adamaxw": optax.adamaxw(RATE),
    "adamw": optax.adamw(RATE, mask=wide_only),
    "adan": optax.adan(RATE),
    "amsgrad": optax.amsgrad(RATE),
    "apply_every": optax.apply_every(2),
    "apply_if_finite": optax.apply_if_finite(optax.adam(RATE), 2),
    "chain": optax.chain(optax.clip(0.5), optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale(-RATE)),
    "conditionally_mask": optax.conditionally_mask(optax.adam(RATE), lambda step: step < 9),
    "conditionally_transform": optax.conditionally_transform(optax.adam(RATE), lambda step: step < 9),
    "ema": optax.ema(0.9),
    "freeze": optax.freeze(True),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(optax.constant_schedule(RATE)),
    "keep_params_nonnegative": optax.keep_params_nonnegative(),
    "lion": optax.lion(RATE),
    "masked": optax.masked(optax.adam(RATE), wide_only),
    "multi_steps": optax.MultiSteps(optax.adamw(RATE), 2),
    "named_chain": optax.named_chain(("first", optax.adam(RATE)), ("second", optax.trace(0.9))),
    "optimistic_adam": optax.optimistic_adam_v2(RATE),
    "optimistic_gradient_descent": optax.optimistic_gradient_descent(RATE),
    "partition": STATES["partition"],
    "radam": optax.radam(RATE),
    "rmsprop": optax.rmsprop(RATE, momentum=0.9, centered=True),
    "rprop": optax.rprop(RATE),
    "scale_by_rss": optax.scale_by_rss(),
    "scale_by_stddev": optax.scale_by_stddev(),
    "selective_transform": optax.selective_transform(optax.adam(RATE), freeze_mask=wide_only),
    "set_to_zero": optax.set_to_zero(),
    "sign_sgd": optax.sign_sgd(RATE),
    "signum": optax.signum(RATE),
    "yogi": optax.yogi(RATE),
    "zero_nans": optax.zero_nans(),
    "acprop": contrib.acprop(RATE),
    "ademamix": contrib.ademamix(RATE),
    "adopt": contrib.adopt(RATE),
    "cocob": contrib.cocob(),
    "madgrad": contrib.madgrad(RATE),
    "reduce_on_plateau": contrib.reduce_on_plateau(),
    "sam": contrib.sam(optax.sgd(RATE, 0.9), optax.sgd(0.05)),
    "schedule_free": contrib.schedule_free(optax.sgd(RATE, 0.9), RATE),
    "schedule_free_adamw": contrib.schedule_free_adamw(RATE),
    "schedule_free_sgd": contrib.schedule_free_sgd(RATE),
    "simplified_ademamix": contrib.simplified_ademamix(RATE),
    "sophia": contrib.sophia(RATE),
    "split_real_and_imaginary": contrib.split_real_and_imaginary(optax.adam(RATE)),
}
# Norms, means or maxima over arrays, of what is cut too, are in the steps, or noise is: the cut state has the right
# arrays, and goes other steps.
COUPLED = {
    "adafactor": optax.adafactor(RATE, momentum=0.9),
    "adaptive_grad_clip": optax.adaptive_grad_clip(0.1),
    "centralize": optax.centralize(),
    "clip_by_block_rms": optax.clip_by_block_rms(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "fromage": optax.fromage(RATE),
    "lamb": optax.lamb(RATE),
    "lars": optax.lars(RATE),
    "lbfgs": optax.lbfgs(memory_size=3),
    "noisy_sgd": optax.noisy_sgd(RATE, key=0),
    "normalize_by_update_norm": optax.normalize_by_update_norm(),
    "novograd": optax.novograd(RATE),
    "polyak_sgd": optax.polyak_sgd(),
    "scale_by_backtracking_linesearch": optax.scale_by_backtracking_linesearch(5),
    "scale_by_distance_over_gradients": optax.scale_by_distance_over_gradients(),
    "scale_by_param_block_norm": optax.scale_by_param_block_norm(),
    "scale_by_param_block_rms": optax.scale_by_param_block_rms(),
    "scale_by_trust_ratio": optax.scale_by_trust_ratio(),
    "scale_by_zoom_linesearch": optax.scale_by_zoom_linesearch(5),
    "sm3": optax.sm3(RATE),
    "dadapt_adamw": contrib.dadapt_adamw(),
    "dog": contrib.dog(RATE),
    "dowg": contrib.dowg(RATE),
    "differentially_private_aggregate": contrib.differentially_private_aggregate(1.0, 0.1, key=0),
    "mechanize": contrib.mechanize(optax.adam(RATE)),
    "momo": contrib.momo(),
    "momo_adam": contrib.momo_adam(),
    "muon": contrib.muon(RATE),
    "normalize": contrib.normalize(),
    "prodigy": contrib.prodigy(),
}
UNCUTTABLE = {
    "flatten": optax.flatten(optax.adam(RATE)),
    "flatten in a chain": optax.chain(optax.trace(0.9), optax.flatten(optax.adam(RATE))),
    "galore": contrib.galore(RATE, rank=2),
    "snapshot": optax.snapshot("gradients", lambda updates: updates),
}
PARAMETERS = {
    "conv": {"kernel": (3, 3, 4, 6), "bias": (6,)},
    "square": {"kernel": (5, 5)},
    "cube": {"kernel": (4, 4, 4)},
    "row": {"scale": (1, 6)},
}


@pytest.mark.parametrize("name", ELEMENTWISE | COUPLED)
def test_cut_state_has_the_arrays_of_a_new_one(name: str) -> None:
    """Parameters with and without the collection that was traced on top of them."""
    tx = (ELEMENTWISE | COUPLED)[name]
    params = jax.eval_shape(lambda: on_device(random_tree(PARAMETERS)))
    for variables in (params, {"params": params, "stats": random_tree({"conv": {"mean": (6,)}})}):
        graph, plan = graph_of(variables)
        state = jax.eval_shape(tx.init, params)
        new = jax.eval_shape(tx.init, jaxslim.cut(graph, params, plan))
        small = jaxslim.cut(graph, state, plan)
        assert described(small) == described(new)
        assert jax.tree.structure(small) == jax.tree.structure(new)
        assert described(restore(graph, plan, small)) == described(state)
        assert described(jaxslim.mask(graph, state, plan)) == described(state)


@settings(max_examples=30)
@given(st.sampled_from(sorted(ELEMENTWISE | COUPLED)), st.lists(lengths, min_size=1, max_size=4), st.integers(0, 999))
def test_cut_state_of_any_shapes_has_the_arrays_of_a_new_one(name: str, shapes: Any, seed: int) -> None:
    tx = (ELEMENTWISE | COUPLED)[name]
    params = jax.eval_shape(lambda: on_device(random_tree({f"p{k}": shape for k, shape in enumerate(shapes)})))
    graph, plan = graph_of(params, seed)
    new = jax.eval_shape(tx.init, jaxslim.cut(graph, params, plan))
    assert described(jaxslim.cut(graph, jax.eval_shape(tx.init, params), plan)) == described(new)


def steps(tx: Any, how: dict[str, Any]) -> Any:
    """A compiled step: updates and state."""
    return jax.jit(lambda gradients, state, params: tx.update(gradients, state, params, **how))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_cut_state_takes_the_steps_of_the_full_one(name: str) -> None:
    tx, shapes = ELEMENTWISE[name], {"kernel": (3, 4, 4), "bias": (6,)}
    params = on_device(random_tree(shapes))
    graph, plan = graph_of(params)
    tx = tx if hasattr(tx, "update") else tx.gradient_transformation()
    how = {
        "reduce_on_plateau": {"value": 1.0},
        "sophia": {"obj_fn": lambda params: sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(params))},
    }.get(name, {})
    step = steps(optax.with_extra_args_support(tx), how)
    state = tx.init(params)
    for seed in range(3):
        _, state = step(on_device(random_tree(shapes, seed)), state, params)
    gradients = on_device(random_tree(shapes, 7))
    full = step(gradients, state, params)
    small = step(*(jaxslim.cut(graph, tree, plan) for tree in (gradients, state, params)))
    for one, other in zip(small, full, strict=True):
        expected = jaxslim.cut(graph, other, plan)
        assert described(one) == described(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain(one), plain(expected))


def test_coefficients_beside_copies_that_are_empty_stay() -> None:
    """Muon has nothing to do in a network without matrices."""
    params = on_device(random_tree({"scale": (6,), "bias": (6,)}))
    graph, plan = graph_of(params)
    state = contrib.muon(RATE).init(params)
    assert described(jaxslim.cut(graph, state, plan)) == described(
        contrib.muon(RATE).init(jaxslim.cut(graph, params, plan))
    )


def test_one_step_of_sm3_is_that_of_the_full_state() -> None:
    """Its maxima are over what is cut too, so that later steps differ."""
    params = on_device(random_tree(PARAMETERS))
    graph, plan = graph_of(params)
    tx = optax.sm3(RATE)
    step = jax.jit(tx.update)
    _, state = step(on_device(random_tree(PARAMETERS, 1)), tx.init(params), params)
    gradients = on_device(random_tree(PARAMETERS, 2))
    full, _ = step(gradients, state, params)
    small, _ = step(*(jaxslim.cut(graph, tree, plan) for tree in (gradients, state, params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), small, jaxslim.cut(graph, full, plan))


@pytest.mark.parametrize("name", UNCUTTABLE)
def test_state_that_mixes_parameters_is_refused(name: str) -> None:
    params = on_device(random_tree(PARAMETERS))
    graph, plan = graph_of(params)
    with pytest.raises(jaxslim.InputError, match=r"start .* anew .*tx\.init\(small\)\.$"):
        jaxslim.cut(graph, UNCUTTABLE[name].init(params), plan)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Kept:
    """State of an optimizer of one's own."""

    of: Any


@pytest.mark.parametrize(
    ("parameter", "own", "expected"),
    [
        ((3, 4), (3, 1), (3,)),
        ((3, 4), (1, 4), (4,)),
        ((3, 4), (4,), (4,)),
        ((4, 5, 6), (4, 6), (4, 6)),
        ((4, 5, 6), (1, 5, 1), (5,)),
        ((3, 4), (2, 3, 4), (3, 4)),
        ((3, 4), (), ()),
        ((3, 4), (1,), ()),
        ((3, 4), (1, 1), ()),
    ],
)
def test_arrays_beside_a_parameter_follow_its_axes(parameter: Any, own: Any, expected: Any) -> None:
    """`expected` are the lengths that shrink: each axis of the parameter has another length, and loses one index."""
    graph, plan = graph_of({"w": np.zeros(parameter)})
    for units in graph.units[0]:
        plan.keep[units] = np.arange(len(units)) != 1
    axes = {n: plan.keep[units] for n, units in zip(parameter, graph.units[0], strict=True)}
    held = np.arange(1.0, np.prod(own) + 1).reshape(own)
    kept = held
    for axis, n in enumerate(own):
        if n in expected:
            kept = np.compress(axes[n], kept, axis)
    done = jaxslim.cut(graph, Kept({"w": held}), plan).of["w"]
    np.testing.assert_array_equal(done, kept)
    masked = jaxslim.mask(graph, Kept({"w": held}), plan).of["w"]
    np.testing.assert_array_equal(restore(graph, plan, Kept({"w": kept})).of["w"], masked)
    assert set(masked[masked != 0]) == set(kept.ravel())


@pytest.mark.parametrize(
    ("parameter", "own"), [((4, 4), (4,)), ((3, 4), (5,)), ((3, 4), (3, 2)), ((3, 4), (4, 4)), ((3, 4), (3, 4, 2))]
)
def test_arrays_that_nobody_can_read_are_refused(parameter: Any, own: Any) -> None:
    graph, plan = graph_of({"w": np.ones(parameter)})
    with pytest.raises(
        jaxslim.InputError,
        match=r"This optimizer's state cannot be cut: of/w has shape .*, beside w of .*; start it anew on the cut par",
    ):
        jaxslim.cut(graph, Kept({"w": np.ones(own)}), plan)


def test_either_axis_of_a_square_will_do_where_both_lose_the_same() -> None:
    tree = {"w": np.ones((4, 4))}
    tied = np.array([1, 2, 3, 0])
    graph = by_hand(leaf_paths(tree), [(tied, tied)], 3)
    plan = jaxslim.Plan(keep=np.array([True, False, True, False]), requested=None, achieved=0.0, layers=())
    assert jaxslim.cut(graph, Kept({"w": np.arange(4)}), plan).of["w"].tolist() == [1, 3]


# Adafactor keeps means over the two largest axes, if the second is long enough.


def factored(shape: Any, keep: tuple[int, ...]) -> tuple[Any, Any, Any, Any, Any]:
    """Adafactor's state after a step, a plan that leaves the first `keep` indices of each axis of `w`, and gradients.

    From the moments of `other`, which lose nothing, one can tell that optax factors from a length of 4 on.
    """
    shapes = {"other": (4, 4), "plain": (3, 9), "w": shape}
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda s: isinstance(s, tuple))
    units = [tuple(np.zeros(n, int) for n in own) for own in shapes.values()]
    units[-1] = tuple(np.split(np.arange(1, sum(shape) + 1), np.cumsum(shape)[:-1]))
    graph = by_hand(leaf_paths(params), units, sum(shape))
    alive = np.concatenate([np.arange(n) < k for n, k in zip(shape, keep, strict=True)])
    plan = jaxslim.Plan(keep=np.r_[True, alive], requested=None, achieved=0.0, layers=())
    tx, gradients = optax.scale_by_factored_rms(min_dim_size_to_factor=4), random_tree(shapes)
    _, state = jax.jit(tx.update)(gradients, tx.init(params), params)
    small = tx.init(jaxslim.cut(graph, params, plan))
    return graph, plan, small, state, gradients["w"]


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (8, 8), (3, 3, 8, 8), (2, 6, 8)])
def test_factored_moments_are_cut(shape: Any) -> None:
    """Means of squared gradients over columns run along rows, and the other way round."""
    keep = (*shape[:-2], *(n - 2 for n in shape[-2:]))
    graph, plan, new, state, gradients = factored(shape, keep)
    small = jaxslim.cut(graph, state, plan)
    assert described(small) == described(new)
    squares = np.square(gradients)
    along_rows, along_columns = squares.mean(-1)[..., : keep[-2]], squares.mean(-2)[..., : keep[-1]]
    found = [small.v_row["w"], small.v_col["w"]] if shape[-2] <= shape[-1] else [small.v_col["w"], small.v_row["w"]]
    np.testing.assert_allclose(found[0], along_rows, rtol=1e-5)
    np.testing.assert_allclose(found[1], along_columns, rtol=1e-5)
    assert_same(restore(graph, plan, small), jaxslim.mask(graph, state, plan))


@pytest.mark.parametrize(("shape", "keep"), [((8, 8), (8, 6)), ((6, 8), (6, 5)), ((8, 8), (3, 8)), ((6, 6), (5, 3))])
def test_moments_that_would_be_factored_otherwise_are_refused(shape: Any, keep: Any) -> None:
    graph, plan, _, state, _ = factored(shape, keep)
    problem = f"This optimizer's state cannot be cut: Adafactor may factor the moments of w otherwise at {keep} than at"
    with pytest.raises(jaxslim.InputError) as error:
        jaxslim.cut(graph, state, plan)
    assert str(error.value) == f"{problem} {shape}; start it anew on the cut parameters: tx.init(small)."


@given(
    st.lists(st.lists(st.integers(2, 12), min_size=1, max_size=4).map(tuple), min_size=1, max_size=3),
    st.integers(2, 8),
    st.integers(0, 999),
)
def test_factored_moments_are_those_of_a_new_state_or_refused(shapes: Any, least: int, seed: int) -> None:
    params = {f"p{k}": jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in enumerate(shapes)}
    graph, plan = graph_of(params, seed, 0.8)
    tx = optax.adafactor(RATE, min_dim_size_to_factor=least)
    new = jax.eval_shape(tx.init, jaxslim.cut(graph, params, plan))
    with contextlib.suppress(jaxslim.InputError):
        assert described(jaxslim.cut(graph, jax.eval_shape(tx.init, params), plan)) == described(new)


def test_the_default_size_decides_where_the_state_leaves_it_open() -> None:
    params = {"w": jax.ShapeDtypeStruct((512, 768), jnp.float32)}
    units = [(np.arange(1, 513), np.zeros(768, int))]
    graph, state = by_hand(leaf_paths(params), units, 512), jax.eval_shape(optax.adafactor(RATE).init, params)
    for left, fits in ((130, True), (128, True), (127, False)):
        plan = jaxslim.Plan(keep=np.arange(513) <= left, requested=None, achieved=0.0, layers=())
        if fits:
            assert jaxslim.cut(graph, state, plan)[0].v_row["w"].shape == (left,)
        else:
            with pytest.raises(jaxslim.InputError, match="Adafactor may factor the moments of w otherwise at"):
                jaxslim.cut(graph, state, plan)
