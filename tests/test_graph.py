"""The channel graph against what it is for: a cut network computes what the full one does without those channels."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from networks import PARTS, WRAPS, Network, compiled, draw, networks

import jaxslim
from jaxslim.core.printing import unit_ranges

# ---------------------------------------------------------------------------------------------------------------------
# Plans made by hand, and comparisons.


def by_hand(
    graph: jaxslim.ChannelGraph, keep: np.ndarray, among: np.ndarray | None = None, least: int = 1
) -> jaxslim.Plan:
    """A plan that keeps what `keep` says, and the first `least` indices in `among` of an axis that would keep fewer."""
    among = np.ones_like(keep) if among is None else among
    keep = keep & among
    keep[0] = True
    for axes in graph.units:
        for units in axes:
            if keep[units].sum() < least:
                keep[units[among[units]][:least]] = True
    return jaxslim.Plan(keep=keep, requested=None, achieved=float(np.mean(~keep)), layers=())


def random_keep(graph: jaxslim.ChannelGraph, seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(graph.num_units + 1) >= share


def without_norm(graph: jaxslim.ChannelGraph, variables: Any, plan: jaxslim.Plan) -> Any:
    """The full network with the dropped units' BatchNorm scale and bias at zero, and nothing else changed."""

    def blank(path: Any, leaf: np.ndarray) -> np.ndarray:
        names = tuple(key.key for key in path)
        of_norm = (*names[:-1], "scale") in graph.paths and names[-1] in ("scale", "bias")
        return leaf * plan.keep[graph.units[graph.find(names)][-1]] if of_norm else leaf

    return jax.tree_util.tree_map_with_path(blank, variables)


