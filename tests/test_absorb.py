"""Bias absorption: values worked out by hand, networks where it is exact, and parameters it must leave alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    Network,
    Scope,
    batch_norm,
    conv,
    conv_norm,
    convolve,
    dense,
    draw,
    networks,
    pool,
    pre_activation,
)
from test_narrow import by_hand, random_keep

import jaxslim
from jaxslim.core.paths import leaf_paths
from jaxslim.errors import InputError

IMAGES = np.random.default_rng(1).normal(size=(2, 10, 10, 3)).astype(np.float32)


def network(form: Any) -> tuple[Any, Any]:
    """The network of `form(scope, images)` -> features (n, h, w, c) with a head behind, and its float32 variables."""
    made: dict[str, Any] = {}

    def forward(scope: Scope, x: Any) -> Any:
        return dense(scope, form(scope, x).mean((1, 2)), 3)

    jax.eval_shape(lambda x: forward(Scope(made, np.random.default_rng(0)), x), IMAGES)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), made)
    return lambda variables, x: forward(Scope(variables), x), variables


def half_off(variables: Any, spare: str = "") -> Any:
    """`variables` with about half of the BatchNorm scales at 0, and biases that pass ReLU; the layer `spare` stays."""
    rng = np.random.default_rng(2)
    params = {name: dict(layer) for name, layer in variables["params"].items()}
    for name, layer in params.items():
        if "scale" in layer and name != spare:
            layer["scale"] = layer["scale"] * (rng.random(layer["scale"].shape) >= 0.5).astype(np.float32)
            layer["bias"] = np.abs(layer["bias"]) + np.float32(0.2)
    return {**variables, "params": params}


def cut_zeros(apply: Any, variables: Any, images: Any, absorb: bool = True) -> tuple[Any, Any, Any]:
    """The variables without the channels of scale zero, the full ones that were cut, and the cut program."""
    graph = jaxslim.trace(apply, variables, images)
    plan = jaxslim.plan(graph, jaxslim.bn_scales(variables), None, threshold=0.0)
    assert not plan.keep.all()
    full = jaxslim.absorb(apply, variables, graph, plan, images) if absorb else variables
    return jaxslim.cut(graph, full, plan), full, jaxslim.narrow(apply, graph, plan)


def compiled(apply: Any) -> Any:
    """Compiled in a hurry: each network runs only once or twice."""
    return jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})


def gap(apply: Any, variables: Any, absorb: bool = True) -> float:
    """How far cutting the channels of scale zero moves the logits, as a share of the largest one."""
    small, _, narrowed = cut_zeros(apply, variables, IMAGES[:1], absorb)
    whole, narrow = (np.asarray(compiled(run)(tree, IMAGES)) for run, tree in ((apply, variables), (narrowed, small)))
    return float(np.abs(narrow - whole).max() / np.abs(whole).max())


def test_a_dense_layer_behind_by_hand() -> None:
    """relu(bias) is 0.7 in the channel that goes: 2 * 0.7 and 4 * 0.7 move into the mean behind it."""
    params = {
        "a": {"kernel": jnp.ones((1, 2)), "scale": jnp.array([1.0, 0.0]), "bias": jnp.array([0.1, 0.7])},
        "b": {"kernel": jnp.array([[1.0, 3.0], [2.0, 4.0]]), "scale": jnp.ones(2), "bias": jnp.zeros(2)},
    }
    stats = {"a": {"mean": jnp.array([0.5, 0.5])}, "b": {"mean": jnp.array([10.0, 20.0])}}
    variables = {"params": params, "batch_stats": stats}

    def apply(variables: Any, x: Any) -> Any:
        for name in ("a", "b"):
            layer = variables["params"][name]
            x = x @ layer["kernel"] - variables["batch_stats"][name]["mean"][None]
            x = jax.nn.relu(x * layer["scale"][None] + layer["bias"][None])
        return x

    small, full, _ = cut_zeros(apply, variables, jnp.ones((3, 1)))
    np.testing.assert_allclose(full["batch_stats"]["b"].pop("mean"), [10 - 1.4, 20 - 2.8], rtol=1e-6)
    stats["b"].pop("mean")
    jax.tree.map(np.testing.assert_array_equal, full, variables)
    assert small["params"]["b"]["kernel"].tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize(("width", "n"), [(1, 1), (1, 3), (2, 2), (3, 2)])
def test_padding_counts_as_often_as_the_window_meets_it(width: int, n: int) -> None:
    """On a 2x2 map, each of the four positions sees another 2x2 part of the 3x3 kernel."""
    module = jaxslim.VGG((2, width), num_classes=2)
    images = jnp.ones((n, 2, 2, 3))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw(rng, path[-1].key, leaf.shape).astype(np.float32), shapes
    )
    params = variables["params"]
    params["bn0"] |= {"scale": np.array([1, 0], np.float32), "bias": np.array([0.3, 0.9], np.float32)}
    _, full, _ = cut_zeros(module.apply, variables, images)
    kernel = params["conv1"]["kernel"][:, :, 1]
    seen = sum(kernel[row : row + 2, column : column + 2].sum((0, 1)) for row in (0, 1) for column in (0, 1)) / 4
    mean = variables["batch_stats"]["bn1"]["mean"] - 0.9 * seen
    np.testing.assert_allclose(full["batch_stats"]["bn1"]["mean"], mean, rtol=1e-5)


def depthwise_valid(s: Scope, x: Any) -> Any:
    (kernel,) = s("depthwise", kernel=(3, 3, 1, x.shape[-1]))
    return jax.nn.relu(batch_norm(s, convolve(x, kernel, groups=x.shape[-1], padding="VALID")))


FORMS = {
    "mean of the next norm": lambda s, x: conv_norm(s, conv_norm(s, x, 6, "relu"), 5, "relu", padding="VALID"),
    "bias before the next norm": lambda s, x: conv_norm(
        s, conv_norm(s, x, 6, "relu"), 5, "relu", padding="VALID", bias=True
    ),
    "bias of the head": lambda s, x: conv_norm(s, x, 6, "relu"),
    "behind pooling": lambda s, x: conv_norm(s, pool(s, pool(s, conv_norm(s, x, 6, "relu"), "max"), "mean"), 5, size=1),
    "both branches of a sum": lambda s, x: conv_norm(
        s, conv(s, conv_norm(s, x, 6, "relu"), 4, size=1) + conv(s, conv_norm(s, x, 5, "silu"), 4, size=1), 5, size=1
    ),
    "depthwise, which is cut itself": lambda s, x: conv_norm(
        s, depthwise_valid(s, conv_norm(s, x, 6, "relu")), 5, size=1
    ),
    "dense concatenation": lambda s, x: conv_norm(
        s, jnp.concatenate([y := conv_norm(s, x, 5, "relu"), conv_norm(s, y, 4, "relu", size=1)], -1), 5, size=1
    ),
    "pre-activation block": lambda s, x: pre_activation(s, conv(s, x, 5), 6, "relu"),
    "a call that is compiled": lambda s, x: jax.jit(lambda y: conv_norm(s, conv_norm(s, y, 6, "relu"), 4, size=1))(x),
    "a rematerialised call": lambda s, x: jax.checkpoint(lambda y: conv_norm(s, conv_norm(s, y, 6), 4, size=1))(x),
}


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_lost_where_padding_meets_nothing(name: str) -> None:
    apply, variables = network(FORMS[name])
    if name == "pre-activation block":
        variables["params"]["conv2"]["kernel"][[0, 2]] = 0  # the rows and columns that padding would meet
        variables["params"]["conv2"]["kernel"][:, [0, 2]] = 0
    variables = half_off(variables, spare="bn0" if name == "pre-activation block" else "")  # bn0 reads the sum itself
    assert gap(apply, variables) < 1e-5
    assert gap(apply, variables, absorb=False) > 1e-2


def test_parameters_keep_their_types() -> None:
    """Parameters in half precision, computed with in float32."""
    apply, variables = network(FORMS["bias before the next norm"])
    variables = half_off(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables))

    def precise(tree: Any, x: Any) -> Any:
        return apply(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree), x)

    _, full, _ = cut_zeros(precise, variables, IMAGES)
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (full, variables)]
    assert kinds[0] == kinds[1]
    assert not np.array_equal(full["params"]["conv1"]["bias"], variables["params"]["conv1"]["bias"])


def test_padding_leaves_little_of_what_a_cut_loses() -> None:
    apply, variables = network(lambda s, x: conv_norm(s, conv_norm(s, x, 8, "relu"), 8, "relu"))
    variables = half_off(variables)
    assert gap(apply, variables) < 0.4 * gap(apply, variables, absorb=False)


def test_a_bias_that_two_layers_use_is_left_alone() -> None:
    """The cut takes something from the first layer that uses the bias, but nothing from the second."""
    params = {
        "norm": {"scale": np.array([1, 0], np.float32), "bias": np.array([0.5, 0.5], np.float32)},
        "a": {"kernel": np.ones((2, 2), np.float32)},
        "shared": {"bias": np.zeros(2, np.float32)},
    }
    variables = {"params": params, "batch_stats": {"norm": {"mean": np.zeros(2, np.float32)}}}

    def apply(variables: Any, x: Any) -> Any:
        params = variables["params"]
        bias = params["shared"]["bias"][None]
        y = x[:, :1] * params["norm"]["scale"][None] + params["norm"]["bias"][None]
        return y @ params["a"]["kernel"] + bias, x + bias

    images = np.ones((1, 2), np.float32)
    _, full, _ = cut_zeros(apply, variables, images)
    assert full["params"]["shared"]["bias"].tolist() == [0, 0]


def test_biases_that_relu_stops_cost_nothing() -> None:
    apply, variables = network(FORMS["mean of the next norm"])
    variables = half_off(variables)
    for layer in variables["params"].values():
        if "scale" in layer:
            layer["bias"] = -layer["bias"]
    _, full, _ = cut_zeros(apply, variables, IMAGES)
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, old, atol=1e-6), full, variables)


def test_a_plan_that_cuts_nothing_changes_nothing() -> None:
    apply, variables = network(FORMS["bias of the head"])
    graph = jaxslim.trace(apply, variables, IMAGES)
    plan = jaxslim.plan(graph, jaxslim.bn_scales(variables), 0.0)
    jax.tree.map(np.testing.assert_array_equal, jaxslim.absorb(apply, variables, graph, plan, IMAGES), variables)


def test_another_networks_plan_is_refused() -> None:
    apply, variables = network(FORMS["bias of the head"])
    other, others = network(FORMS["mean of the next norm"])
    graph = jaxslim.trace(other, others, IMAGES)
    plan = jaxslim.plan(graph, jaxslim.bn_scales(others), 0.5)
    with pytest.raises(InputError, match=r"plan is for 11 units and the graph has 6; trace the network that the plan"):
        jaxslim.absorb(apply, variables, jaxslim.trace(apply, variables, IMAGES), plan, IMAGES)
    with pytest.raises(InputError, match=r"dense0/kernel \(6, 3\) is none of the traced variables; trace these first"):
        jaxslim.absorb(apply, variables, graph, plan, IMAGES)
    with pytest.raises(InputError, match=r"images are a ShapeDtypeStruct or empty; absorbing evaluates"):
        jaxslim.absorb(other, others, graph, plan, jax.ShapeDtypeStruct(IMAGES.shape, np.float32))


@settings(max_examples=12)
@given(networks(), st.integers(0, 99))
def test_any_network_keeps_all_but_vectors_and_is_cut_as_before(network: Network, seed: int) -> None:
    variables, images = network.init(), network.images()
    with jax.enable_x64(True):
        graph = jaxslim.trace(network, variables, images)
        plan = by_hand(graph, random_keep(graph, seed, 0.5), spare=~graph.exact)
        full = jaxslim.absorb(network, variables, graph, plan, images)
        for (path, old), (_, new) in zip(leaf_paths(variables), leaf_paths(full), strict=True):
            assert old.ndim == 1 or np.array_equal(old, new), path
            assert (old.shape, old.dtype) == (new.shape, new.dtype), path
        narrow = compiled(jaxslim.narrow(network, graph, plan))(jaxslim.cut(graph, full, plan), images)
        np.testing.assert_allclose(narrow, compiled(network)(jaxslim.mask(graph, full, plan), images), atol=1e-8)
