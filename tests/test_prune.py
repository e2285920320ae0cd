"""Pruning and cutting: the narrower VGG, what `cut` leaves alone, what it refuses, and the package's public names.

Models of other kinds are in test_kinds.py.
"""

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import draw

import jaxslim

WIDTHS = (4, "M", 6, 5, "M")


def vgg(seed: int = 0, widths: Any = WIDTHS) -> tuple[jaxslim.VGG, Any]:
    module = jaxslim.VGG(widths, num_classes=3)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        return draw(rng, path[-1].key, leaf.shape).astype(np.float32)

    return module, jax.tree_util.tree_map_with_path(fill, shapes)


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 8, 8, 3)).astype(np.float32)


def assert_cut_is_masked(module: Any, variables: Any, pruned: jaxslim.Pruned) -> None:
    masked = jax.jit(module.apply)(jaxslim.mask(pruned.graph, variables, pruned.plan), images())
    logits = jax.jit(pruned.module.apply)(pruned.variables, images())
    np.testing.assert_allclose(logits, masked, rtol=1e-4, atol=1e-5)


@settings(max_examples=3)
@given(st.floats(0, 0.79), st.integers(0, 99))
def test_pruned_vgg_is_the_masked_full_one(ratio: float, seed: int) -> None:
    module, variables = vgg(seed)
    pruned = jaxslim.prune(module, variables, ratio, images())
    assert pruned.plan.achieved == int(15 * ratio + 1e-9) / 15
    widths = [layer.after for layer in pruned.plan.layers]
    assert pruned.module == jaxslim.VGG((widths[0], "M", *widths[1:], "M"), num_classes=3)
    assert_cut_is_masked(module, variables, pruned)


def test_cost_of_a_pruned_vgg_by_hand() -> None:
    module, variables = vgg()
    pruned = jaxslim.prune(module, variables, 0.6, images())
    a, b, c = (layer.after for layer in pruned.plan.layers)
    assert jaxslim.count(pruned.module.apply, pruned.variables, images()) == (
        9 * (3 * a + a * b + b * c) + 2 * (a + b + c) + 3 * c + 3,
        9 * (64 * 3 * a + 16 * a * b + 16 * b * c) + 3 * c,
    )


def test_one_survivor_a_layer_is_enough() -> None:
    module, variables = vgg()
    pruned = jaxslim.prune(module, variables, 12 / 15, images())
    assert pruned.module.widths == (1, "M", 1, 1, "M")
    assert pruned.variables["params"]["bn1"]["scale"].shape == (1,)
    assert_cut_is_masked(module, variables, pruned)
    again = jaxslim.prune(pruned.module, pruned.variables, 0.0, images())
    assert again.module == pruned.module


def test_the_best_channels_survive_with_all_that_is_theirs() -> None:
    module, variables = vgg()
    params = variables["params"]
    params["bn0"]["scale"] = np.array([0.1, -0.9, 0.2, 0.8], np.float32)
    pruned = jaxslim.prune(module, variables, None, images(), threshold=0.5, leave=["bn1", "bn2"])
    assert pruned.module.widths == (2, "M", 6, 5, "M")
    small = pruned.variables
    np.testing.assert_array_equal(small["params"]["conv0"]["kernel"], params["conv0"]["kernel"][..., [1, 3]])
    np.testing.assert_array_equal(small["params"]["conv1"]["kernel"], params["conv1"]["kernel"][:, :, [1, 3]])
    np.testing.assert_array_equal(small["params"]["bn0"]["bias"], params["bn0"]["bias"][[1, 3]])
    for name in ("mean", "var"):
        stats = variables["batch_stats"]["bn0"][name]
        np.testing.assert_array_equal(small["batch_stats"]["bn0"][name], stats[[1, 3]])
    # The reference drops the classifier's bias; here it stays.
    np.testing.assert_array_equal(small["params"]["classifier"]["bias"], params["classifier"]["bias"])


def test_options_reach_the_plan() -> None:
    module, variables = vgg()
    pruned = jaxslim.prune(module, variables, 0.2, images(), min_channels=3, multiple_of=2, leave=["bn2"])
    assert all(layer.after in (4, 5, 6) for layer in pruned.plan.layers)
    assert pruned.plan.layers[2].after == 5


