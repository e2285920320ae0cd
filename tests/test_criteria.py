"""Criteria against values worked by hand, slow NumPy forms on random networks, and PyTorch on copied weights."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program, programs

import jaxslim
from jaxslim import criteria
from jaxslim.core.groups import groups
from jaxslim.core.paths import leaf_paths

SOME = settings(max_examples=max(1, settings.default.max_examples // 5))
FEW = settings(max_examples=max(1, settings.default.max_examples // 25))  # each compiles several gradients


# ---------------------------------------------------------------------------------------------------------------------
# Slow forms: each unit with all that goes along, slice by slice.


def goes_along(graph: jaxslim.ChannelGraph, unit: int) -> set[int]:
    goes, waiting = set(), [unit]
    while waiting:
        one = waiting.pop()
        goes.add(one)
        waiting += [below for below, above in graph.below.T.tolist() if above == one and below not in goes]
    return goes


def by_slices(graph: jaxslim.ChannelGraph, tree: Any, score: Callable[[list[np.ndarray]], float]) -> np.ndarray:
    """`score` of the slices, as flat arrays, that go with each unit."""
    leaves = dict(leaf_paths(tree))
    scores = np.zeros(graph.num_units + 1)
    for unit in range(1, graph.num_units + 1):
        goes = goes_along(graph, unit)
        found = [
            np.take(np.asarray(leaves[path], np.float64), index, axis).reshape(-1)
            for path, axes, trained in zip(graph.paths, graph.units, graph.trained, strict=True)
            if trained
            for axis, units in enumerate(axes)
            for index in np.flatnonzero([int(one) in goes for one in units])
        ]
        scores[unit] = score(found) if found else 0
    return scores


def norm(slices: list[np.ndarray], p: float, reduce: str, size: bool) -> float:
    def of(values: np.ndarray) -> float:
        if math.isinf(p):
            return float(np.max(np.abs(values)))
        total = float(np.sum(np.abs(values) ** p))
        return float((total / len(values) if size else total) ** (1 / p))

    if reduce == "sum" or math.isinf(p):
        return of(np.concatenate(slices))
    return {"mean": np.mean, "max": np.max}[reduce]([of(values) for values in slices])


@SOME
@given(programs(2), st.sampled_from([1, 2, 3.5, math.inf]), st.sampled_from(["sum", "mean", "max"]), st.booleans())
def test_magnitude_is_the_norm_of_what_goes(program: Program, p: float, reduce: Any, size: bool) -> None:
    variables = program.init()
    graph = jaxslim.trace(program, variables, program.key(), program.inputs())
    if size and reduce != "sum":
        return  # the sizes of parts are reduced as their norms are
    scores = criteria.magnitude(graph, variables, p, reduce, "size" if size else None)
    expected = by_slices(graph, variables, lambda slices: norm(slices, p, reduce, size))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    group = np.where(graph.choosable, groups(graph), 0)
    for how, of in (("mean", np.mean), ("max", np.max), ("sum", np.sum)):
        scaled = criteria.magnitude(graph, variables, p, reduce, how)
        for number in range(1, group.max() + 1):
            if (own := group == number).any() and (total := of(expected[own])) > 0:
                np.testing.assert_allclose(scaled[own], expected[own] / total, rtol=1e-6)


def gradient_of(program: Program, variables: Any, inputs: Any) -> Any:
    def loss(params: Any) -> Any:
        outs = program({**variables, "params": params}, program.key(), inputs)
        return sum(jnp.sin(out).sum() for out in jax.tree.leaves(outs))

    return {"params": jax.jit(jax.grad(loss))(variables["params"])}


@FEW
@given(programs(1))
def test_taylor_and_fisher_are_sums_over_what_goes(program: Program) -> None:
    variables = program.init()
    graph = jaxslim.trace(program, variables, program.key(), program.inputs())
    batches = [program.inputs(2), program.inputs(3)]
    params = {"params": variables["params"]}
    first, second = (gradient_of(program, variables, batch)["params"] for batch in batches)

    def loss(params: Any, batch: Any) -> Any:
        outs = program({**variables, **params}, program.key(), batch)
        return sum(jnp.sin(out).sum() for out in jax.tree.leaves(outs))

    def products(change: Callable[..., Any]) -> Any:
        return {"params": jax.tree.map(lambda w, a, b: np.asarray(change(w, a, b)), params["params"], first, second)}

    slow = by_slices(graph, products(lambda w, a, b: np.abs(w * (a + b) / 2)), lambda s: np.concatenate(s).sum())
    np.testing.assert_allclose(criteria.taylor(graph, loss, params, batches), slow, rtol=1e-3, atol=1e-3 * slow.max())
    mean = {"params": jax.tree.map(lambda a, b: (a + b) / 2, first, second)}
    np.testing.assert_allclose(criteria.taylor(graph, mean, params), slow, rtol=1e-3, atol=1e-3 * slow.max())
    slow = by_slices(graph, products(lambda w, a, b: w**2 * (a**2 + b**2) / 4), lambda s: np.concatenate(s).sum())
    np.testing.assert_allclose(criteria.fisher(graph, loss, params, batches), slow, rtol=1e-3, atol=1e-3 * slow.max())


@SOME
@given(programs(2))
def test_lamp_divides_by_what_is_no_smaller(program: Program) -> None:
    variables = program.init()
    graph = jaxslim.trace(program, variables, program.key(), program.inputs())
    squares = by_slices(graph, variables, lambda slices: float(np.sum(np.concatenate(slices) ** 2)))
    scores, group = criteria.lamp(graph, variables), np.where(graph.choosable, groups(graph), 0)
    for number in range(1, group.max() + 1):
        own = np.flatnonzero(group == number)
        order = own[np.argsort(squares[own], kind="stable")]
        for at, unit in enumerate(order):
            assert scores[unit] == pytest.approx(squares[unit] / max(squares[order[at:]].sum(), 1e-300), rel=1e-6)


def test_distance_from_the_others_by_hand() -> None:
    """Columns of `a` at 0, 3 and 4 along a line; the rows of `b` are all the same."""
    variables = {"a": np.array([[0.0, 3.0, 4.0], [0.0, 0.0, 0.0]]), "b": np.ones((3, 2)), "c": np.ones(3)}
    graph = jaxslim.trace(lambda v, x: x @ v["a"] * v["c"][None] @ v["b"], variables, np.ones((1, 2)))
    expected = np.array([7 / 3, 4 / 3, 5 / 3])
    np.testing.assert_allclose(criteria.geometric_median(graph, variables)[1:], expected / 2)
    np.testing.assert_allclose(criteria.geometric_median(graph, variables, "sum")[1:], expected)


# ---------------------------------------------------------------------------------------------------------------------
# By hand.


def dense(v: Any, x: Any) -> Any:
    return jax.nn.relu(x @ v["a"] + v["bias"][None]) @ v["b"]


def test_magnitude_by_hand() -> None:
    """Two units: a row of `b`, a column of `a` and a number of `bias` go with each."""
    variables = {
        "a": np.array([[3.0, 0.0], [4.0, 1.0], [0.0, 0.0]]),
        "b": np.array([[1.0, 2.0], [0.0, 0.0]]),
        "bias": np.array([1.0, 2.0]),
    }
    graph = jaxslim.trace(lambda v, x: jax.nn.relu(x @ v["a"] + v["bias"][None]) @ v["b"], variables, np.ones((1, 3)))
    scores = criteria.magnitude(graph, variables, normalize="size")
    first, second = graph.units[graph.find(("bias",))][0]
    assert scores[0] == 0
    assert scores[first] == pytest.approx(np.sqrt((9 + 16 + 1 + 4 + 1) / 6))
    assert scores[second] == pytest.approx(np.sqrt((1 + 4) / 6))


def test_magnitude_counts_what_goes_along() -> None:
    """Heads and widths of heads are units, and the elements of the projections belong to one of each."""

    def apply(variables: Any, x: Any) -> Any:
        heads = (x @ variables["a"]).reshape(len(x), 2, 3)
        return jnp.einsum("bhd,hd->b", jnp.tanh(heads), variables["b"])[:, None] * jnp.ones((1, 2))

    variables = {"a": np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]), "b": np.zeros((2, 3))}
    graph = jaxslim.trace(apply, variables, np.ones((4, 1)))
    scores = criteria.magnitude(graph, variables, normalize="size")
    heads, widths = (np.unique(graph.units[graph.find(("b",))][axis]) for axis in (0, 1))
    np.testing.assert_allclose(scores[heads], np.sqrt([14 / 6, 77 / 6]), rtol=1e-6)
    np.testing.assert_allclose(scores[widths], np.sqrt([17 / 4, 29 / 4, 45 / 4]), rtol=1e-6)


def test_activations_are_those_that_the_next_layer_reads() -> None:
    variables = {"a": np.array([[1.0, -1.0, 2.0]]), "bias": np.array([0.0, 0.0, 1.0]), "b": np.ones((3, 2))}
    graph = jaxslim.trace(dense, variables, np.ones((1, 1)))
    batches = [np.array([[1.0], [2.0]]), np.array([[-3.0]])]  # activations (1, 0, 3), (2, 0, 5) and (0, 3, 0)
    np.testing.assert_allclose(criteria.activation(graph, dense, variables, batches), [0, 1, 1, 8 / 3])
    np.testing.assert_allclose(
        criteria.activation(graph, dense, variables, batches, "nonzero"), [0, 2 / 3, 1 / 3, 2 / 3]
    )


@pytest.mark.parametrize("wrap", ["scan", "scanned weights", "cond", "jit", "remat", "vmap"])
def test_activations_inside_other_programs_count(wrap: str) -> None:
    """The same layer twice, whatever runs the layer."""
    variables = {"w": np.array([[0.5, 0.25], [1.0, -1.0]]), "in": np.array([[1.0, 2.0]]), "out": np.ones((2, 1))}

    def layer(v: Any, h: Any) -> Any:
        return jnp.maximum(h @ v["w"], 0.1 * h)

    def apply(v: Any, x: Any) -> Any:
        h = x @ v["in"]
        if wrap == "scan":
            return jax.lax.scan(lambda h, _: (layer(v, h), None), h, length=2)[0] @ v["out"]
        if wrap == "scanned weights":
            stacked = jnp.stack([v["w"], v["w"]])
            return jax.lax.scan(lambda h, w: (layer({"w": w}, h), None), h, stacked)[0] @ v["out"]
        for _ in range(2):
            if wrap == "cond":
                h = jax.lax.cond(x[0, 0] > 0, lambda h: layer(v, h), lambda h: h, h)
            elif wrap == "vmap":
                h = jax.vmap(layer, (None, 0))(v, h)
            else:
                h = {"jit": jax.jit, "remat": jax.checkpoint}[wrap](layer)(v, h)
        return h @ v["out"]

    graph = jaxslim.trace(apply, variables, np.ones((1, 1)))
    first = np.array([[1.0, 2.0], [2.0, 4.0]])
    second = np.maximum(first @ variables["w"], 0.1 * first)
    third = np.maximum(second @ variables["w"], 0.1 * second)
    scores = criteria.activation(graph, apply, variables, [np.array([[1.0], [2.0]])])
    expected = np.mean([np.abs(h).mean(0) for h in (first, second, third)], axis=0)
    np.testing.assert_allclose(scores[graph.units[graph.find(("out",))][0]], expected, rtol=1e-6)


class Convolutions(nn.Module):
    """Two convolutions with BatchNorm, and a norm without running statistics in front of the classifier."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for width in (6, 9):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(4)(nn.LayerNorm()(x.mean((1, 2))))