def assert_close(actual: Any, expected: Any) -> None:
    assert np.all(np.isfinite(expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-9 * (1 + np.max(np.abs(expected))))


def assert_same(one: Any, other: Any) -> None:
    """Same tree, same types, same bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_same_graph(one: jaxslim.ChannelGraph, other: jaxslim.ChannelGraph) -> None:
    assert (one.paths, one.shapes, one.vectors, one.num_units, one.opaque) == (
        other.paths,
        other.shapes,
        other.vectors,
        other.num_units,
        other.opaque,
    )
    np.testing.assert_array_equal(one.exact, other.exact)
    for mine, theirs in zip(one.units, other.units, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------------------------------
# The invariants, for any network.


def check(network: Any, variables: Any, images: np.ndarray, seed: int, share: float) -> None:
    graph = jaxslim.trace(network, variables, images)
    untouched = jax.tree.map(np.copy, variables)
    run = compiled(network)

    keep = random_keep(graph, seed, share)
    exact = by_hand(graph, keep | ~graph.exact)
    logits = run(jaxslim.cut(graph, variables, exact), images)
    assert_close(logits, run(jaxslim.zero(graph, variables, exact), images))
    assert_close(logits, run(without_norm(graph, variables, exact), images))

    everything = by_hand(graph, np.ones(graph.num_units + 1, bool))
    assert_same(jaxslim.cut(graph, variables, everything), variables)

    # Cutting twice is cutting once by the union, for inexact units too, however the second trace numbers them.
    least = getattr(network, "least", 1)
    first, second = by_hand(graph, keep, least=least), random_keep(graph, seed + 1, share)
    both = by_hand(graph, second, among=first.keep)
    once, then = jaxslim.cut(graph, variables, both), jaxslim.cut(graph, variables, first)
    again = jaxslim.trace(network, then, images)
    assert_same(jaxslim.cut(again, then, carried_over(graph, first, again, both)), once)

    assert jaxslim.count(network, once, images).params == surviving(graph, both)  # which runs it, abstractly
    assert_same(variables, untouched)


def carried_over(
    graph: jaxslim.ChannelGraph, first: jaxslim.Plan, again: jaxslim.ChannelGraph, both: jaxslim.Plan
) -> jaxslim.Plan:
    """The plan `both` in the units of the network that `first` left."""
    keep = np.ones(again.num_units + 1, bool)
    for path, axes in zip(again.paths, again.units, strict=True):
        for units, before in zip(axes, graph.units[graph.paths.index(path)], strict=True):
            np.logical_and.at(keep, units, both.keep[before[first.keep[before]]])
    assert keep[0], "an index that could be cut is fixed after the first cut"
    return jaxslim.Plan(keep=keep, requested=None, achieved=0.0, layers=())


def surviving(graph: jaxslim.ChannelGraph, plan: jaxslim.Plan) -> int:
    sizes = (
        np.prod([plan.keep[units].sum() for units in axes])
        for path, axes in zip(graph.paths, graph.units, strict=True)
        if path[0] == "params"
    )
    return int(sum(sizes))


@given(networks(), st.integers(0, 999), st.sampled_from([0.2, 0.5, 0.9]))
def test_invariants_hold_for_random_networks_and_plans(network: Network, seed: int, share: float) -> None:
    check(network, network.init(), network.images(), seed, share)


# ---------------------------------------------------------------------------------------------------------------------
# What each kind of layer should give: units and, of them, inexact ones; the stem has 4 channels. Worked by hand.

BLOCKS = {"layers": 2, "inner": 3, "remat": False, "reverse": False}
CASES: dict[str, tuple[list[tuple[str, dict[str, Any]]], int, int]] = {
    "conv": ([("conv_norm", {"width": 5, "bias": True, "stride": 2})], 4 + 5, 0),
    "residual": ([("residual", {"project": False, "norm": True, "act": "relu"})], 4 + 4, 0),
    "projected residual": ([("residual", {"project": True, "norm": True, "act": "relu"})], 4 + 4 + 4, 0),
    "pre-activation": ([("pre_activation", {"inner": 3, "act": "gelu"})], 4 + 3, 0),
    "padded shortcut, more channels": ([("zero_padded_residual", {"more": 2})], 4, 0),
    "dense block": ([("dense_block", {"growth": 2, "layers": 3})], 4 + 3 * 2, 0),
    "depthwise": ([("depthwise", {"multiplier": 1})], 4, 0),
    "depthwise, multiplier 2": ([("depthwise", {"multiplier": 2})], 4, 0),
    "grouped: every group loses the same": ([("grouped", {"groups": 2, "each": 3, "out": 2})], 4 + 3 + 2, 0),
    "branches, concatenated": ([("multi_branch", {"width": 3, "join": "concatenate"})], 4 + 3 + 3 * 3, 0),
    "branches, added": ([("multi_branch", {"width": 5, "join": "sum"})], 4 + 3 + 5, 0),
    "branches, stacked": ([("multi_branch", {"width": 5, "join": "stack"})], 4 + 3 + 5, 0),
    "branches, multiplied": ([("multi_branch", {"width": 5, "join": "product"})], 4 + 3 + 5, 0),
    "branches, the largest": ([("multi_branch", {"width": 5, "join": "max"})], 4 + 3 + 5, 0),
    "split gate": ([("gated", {"width": 3, "how": "split"})], 4 + 3, 0),
    "sliced gate": ([("gated", {"width": 3, "how": "slices"})], 4 + 3, 0),
    "strided gate": ([("gated", {"width": 3, "how": "strides"})], 4 + 3, 0),
    "jax.nn.glu": ([("gated", {"width": 3, "how": "glu"})], 4 + 3, 0),
    "halves by split": ([("halved", {"each": 5, "how": "split"})], 4 + 5 + 3, 0),
    "halves by slices": ([("halved", {"each": 5, "how": "slices"})], 4 + 5 + 3, 0),
    "halves by strides": ([("halved", {"each": 5, "how": "strides"})], 4 + 5 + 3, 0),
    "squeeze and excite": ([("squeeze_excite", {"hidden": 3})], 4 + 3, 3),
    "attention: same widths of all heads": ([("attention", {"heads": 2, "each": 3, "norm": True})], 4 + 3 + 3 + 4, 0),
    "attention, no norm": ([("attention", {"heads": 2, "each": 3, "norm": False})], 4 + 3 + 3 + 4, 6),
    "head attention: heads apart from widths": ([("head_attention", {"heads": 2, "each": 3})], 4 + 2 + 3 + 3, 8),
    "packed attention": ([("packed_attention", {"each": 3})], 4 + 3, 3),
    "token mixing": ([("token_mixing", {"hidden": 3})], 4 + 3, 3),
    "positions": ([("positions", {"first": True})], 4, 0),
    "strided pooling": ([("pool", {"how": "strides"})], 4, 0),
    "max pooling": ([("pool", {"how": "max"})], 4, 0),
    "mean pooling": ([("pool", {"how": "mean"})], 4, 0),
    "channel shuffle": ([("shuffle", {"groups": 2, "each": 3})], 4 + 3, 0),
    "channels first": ([("channels_first", {"width": 3})], 4 + 3, 0),
    "mirrored channels go in pairs": ([("mirrored", {"width": 5})], 4 + 3, 0),
    "repeated, tiled": ([("repeated", {"times": 2, "how": "tile"}), ("conv", {"width": 3})], 4 + 3 + 3, 0),
    "repeated": ([("repeated", {"times": 2, "how": "concatenate"}), ("conv", {"width": 3})], 4 + 3 + 3, 0),
    "shared": ([("shared", {"norm": True})], 4, 0),
    "shared, no norm between": ([("shared", {"norm": False})], 4, 4),
    "shared layer on its own output": ([("shared_layer", {"width": 3, "how": "stacked", "act": "relu"})], 4, 0),
    "shared layer, concatenated": ([("shared_layer", {"width": 3, "how": "joined", "act": "relu"})], 4 + 3, 0),
    "shared layer on two inputs": ([("shared_layer", {"width": 3, "how": "siamese", "act": "relu"})], 4 + 3, 0),
    "shared norm": ([("shared_layer", {"width": 3, "how": "norm", "act": "relu"})], 4 + 3, 0),
    "kernel there and back": ([("tied", {"width": 3})], 4 + 3, 0),
    "recurrent": ([("recurrent", {"rounds": 3})], 4, 0),
    "scan": ([("scanned", {"layers": 3, "act": "silu"})], 4, 0),
    "scan of remat blocks": ([("scanned_blocks", BLOCKS | {"remat": True, "out": "last"})], 4 + 3, 0),
    "scan from the last block": ([("scanned_blocks", BLOCKS | {"reverse": True, "out": "last"})], 4 + 3, 0),
    "scan, outputs of all blocks added": ([("scanned_blocks", BLOCKS | {"out": "sum"})], 4 + 3, 0),
    "scan, outputs of all blocks joined": ([("scanned_blocks", BLOCKS | {"out": "joined"})], 4 + 3, 0),
    "scan over the last axis": ([("scanned_last", {"layers": 2})], 4, 4),  # no vectors are seen there
    "cond": ([("branches", {"width": 3})], 4 + 3, 0),
    "while": ([("looped", {"rounds": 2})], 4, 0),
    "padded with zeros": ([("ones_padded", {"value": 0.0})], 4 + 3, 0),
    "padded with ones": ([("ones_padded", {"value": 1.0})], 4 + 3, 4),
    "sigmoid into a convolution": ([("activation", {"act": "sigmoid"}), ("conv", {"width": 3})], 4 + 3, 4),
    "tanh into a convolution": ([("activation", {"act": "tanh"}), ("conv", {"width": 3})], 4 + 3, 0),
    "residual on a bare projection": (
        [("residual", {"project": True, "norm": False, "act": "relu"}), ("conv", {"width": 3})],
        4 + 4 + 4 + 3,
        4,
    ),
    "layer norm": ([("layer_norm", {})], 4, 4),
    "softmax over channels": ([("channel_softmax", {})], 4, 4),
    "im2col by shifts": ([("im2col", {"width": 3, "how": "shifts"})], 7, 0),
    "im2col by patches": ([("im2col", {"width": 3, "how": "patches"})], 7, 0),
    "sort": ([("sorted_channels", {})], 0, 0),
    "weighted by index": ([("weighted_by_index", {})], 0, 0),
}


def case(name: str, wrap: str = "plain", **head: Any) -> Network:
    return Network(tuple((part, options, wrap) for part, options in CASES[name][0]), **head)


@pytest.mark.parametrize("name", CASES)
def test_units_are_those_worked_by_hand(name: str) -> None:
    _, units, inexact = CASES[name]
    for wrap in WRAPS:
        network = case(name, wrap)
        graph = jaxslim.trace(network, network.init(), network.images())
        assert (graph.num_units, np.sum(~graph.exact)) == (units, inexact)
        assert graph.opaque == (("sort",) if name == "sort" else ())


@pytest.mark.parametrize("name", CASES)
def test_invariants_hold_for_each_kind_of_layer(name: str) -> None:
    network = case(name, flat=True, hidden=3)
    variables, images = network.init(), network.images()
    if name not in ("sort", "weighted by index", "padded shortcut, more channels"):
        assert jaxslim.trace(network, variables, images).num_units == CASES[name][1] + 3  # flattening fixes nothing
    check(network, variables, images, seed=5, share=0.5)


@pytest.mark.parametrize(
    "name", ["sigmoid into a convolution", "residual on a bare projection", "layer norm", "softmax over channels"]
)
def test_inexact_units_do_differ(name: str) -> None:
    network = case(name)
    variables, images = network.init(), network.images()
    graph = jaxslim.trace(network, variables, images)
    keep = graph.exact.copy()
    keep[np.flatnonzero(~graph.exact)[0]] = True
    plan = by_hand(graph, keep)
    run = compiled(network)
    narrow, zeroed = (run(change(graph, variables, plan), images) for change in (jaxslim.cut, jaxslim.zero))
    assert np.max(np.abs(narrow - zeroed)) > 1e-3


def test_every_part_has_a_case() -> None:
    assert {part for parts, *_ in CASES.values() for part, _ in parts} == set(PARTS)


def unit(graph: jaxslim.ChannelGraph, path: str, axis: int = -1) -> list[int]:
    number = graph.find(tuple(path.split("/")))
    assert number is not None
    return graph.units[number][axis].tolist()


def test_units_of_vgg() -> None:
    module = jaxslim.VGG((3, "M", 4), num_classes=2)
    images = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    graph = jaxslim.trace(module.apply, jax.eval_shape(module.init, jax.random.key(0), images), images)
    assert graph.num_units == 3 + 4
    for leaf in ("params/bn0/scale", "params/bn0/bias", "batch_stats/bn0/mean", "batch_stats/bn0/var"):
        assert unit(graph, leaf) == [1, 2, 3]
    assert unit(graph, "conv0/kernel") == unit(graph, "conv1/kernel", 2) == [1, 2, 3]
    assert unit(graph, "conv1/kernel") == unit(graph, "bn1/scale") == [4, 5, 6, 7]
    assert unit(graph, "classifier/kernel", 0) == [4, 5, 6, 7]
    assert unit(graph, "conv0/kernel", 2) == [0, 0, 0]
    assert unit(graph, "classifier/kernel") == unit(graph, "classifier/bias") == [0, 0]
    assert graph.exact.all()
    assert graph.opaque == ()


def graph_of(name: str, **head: Any) -> jaxslim.ChannelGraph:
    network = case(name, **head)
    return jaxslim.trace(network, network.init(), network.images())


def test_units_of_some_axes() -> None:
    assert unit(graph_of("depthwise, multiplier 2"), "depthwise0/kernel") == [1, 1, 2, 2, 3, 3, 4, 4]
    assert unit(graph_of("split gate"), "bn1/scale") == [5, 6, 7] * 2
    assert unit(graph_of("strided gate"), "bn1/scale") == [5, 5, 6, 6, 7, 7]
    assert unit(graph_of("mirrored channels go in pairs"), "bn1/scale") == [5, 6, 7, 6, 5]
    assert unit(graph_of("attention: same widths of all heads"), "dense0/kernel") == [5, 6, 7] * 2
    assert unit(graph_of("channel shuffle"), "bn2/scale") == [5, 5, 6, 6, 7, 7]
    assert unit(graph_of("padded shortcut, more channels"), "bn1/scale") == [0, 1, 2, 3, 4, 0]
    assert unit(graph_of("strided pooling", flat=True), "dense0/kernel", 0) == [1, 2, 3, 4] * 4
    dense = graph_of("dense block")
    assert unit(dense, "bn1/scale") == [1, 2, 3, 4]
    assert unit(dense, "bn3/scale") == [*range(1, 9)]
    heads = graph_of("head attention: heads apart from widths")
    assert [unit(heads, f"project{i}/kernel", 1) for i in range(3)] == [[5, 6]] * 3
    assert unit(heads, "out0/kernel", 0) == [5, 6]
    assert unit(heads, "project0/kernel") == unit(heads, "project1/kernel") != unit(heads, "project2/kernel")


# ---------------------------------------------------------------------------------------------------------------------
# The graph as a value.


@settings(max_examples=10)
@given(networks())
def test_graph_depends_on_nothing_but_shapes(network: Network) -> None:
    variables = network.init()
    graph = jaxslim.trace(network, variables, network.images(1))
    assert_same_graph(graph, jaxslim.trace(network, variables, network.images(3)))
    described = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), variables)
    images = jax.ShapeDtypeStruct((2, network.size, network.size, 3), jnp.float32)
    assert_same_graph(graph, jaxslim.trace(network, described, images))
    plan = by_hand(graph, random_keep(graph, 0, 0.5))
    shapes = [leaf.shape for leaf in jax.tree.leaves(jaxslim.cut(graph, described, plan))]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(jaxslim.cut(graph, variables, plan))]


def test_print_shows_the_units_of_each_axis() -> None:
    weights = {"a": np.ones((2, 12)), "scale": np.ones(12), "b": np.ones((13, 1))}

    def apply(w: Any, x: Any) -> Any:
        h = jnp.pad(x @ w["a"] * w["scale"][None], ((0, 0), (0, 1)))
        return h @ w["b"]

    graph = jaxslim.trace(apply, weights, np.ones((1, 2)))
    assert repr([graph]) == "[ChannelGraph(3 arrays, 12 units, 12 exact)]"
    assert str(graph).splitlines() == [
        "ChannelGraph(3 arrays, 12 units, 12 exact)",
        "array  shape    units of each axis, 0 is fixed",
        "a      (2, 12)  0 1-12",
        "scale  (12,)    1-12",
        "b      (13, 1)  0-12 0",
    ]
    graph = jaxslim.trace(lambda w, x: jnp.sort(apply(w, x) * x[:, :1] @ w["b"].T), weights, np.ones((1, 2)))
    assert repr(graph) == "ChannelGraph(3 arrays, 0 units, 0 exact, opaque: sort)"


def test_print_leaves_out_the_middle_and_scattered_units() -> None:
    def apply(w: Any, x: Any) -> Any:
        for kernel in w:
            x = x @ kernel
        return x

    lines = str(trace_of(apply, *[(3, 3)] * 60)).splitlines()
    assert len(lines) == 27
    assert lines[2] == "0      (3, 3)  0 1-3"
    assert lines[13:16] == ["11     (3, 3)  31-33 34-36", "... 36 more ...", "48     (3, 3)  142-144 145-147"]
    assert lines[-1] == "59     (3, 3)  175-177 0"
    assert unit_ranges(np.array([5, 4, 4, 9, 1, 2, 0])) == "0-2,4-5,9"
    assert unit_ranges(np.array([0, 2, 4, 6, 4])) == "3 units"
    assert unit_ranges(np.zeros(0, int)) == "none"


def trace_of(apply: Any, *shapes: tuple[int, ...], image: tuple[int, ...] = (2, 3)) -> jaxslim.ChannelGraph:
    """Graph of `apply([w0, w1, ...], images)`."""
    return jaxslim.trace(apply, [np.ones(shape, np.float32) for shape in shapes], np.ones(image, np.float32))


@pytest.mark.parametrize("parts", [(0,), (0, 4), (4, 0)])
def test_empty_parts_take_nothing(parts: tuple[int, ...]) -> None:
    def apply(w: Any, x: Any) -> Any:
        h = x @ w[0]
        rest = h.shape[1] - sum(parts)
        return jnp.concatenate(lax.split(h, (*parts, rest), axis=1)[::-1], axis=1) @ w[1]

    graph = trace_of(apply, (3, 4), (4, 2))
    assert (graph.num_units, graph.opaque) == (4, ())


def test_paths_are_found_by_their_end() -> None:
    def apply(v: Any, x: Any) -> Any:
        return (
            x @ v["params"]["a"]["w"] * v["params"]["a"]["s"][None] @ v["params"]["b"]["w"] + v["stats"]["b"]["w"].sum()
        )

    variables = {
        "params": {"a": {"w": np.ones((2, 3)), "s": np.ones(3)}, "b": {"w": np.ones((3, 2))}},
        "stats": {"b": {"w": np.ones((3, 2))}},
    }
    graph = jaxslim.trace(apply, variables, np.ones((1, 2)))
    for path in ("params/a/s", "a/s", "0/mu/a/s", "0/mu/params/a/s", "a/a/s"):
        assert graph.paths[graph.find(tuple(path.split("/")))] == ("params", "a", "s")
    assert graph.find(("params", "b", "w")) != graph.find(("stats", "b", "w"))
    for path in ((), ("s",), ("a",), ("c", "w"), ("a", "s", "x")):
        assert graph.find(path) is None
    with pytest.raises(
        jaxslim.InputError, match=r"^b/w can mean params/b/w and stats/b/w; pass the tree with its coll"
    ):
        graph.find(("b", "w"))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("sort", lambda x: jnp.sort(x, axis=-1)),
        ("cumsum", lambda x: jnp.cumsum(x, axis=-1)),
        ("gather", lambda x: x[:, np.array([2, 0, 1, 3])]),
        ("slice", lambda x: jnp.concatenate([x[:, :1], x[:, 1:]], axis=1)),
        ("scatter", lambda x: x.at[:, 0].set(1.0)),
        ("top_k", lambda x: lax.top_k(x, 4)[0]),
        ("fft", lambda x: jnp.abs(jnp.fft.fft(x))),
    ],
)
def test_what_no_rule_follows_fixes_its_channels_and_is_named(name: str, spoil: Any) -> None:
    graph = trace_of(lambda w, x: spoil(x @ w[0]) @ w[1] @ w[2] @ w[3], (3, 4), (4, 5), (5, 6), (6, 2))
    assert graph.opaque == (name,)
    assert (graph.units[0][1] == 0).all()
    assert graph.num_units == 5 + 6  # what comes after is not touched


EVERYDAY = {
    "stack": lambda h: jnp.stack([h, h]).sum(0),
    "unstack": lambda h: sum(jnp.unstack(h[None])),
    "unpacking": lambda h: functools.reduce(jnp.add, jnp.stack([h, h])),
    "tile": lambda h: jnp.tile(h, (2, 1)),
    "repeat": lambda h: jnp.repeat(h, 2, axis=0),
    "broadcast_to": lambda h: jnp.broadcast_to(h, (5, *h.shape)).mean(0),
    "expand_dims": lambda h: jnp.expand_dims(h, 1)[:, 0],
    "roll": lambda h: jnp.roll(h, 1, axis=0),
    "flip": lambda h: jnp.flip(h, axis=0),
    "take": lambda h: jnp.take(h, jnp.array([1, 0]), axis=0),
    "log2": lambda h: jnp.log2(1 + h * h),
    "polyval": lambda h: jnp.polyval(jnp.array([1.0, 2.0, 3.0]), h),
    "tanh, squared, from one": lambda h: 1 - jnp.square(jnp.tanh(h)),
    "where": lambda h: jnp.where(h > 0, h, 0.1 * h),
    "clip": lambda h: jnp.clip(h, -1, 1),
    "nan_to_num": jnp.nan_to_num,
    "linalg.norm": lambda h: h / jnp.linalg.norm(h, axis=0, keepdims=True),
    "var": lambda h: (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5),
    "einsum": lambda h: jnp.einsum("bc,dc->bc", h, h),
    "logsumexp": lambda h: h - jax.nn.logsumexp(h, axis=0, keepdims=True),
    "one half in bfloat16": lambda h: (h.astype(jnp.bfloat16) / 2).astype(h.dtype),
    "device_put": jax.device_put,
    "named": lambda h: checkpoint_name(h, "h"),
    "stopped": lax.stop_gradient,
    "vmap": jax.vmap(jnp.tanh),
    "map": lambda h: lax.map(jnp.tanh, h),
    **{
        name: getattr(jax.nn, name)
        for name in (
            "relu",
            "relu6",
            "gelu",
            "silu",
            "mish",
            "elu",
            "celu",
            "selu",
            "softplus",
            "soft_sign",
            "hard_tanh",
        )
    },
    **{name: getattr(jax.nn, name) for name in ("hard_swish", "leaky_relu", "sigmoid", "log_sigmoid", "squareplus")},
}


@pytest.mark.parametrize("use", EVERYDAY.values(), ids=EVERYDAY)
def test_channels_pass_through_everyday_functions(use: Any) -> None:
    graph = trace_of(lambda w, x: use(x @ w[0]) @ w[1], (3, 4), (4, 2))
    assert (graph.num_units, graph.opaque) == (4, ())
    assert unit(graph, "0") == unit(graph, "1", 0) == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_numbers_of_every_precision_are_known(dtype: Any) -> None:
    graph = trace_of(lambda w, x: jax.nn.relu((x @ w[0] * w[1][None]).astype(dtype)) @ w[2], (3, 4), (4,), (4, 2))
    assert graph.exact.all()


def test_channels_that_are_unstacked_stay() -> None:
    graph = trace_of(lambda w, x: jnp.stack(jnp.unstack(x @ w[0], axis=1), axis=1) @ w[1], (3, 4), (4, 2))
    assert graph.num_units == 0


def test_along_other_axes_the_same_primitives_let_channels_pass() -> None:
    def apply(w: Any, x: Any) -> Any:
        return jnp.cumsum(jnp.sort(x @ w[0], axis=0)[:, ::-1], axis=0)[:1] @ w[1]

    graph = trace_of(apply, (3, 4), (4, 2))
    assert (graph.num_units, graph.opaque) == (4, ())


def test_lists_and_bare_arrays_are_trees_too() -> None:
    graph = jaxslim.trace(lambda w, x: x @ w, np.ones((3, 2)), np.ones((1, 3)))
    assert (graph.paths, graph.num_units) == (((),), 0)
    graph = trace_of(lambda w, x: jnp.maximum(x @ w[0], 0) @ w[1], (3, 4), (4, 2))
    assert (graph.paths, graph.num_units) == ((("0",), ("1",)), 4)


def test_unread_leaves_come_last_and_every_index_is_a_unit() -> None:
    graph = trace_of(lambda w, x: x @ w[1], (4,), (3, 2))
    assert graph.paths == (("1",), ("0",))
    assert graph.num_units == 4


# ---------------------------------------------------------------------------------------------------------------------
# Faults found by these tests, each by its name.


def normed(w: Any, x: Any) -> Any:
    """Four channels that hold 0 where the scale is 0."""
    return (x @ w[0]) * w[1][None]


NORMED = ((3, 4), (4,), (4, 2))


@pytest.mark.parametrize(("value", "exact"), [(0.0, True), (1.0, False)])
def test_padding_counts_as_what_a_dropped_channel_holds(value: float, exact: bool) -> None:
    graph = trace_of(lambda w, x: jnp.pad(normed(w, x), ((0, 1), (0, 0)), constant_values=value) @ w[2], *NORMED)
    assert graph.exact[1:].tolist() == [exact] * 4
    graph = trace_of(lambda w, x: lax.pad(normed(w, x), value, ((0, -1, 0), (0, 0, 0))) @ w[2], *NORMED)
    assert graph.exact.all()  # cropped, not filled


@pytest.mark.parametrize(("filler", "exact"), [(0.0, True), (3.0, False), (math.nan, True), (None, True)])
def test_what_a_gather_fills_in_counts_as_what_a_dropped_channel_holds(filler: float | None, exact: bool) -> None:
    def apply(w: Any, x: Any) -> Any:
        return normed(w, x).at[jnp.array([0, 5])].get(mode="fill", fill_value=filler) @ w[2]

    assert trace_of(apply, *NORMED).exact[1:].tolist() == [exact] * 4


@pytest.mark.parametrize(("padding", "exact"), [((1, 1), True), ((2, 0), False), ((0, 2), False)])
def test_a_pooling_window_wholly_in_the_padding_holds_what_no_channel_does(padding: Any, exact: bool) -> None:
    def apply(w: Any, x: Any) -> Any:
        pooled = lax.reduce_window(normed(w, x), -jnp.inf, lax.max, (2, 1), (1, 1), (padding, (0, 0)))
        return pooled @ w[2]

    assert trace_of(apply, *NORMED).exact[1:].tolist() == [exact] * 4


@pytest.mark.parametrize(
    "odd",
    [
        lambda h: h / h,
        lambda h: h * (1 / h),
        lambda h: lax.rsqrt(h) * h,
        lambda h: lax.round(h + 0.5, lax.RoundingMethod.AWAY_FROM_ZERO),
    ],
)
def test_zero_over_zero_and_rounded_halves_are_not_zero(odd: Any) -> None:
    graph = trace_of(lambda w, x: odd(normed(w, x)) @ w[2], *NORMED)
    assert not graph.exact[1:].any()


def test_what_is_fixed_stays_fixed_in_either_order_and_in_loops() -> None:
    """Neither a table of positions nor the carry of a loop makes a spatial axis look as if it could be cut."""

    def positions(w: Any, x: Any) -> Any:
        return (w[1] + x @ w[0]).reshape(2, -1) @ w[2]

    def loop(w: Any, x: Any) -> Any:
        return lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h), x @ w[0]).reshape(2, -1) @ w[2]

    for apply in (positions, loop):
        assert trace_of(apply, (3, 4), (1, 5, 4), (20, 2), image=(2, 5, 3)).num_units >= 4


# ---------------------------------------------------------------------------------------------------------------------
# Linen modules.


class Block(nn.Module):
    inner: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(self.inner, (3, 3), use_bias=False)(y)))
        return x + nn.Conv(x.shape[-1], (3, 3))(y)


class Layer(Block):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x), None


class Mixed(nn.Module):
    """Most of what Linen offers, its widths as data."""

    stem: int = 4
    inner: int = 3
    scanned: int = 3
    heads: int = 2
    each: int = 2
    hidden: int = 5

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(self.stem, (3, 3), strides=2)(x)
        x = nn.remat(Block)(self.inner, name="block")(x)
        axes = {"params": 0, "batch_stats": 0}
        x, _ = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=2)(self.scanned, name="layers")(x)
        x = nn.Conv(x.shape[-1], (3, 3), feature_group_count=x.shape[-1])(x)
        x = nn.silu(nn.BatchNorm(use_running_average=True)(x))
        features = self.heads * self.each
        x = x + nn.MultiHeadDotProductAttention(self.heads, qkv_features=features, name="attention")(x)
        x = nn.tanh(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        x = nn.gelu(nn.BatchNorm(use_running_average=True)(nn.Dense(self.hidden)(x)))
        return nn.Dense(3)(x)

    @classmethod
    def of(cls, variables: Any) -> "Mixed":
        p = variables["params"]
        _, heads, each = p["attention"]["query"]["kernel"].shape
        return cls(
            stem=p["Conv_0"]["kernel"].shape[-1],
            inner=p["block"]["Conv_0"]["kernel"].shape[-1],
            scanned=p["layers"]["Conv_0"]["kernel"].shape[-1],
            heads=heads,
            each=each,
            hidden=p["Dense_0"]["kernel"].shape[-1],
        )


def mixed() -> tuple[Any, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    shapes = jax.eval_shape(Mixed().init, jax.random.key(0), images.astype(np.float32))
    rng = np.random.default_rng(1)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: draw(rng, path[-1].key, leaf.shape), shapes), images


def test_linen_units_and_invariants() -> None:
    variables, images = mixed()

    def apply(variables: Any, images: Any) -> Any:
        return Mixed.of(variables).apply(variables, images)

    graph = jaxslim.trace(apply, variables, images)
    assert graph.num_units == 4 + 3 + 3 + 2 + 2 + 2 + 5  # heads, widths of queries with keys, and of values, apart
    inexact = {*unit(graph, "attention/query/kernel", 1), *unit(graph, "attention/query/kernel")}
    inexact |= {*unit(graph, "attention/value/kernel")}
    assert set(np.flatnonzero(~graph.exact).tolist()) == inexact
    assert unit(graph, "layers/BatchNorm_0/scale") == unit(graph, "Conv_0/kernel")
    # Linen has one width for queries and values, so these units stay; the others go at random.
    widths = np.isin(np.arange(graph.num_units + 1), unit(graph, "attention/query/kernel"))
    widths |= np.isin(np.arange(graph.num_units + 1), unit(graph, "attention/value/kernel"))
    for seed in range(3):
        plan = by_hand(graph, random_keep(graph, seed, 0.5) | widths)
        assert jax.eval_shape(apply, jaxslim.cut(graph, variables, plan), images).shape == (2, 3)
    exact = by_hand(graph, plan.keep | ~graph.exact)
    run = compiled(apply)
    narrow, zeroed = (run(change(graph, variables, exact), images) for change in (jaxslim.cut, jaxslim.zero))
    assert_close(narrow, zeroed)


# ---------------------------------------------------------------------------------------------------------------------
# Everything that has the shape of the parameters is cut with them.

OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "chain": optax.chain(optax.clip(1.0), optax.add_decayed_weights(0.1), optax.trace(0.9), optax.ema(0.9)),
    "masked": optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p)),
    "partition": optax.partition(
        {"wide": optax.adam(0.1), "other": optax.sgd(0.1, momentum=0.9)},
        lambda p: jax.tree.map(lambda leaf: "wide" if leaf.ndim > 1 else "other", p),
    ),
    "multi_steps": optax.MultiSteps(optax.adamw(0.1), 2),
    "injected": optax.inject_hyperparams(optax.adam)(0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("collection", [False, True])
def test_optimizer_state_is_cut_like_the_parameters(name: str, collection: bool) -> None:
    network = case("attention, no norm")
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float32), network.init())
    graph = jaxslim.trace(network, variables, network.images())
    plan = by_hand(graph, random_keep(graph, 1, 0.5))
    params = variables if collection else variables["params"]
    narrow = jaxslim.cut(graph, params, plan)

    def init(params: Any) -> Any:
        """The optimizer's state, all zeros."""
        shapes = jax.eval_shape(OPTIMIZERS[name].init, params)
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    state = init(params)
    assert_same(jaxslim.cut(graph, state, plan), init(narrow))

    # Fill each entry with the parameter it belongs to: the cut must keep the two equal.
    own = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    kept = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(narrow)}

    def filled(state: Any, leaves: dict[str, Any]) -> Any:
        def fill(path: Any, leaf: Any) -> Any:
            ends = [value for own, value in leaves.items() if jax.tree_util.keystr(path).endswith(own)]
            return ends[0] if ends and np.ndim(leaf) else np.asarray(leaf)

        return jax.tree_util.tree_map_with_path(fill, state)

    assert_same(jaxslim.cut(graph, filled(state, own), plan), filled(init(narrow), kept))