def test_what_prune_returns() -> None:
    module, variables = vgg()
    pruned = jaxslim.prune(module, variables, 0.5, images())
    narrower, smaller, plan = pruned
    assert (narrower, smaller, plan) == (pruned.module, pruned.variables, pruned.plan)
    assert pruned.full is variables
    jax.tree.map(np.testing.assert_array_equal, jaxslim.cut(pruned.graph, pruned.full, plan), smaller)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruned.plan = None  # type: ignore[misc]


def test_absorption_comes_before_the_cut() -> None:
    module, variables = vgg()
    pruned = jaxslim.prune(module, variables, 0.5, images(), absorb=True)
    plain = jaxslim.prune(module, variables, 0.5, images())
    absorbed = jaxslim.absorb(module.apply, variables, pruned.graph, pruned.plan, images())
    jax.tree.map(np.testing.assert_array_equal, pruned.full, absorbed)
    jax.tree.map(np.testing.assert_array_equal, pruned.variables, jaxslim.cut(pruned.graph, absorbed, pruned.plan))
    assert pruned.module == plain.module
    assert not np.array_equal(
        pruned.variables["params"]["classifier"]["bias"], plain.variables["params"]["classifier"]["bias"]
    )


class Pairs(nn.Module):
    """Takes pairs from a reshape that a narrower module of this class has no room for."""

    width: int = 8

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width)(x))
        return nn.Dense(3)(x.reshape(len(x), 4, 2).mean(2))

    def resized(self, variables: Any) -> "Pairs":
        return self.clone(width=variables["params"]["Dense_0"]["kernel"].shape[-1])


def test_a_module_that_cannot_be_resized_runs_all_the_same() -> None:
    module, x = Pairs(), images().reshape(2, -1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: np.arange(1, 1 + leaf.size, dtype=np.float32).reshape(leaf.shape), shapes)
    pruned = jaxslim.prune(module, variables, 0.5, x)
    assert not isinstance(pruned.module, Pairs)
    assert pruned.variables["params"]["Dense_0"]["kernel"].shape[1] < 8
    masked = module.apply(jaxslim.mask(pruned.graph, variables, pruned.plan), x)
    np.testing.assert_allclose(pruned.module.apply(pruned.variables, x), masked, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "noise"), [(None, 1e-4), (jnp.float32, 1e-4), (jnp.float16, 6.25e-3), (jnp.bfloat16, 0.05)]
)
def test_a_cut_passes_its_check_in_every_precision(dtype: Any, noise: float) -> None:
    module, variables = vgg()
    module = module.clone(dtype=dtype)
    pruned = jaxslim.prune(module, variables, 0.5, images())
    assert isinstance(pruned.module, jaxslim.VGG)
    assert pruned.report.exact == 1
    assert pruned.report.difference <= noise


def halved() -> tuple[jaxslim.ChannelGraph, Any, jaxslim.Plan]:
    module, variables = vgg()
    graph = jaxslim.trace(module.apply, variables, images())
    return graph, variables, jaxslim.plan(graph, jaxslim.bn_scales(variables), 0.5)


def test_cut_keeps_types_and_touches_nothing() -> None:
    graph, variables, plan = halved()
    before = jax.tree.map(np.copy, variables)
    for dtype in (np.float32, jnp.bfloat16, np.float16):
        small = jaxslim.cut(graph, jax.tree.map(lambda leaf, to=dtype: leaf.astype(to), variables), plan)
        assert {(type(leaf), leaf.dtype) for leaf in jax.tree.leaves(small)} == {(np.ndarray, np.dtype(dtype))}
    on_device = jaxslim.cut(graph, jax.tree.map(jnp.asarray, variables), plan)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(on_device))
    jax.tree.map(np.testing.assert_array_equal, on_device, jaxslim.cut(graph, variables, plan))
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_cut_works_inside_jit_and_on_shapes() -> None:
    graph, variables, plan = halved()
    small = jaxslim.cut(graph, variables, plan)
    inside = jax.jit(lambda tree: jaxslim.cut(graph, tree, plan))(variables)
    jax.tree.map(np.testing.assert_array_equal, inside, small)
    shapes = jaxslim.cut(graph, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, variables)), plan)
    assert shapes == jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), small)