@functools.cache
def convolutions() -> tuple[Any, Any, Any]:
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype(np.float32)
    variables = Convolutions().init(jax.random.key(0), images)
    rng = np.random.default_rng(1)
    return Convolutions(), jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape) ** 2, variables), images


def test_the_trace_tells_the_scales_of_batch_norm() -> None:
    module, variables, images = convolutions()
    graph = jaxslim.trace(module.apply, variables, images)
    names = ["/".join(graph.paths[number]) for number in graph.batch_scales]
    assert names == ["params/BatchNorm_0/scale", "params/BatchNorm_1/scale"]
    others = {"/".join(graph.paths[number]) for number in graph.scales} - set(names)
    assert others == {"params/LayerNorm_0/scale"}
    scores, tree = criteria.bn_scale(graph, variables), jaxslim.bn_scales(variables)
    for scored in (jaxslim.plan(graph, scores, 0.6), jaxslim.plan(graph, tree, 0.6)):
        np.testing.assert_array_equal(scored.keep, jaxslim.plan(graph, scores, 0.6).keep)


def test_weighted_sum_and_random() -> None:
    one, other = np.array([9.0, 1.0, 3.0]), np.array([9.0, 10.0, 30.0])
    np.testing.assert_allclose(criteria.weighted_sum([one, other], [1.0, 0.5]), [0, 0.75, 2.25])
    for weight in (1, 0, -1):
        assert criteria.weighted_sum([one, np.array([-np.inf, -np.inf, 1])], [1, weight])[1] == -np.inf
    module, variables, images = convolutions()
    graph = jaxslim.trace(module.apply, variables, images)
    assert len(set(criteria.random(graph).tolist())) == graph.num_units + 1
    assert (criteria.random(graph, seed=1) != criteria.random(graph, seed=2))[1:].all()