def test_activations_that_share_ids_but_not_values_are_inexact() -> None:
    """BN and sigmoid(BN), joined and reshaped apart: the zero of one must not stand for the half of the other."""

    def apply(w: Any, x: Any) -> Any:
        h = normed(w, x)
        both = jnp.concatenate([h, jax.nn.sigmoid(h)], axis=1).reshape(2, 2, -1)
        return jnp.einsum("bgc,co->bo", both, w[2])

    graph = trace_of(apply, *NORMED)
    assert graph.num_units == 4
    assert not graph.exact[1:].any()


def test_division_by_a_vector_that_is_zeroed_is_inexact() -> None:
    def apply(w: Any, x: Any) -> Any:
        return (x @ w[0] / w[3][None] * w[1][None]) @ w[2]

    assert not trace_of(apply, *NORMED, (4,)).exact[1:].any()


def test_rounding_to_integers_is_not_the_identity() -> None:
    def apply(w: Any, x: Any) -> Any:
        return ((3 * jax.nn.sigmoid(normed(w, x))).astype(int) - 1.5) @ w[2]

    assert not trace_of(apply, *NORMED).exact[1:].any()


def test_joining_zeros_along_another_axis_keeps_units_exact() -> None:
    def apply(w: Any, x: Any) -> Any:
        h = normed(w, x)
        return jnp.concatenate([h, jnp.zeros_like(h)], axis=0) @ w[2]

    assert trace_of(apply, *NORMED).exact.all()