def test_mask_blanks_every_slice_and_keeps_shapes() -> None:
    graph, variables, plan = halved()
    masked = jaxslim.mask(graph, variables, plan)
    kept = [plan.keep[graph.units[graph.find(("params", name, "scale"))][0]] for name in ("bn0", "bn1")]
    assert not any(own.all() for own in kept)
    for name in ("scale", "bias"):
        expected = np.where(kept[1], variables["params"]["bn1"][name], 0)
        np.testing.assert_array_equal(masked["params"]["bn1"][name], expected)
    expected = variables["params"]["conv1"]["kernel"] * np.multiply.outer(*kept)
    np.testing.assert_array_equal(masked["params"]["conv1"]["kernel"], expected)


def test_scalars_and_integers_that_are_not_traced_pass() -> None:
    graph, variables, plan = halved()
    tree = {"step": 7, "rate": jnp.float32(0.1), "seed": np.arange(3), "params": variables["params"], "none": None}
    small = jaxslim.cut(graph, tree, plan)
    assert (small["step"], small["none"]) == (7, None)
    np.testing.assert_array_equal(small["seed"], np.arange(3))
    assert small["params"]["bn0"]["scale"].size < 4


@pytest.mark.parametrize("act", [jaxslim.cut, jaxslim.mask])
def test_trees_of_other_networks_are_refused(act: Any) -> None:
    graph, variables, plan = halved()
    with pytest.raises(
        jaxslim.InputError, match=r"extra/kernel \(3, 4\) is none of the traced variables; cut the tree"
    ):
        act(graph, {"extra": {"kernel": np.ones((3, 4))}}, plan)
    other = {"params": {"bn0": {"scale": np.ones(5)}}}
    with pytest.raises(
        jaxslim.InputError,
        match=r"params/bn0/scale has shape \(5,\), where .* was traced with shape \(4,\); cut a tree",
    ):
        act(graph, other, plan)
    module, wider = vgg(widths=(4, "M", 7, 5, "M"))
    foreign = jaxslim.trace(module.apply, wider, images())
    with pytest.raises(jaxslim.InputError, match="The plan is for 15 units and the graph has 16; trace the network"):
        act(foreign, wider, plan)
    small = jaxslim.cut(graph, variables, plan)
    with pytest.raises(jaxslim.InputError, match=r"has shape .* was traced with shape"):
        act(graph, small, plan)


def test_a_name_in_two_collections_is_refused_where_they_are_cut_differently() -> None:
    tree = {"a": {"w": np.ones((3, 4)), "v": np.ones(4)}, "b": {"w": np.ones((4, 2)), "v": np.ones(4)}}
    graph = jaxslim.trace(
        lambda t, x: (x @ t["a"]["w"] * t["a"]["v"][None] * t["b"]["v"][None]) @ t["b"]["w"], tree, np.ones((1, 3))
    )
    plan = jaxslim.plan(graph, {"a": {"v": np.arange(4.0)}}, 0.5)
    assert jaxslim.cut(graph, tree, plan)["b"]["w"].tolist() == [[1, 1], [1, 1]]
    with pytest.raises(jaxslim.InputError, match="w can mean a/w and b/w; pass the tree with its collections"):
        jaxslim.cut(graph, {"w": np.ones((3, 4))}, plan)


# ---------------------------------------------------------------------------------------------------------------------
# The package.


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_none_of_the_heavy_ones() -> None:
    heavy = ("jax", "flax", "optax", "orbax", "tensorflow_datasets", "numpy", "matplotlib")
    assert python(f"import sys, jaxslim; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_ops_is_there_without_being_imported() -> None:
    assert python("import jaxslim; print('ops' in dir(jaxslim), jaxslim.ops.conv.__name__)") == "True conv"


MODELS = ["VGG", "vgg11", "vgg13", "vgg16", "vgg19"]
STEPS = [
    "trace",
    "bn_scales",
    "bn_scale_mask",
    "scale_mask",
    "plan",
    "cut",
    "mask",
    "narrow",
    "absorb",
    "recalibrate",
    "prune",
    "count",
]
PULLS = ["l1_subgradient", "l1_proximal", "group_lasso_subgradient", "group_lasso_proximal"]
TRAINING = [*PULLS, "distillation", "TrainConfig", "save", "load"]
RESULTS = ["ChannelGraph", "Plan", "Pruned", "Cost", "Loaded", "InputError"]


def test_public_names() -> None:
    for name in (*MODELS, *STEPS, *TRAINING, *RESULTS):
        assert callable(getattr(jaxslim, name))
        assert name in dir(jaxslim)
    assert issubclass(jaxslim.InputError, ValueError)
    with pytest.raises(AttributeError, match="prnue"):
        _ = jaxslim.prnue