def test_scales_of_layers_that_a_scan_runs() -> None:
    """Each round has a row of the stacked scales; a unit has the largest of its scales."""
    scales = np.array([[1.0, -2.0, 3.0], [4.0, 0.5, -1.0]])
    variables = {"first": np.ones((2, 3)), "scale": scales, "var": np.ones((2, 3)), "last": np.ones((3, 1)), "t": 2.0}

    def apply(v: Any, x: Any) -> Any:
        def layer(h: Any, own: Any) -> Any:
            scale, var = own
            return jnp.tanh(h * (jax.lax.rsqrt(var + 1e-5) * scale)[None]), None

        return jax.lax.scan(layer, x @ v["first"], (v["scale"], v["var"]))[0] @ v["last"] * v["t"]

    graph = jaxslim.trace(apply, variables, np.ones((1, 2)))
    assert criteria.bn_scale(graph, variables).tolist() == [0, 4, 2, 3]
    assert criteria.magnitude(graph, variables).shape == (4,)  # a number among the variables does no harm


def test_lamp_of_layers_of_very_different_sizes() -> None:
    variables = {"a": np.full((2, 3), 1e-6) * [[1, 2, 3]], "b": np.full((3, 4), 1e-6), "c": np.full((4, 1), 1e3)}
    graph = jaxslim.trace(lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"] @ v["c"], variables, np.ones((1, 2)))
    assert max(criteria.lamp(graph, variables)[graph.units[graph.find(("a",))][1]]) == pytest.approx(1)


def cross_entropy(module: Any) -> Any:
    def loss(variables: Any, batch: Any) -> Any:
        images, labels = batch
        logits = jax.nn.log_softmax(module.apply(variables, images))
        return -logits[jnp.arange(len(labels)), labels].mean()

    return loss


@pytest.mark.parametrize("name", ["magnitude", "l1", "taylor", "bn_scale"])
def test_the_channels_are_those_that_pytorch_chooses(name: str) -> None:
    """An independent form, layer by layer, on the same weights and images."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module, variables, images = convolutions()
    labels = np.arange(len(images)) % 4
    graph = jaxslim.trace(module.apply, variables, images)
    scores = {
        "magnitude": lambda: criteria.magnitude(graph, variables),
        "l1": lambda: criteria.magnitude(graph, variables, p=1),
        "taylor": lambda: criteria.taylor(graph, cross_entropy(module), variables, [(images, labels)]),
        "bn_scale": lambda: criteria.bn_scale(graph, variables),
    }[name]()
    plan = jaxslim.plan(graph, scores, 0.5)

    def tensor(x: Any, *order: int) -> Any:
        return torch.tensor(np.asarray(x).transpose(order) if order else np.asarray(x), requires_grad=True)

    params, stats = variables["params"], variables["batch_stats"]
    kernels = [tensor(params[f"Conv_{k}"]["kernel"], 3, 2, 0, 1) for k in (0, 1)]
    scales = [tensor(params[f"BatchNorm_{k}"]["scale"]) for k in (0, 1)]
    biases = [tensor(params[f"BatchNorm_{k}"]["bias"]) for k in (0, 1)]
    norm_scale, norm_bias = tensor(params["LayerNorm_0"]["scale"]), tensor(params["LayerNorm_0"]["bias"])
    weight, bias = tensor(params["Dense_0"]["kernel"], 1, 0), tensor(params["Dense_0"]["bias"])
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    for k in (0, 1):
        x = torch.nn.functional.conv2d(x, kernels[k], padding=1)
        mean, var = (torch.tensor(np.asarray(stats[f"BatchNorm_{k}"][which])) for which in ("mean", "var"))
        x = torch.relu(torch.nn.functional.batch_norm(x, mean, var, scales[k], biases[k], eps=1e-5))
    x = torch.nn.functional.layer_norm(x.mean((2, 3)), (9,), norm_scale, norm_bias, eps=1e-6)
    torch.nn.functional.cross_entropy(x @ weight.T + bias, torch.tensor(labels)).backward()

    def values(leaf: Any) -> Any:
        change = {"magnitude": leaf**2, "l1": leaf.abs(), "taylor": (leaf * leaf.grad).abs(), "bn_scale": leaf.abs()}
        return change[name].detach()

    if name == "bn_scale":
        found = [values(scale).numpy() for scale in scales]
    else:
        first = values(kernels[0]).sum((1, 2, 3)) + values(kernels[1]).sum((0, 2, 3))
        second = values(kernels[1]).sum((1, 2, 3)) + values(norm_scale) + values(norm_bias) + values(weight).sum(0)
        vectors = [values(scales[k]) + values(biases[k]) for k in (0, 1)]
        found = [(first + vectors[0]).numpy(), (second + vectors[1]).numpy()]
    threshold = np.sort(np.concatenate(found))[int(15 * 0.5)]
    for k, own in enumerate(found):
        units = graph.units[graph.find(("params", f"BatchNorm_{k}", "scale"))][0]
        np.testing.assert_array_equal(plan.keep[units], own >= threshold)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input.


MISTAKES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no batches": (lambda g, v: criteria.taylor(g, lambda v, b: 0.0, v, []), "There are no batches; give some"),
    "no batches of inputs": (
        lambda g, v: criteria.activation(g, dense, v, []),
        "There are no batches; give some inputs",
    ),
    "another structure": (
        lambda g, v: criteria.taylor(g, {"a": v["a"]}, v),
        "The variables hold b, which the gradients do not; give gradients of the same variables.",
    ),
    "too many gradients": (
        lambda g, v: criteria.fisher(g, {**v, "c": v["a"]}, v),
        "The gradients hold c, which the variables do not;",
    ),
    "another shape": (
        lambda g, v: criteria.taylor(g, {**v, "a": v["b"]}, v),
        "The gradient a has shape (3, 2), and the variable (1, 3);",
    ),
    "batches that differ": (
        lambda g, v: criteria.taylor(g, lambda v, b: (b["x"] @ v["a"]).sum(), v, [{"x": np.ones((1, 1))}, {"y": 1.0}]),
        "A batch has y, which the first has not; give batches of one structure.",
    ),
    "a loss that does not run": (
        lambda g, v: criteria.taylor(g, lambda v, b: b @ v["b"], v, [np.ones((1, 1))]),
        "The loss cannot be applied (",
    ),
    "no BatchNorm": (
        lambda g, v: criteria.bn_scale(g, v),
        "The network has no BatchNorm scale whose channels can be cut",
    ),
    "p": (lambda g, v: criteria.magnitude(g, v, p=0.5), "p is 0.5; it must be at least 1"),
    "reduce": (lambda g, v: criteria.magnitude(g, v, reduce="min"), "reduce is 'min'; it must be sum, mean or max."),
    "normalize": (lambda g, v: criteria.magnitude(g, v, normalize="std"), "normalize is 'std'; it must be mean, max,"),
    "measure": (lambda g, v: criteria.activation(g, dense, v, [1], "zeros"), "measure is 'zeros'; it must be mean or"),
    "weights": (lambda g, v: criteria.weighted_sum([np.ones(2)], [1, 2]), "There are 1 scores and 2 weights"),
    "NaN": (
        lambda g, v: jaxslim.plan(g, criteria.magnitude(g, {**v, "a": v["a"] * math.nan}), 0.5),
        "The scores of a hold NaN; the network has diverged, take an earlier checkpoint.",
    ),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_sentence(mistake: Callable[[Any, Any], Any], message: str) -> None:
    variables = {"a": np.ones((1, 3)), "bias": np.ones(3), "b": np.ones((3, 2))}
    graph = jaxslim.trace(dense, variables, np.ones((1, 1)))
    with pytest.raises(jaxslim.InputError, match=re.escape(message)):
        mistake(graph, variables)