def test_repeated_features_bind_the_channels_they_meet() -> None:
    """Two features, each repeated as often as there are channels for it: both halves lose the same offsets."""

    def apply(w: Any, x: Any) -> Any:
        h = x @ w[0]
        return (h * jnp.repeat(x[:, :2], h.shape[1] // 2, axis=1)) @ w[1]

    graph = trace_of(apply, (3, 4), (4, 2))
    assert graph.units[0][1].tolist() == [1, 2, 1, 2]


def test_repeats_of_fixed_features_count_as_a_width() -> None:
    """A trace cannot tell a constant number of repeats from a width; the constant fails after a cut."""

    def apply(w: Any, x: Any, times: int | None = None) -> Any:
        return (jnp.repeat(x, times or w[0].shape[0] // 3, axis=1) * w[0][None]) @ w[1]

    weights, x = [np.ones(6), np.ones((6, 2))], np.ones((1, 3))
    keep = np.array([True, True, False])
    for times in (None, 2):
        graph = jaxslim.trace(lambda w, x, times=times: apply(w, x, times), weights, x)
        assert graph.units[0][0].tolist() == [1, 2] * 3
        cut = jaxslim.cut(graph, weights, by_hand(graph, keep))
    assert apply(cut, x).shape == (1, 2)
    with pytest.raises(TypeError, match="incompatible shapes"):
        apply(cut, x, 2)


def test_a_bare_array_is_cut_and_so_is_its_optimizer_state() -> None:
    weights = np.arange(16.0, dtype=np.float32).reshape(4, 4)
    graph = jaxslim.trace(lambda w, x: jax.nn.relu(x @ w) @ w.T, weights, np.ones((1, 4), np.float32))
    plan = by_hand(graph, np.array([True, True, False, True, True]))
    assert jaxslim.cut(graph, weights, plan).tolist() == weights[:, [0, 2, 3]].tolist()
    assert jax.tree.leaves(jaxslim.cut(graph, optax.trace(0.9).init(weights), plan))[0].shape == (4, 3)


def test_a_part_of_a_collection_is_refused() -> None:
    """The `a` of a block would be taken for the `a` of the collection."""
    variables = {"params": {"a": np.ones((3, 4)), "block": {"a": np.ones((4, 2))}}}

    def apply(v: Any, x: Any) -> Any:
        return jax.nn.relu(x @ v["params"]["a"]) @ v["params"]["block"]["a"]

    graph = jaxslim.trace(apply, variables, np.ones((1, 3)))
    plan = by_hand(graph, np.array([True, False, True, True, True]))
    assert jaxslim.cut(graph, variables["params"], plan)["block"]["a"].shape == (3, 2)
    with pytest.raises(jaxslim.InputError, match=r"The tree lacks params/block/a; cut the traced variables or a whole"):
        jaxslim.cut(graph, {"a": np.ones((3, 4))}, plan)
