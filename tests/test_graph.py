"""The channel graph against what it is for: a cut network computes what the full one does without those channels."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from networks import PARTS, WRAPS, Network, compiled, draw, networks
from test_narrow import assert_close, assert_same, by_hand, carried_over, random_keep

import jaxslim
from jaxslim.core.printing import unit_ranges

# ---------------------------------------------------------------------------------------------------------------------
# The invariants, for any network.


def check(network: Any, variables: Any, images: np.ndarray, seed: int, share: float) -> None:
    graph = jaxslim.trace(network, variables, images)
    untouched = jax.tree.map(np.copy, variables)
    check_masking(network, graph, variables, images, random_keep(graph, seed, share))

    # Cutting twice is cutting once by the union, for inexact units too, however the second trace numbers them.
    both = by_hand(graph, random_keep(graph, seed + 1, share))
    first = by_hand(graph, both.keep | random_keep(graph, seed, 0.5))
    small, smaller = (jaxslim.cut(graph, variables, plan) for plan in (first, both))
    again = jaxslim.trace(jaxslim.narrow(network, graph, first), small, images)
    carried = carried_over(graph, first, again, both)
    if not (~carried.keep & again.survivors(carried.keep)).any():  # else a norm is the last reader of a grid's element,
        assert_same(jaxslim.cut(again, small, carried), smaller)  # and is one unit with the element in the second graph

    assert jaxslim.count(jaxslim.narrow(network, graph, both), smaller, images).params == surviving(graph, both)
    assert_same(variables, untouched)


def check_masking(apply: Any, graph: jaxslim.ChannelGraph, variables: Any, images: Any, keep: np.ndarray) -> None:
    """Without exact units, the cut program gives what the masked network gives."""
    plan = by_hand(graph, keep, spare=~graph.exact)
    masked = compiled(apply)(jaxslim.mask(graph, variables, plan), images)
    narrow = compiled(jaxslim.narrow(apply, graph, plan))
    assert_close(narrow(jaxslim.cut(graph, variables, plan), images), masked)


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
# What each kind of layer should give: units that can be chosen, elements of grids, and inexact units. Worked by hand.
# The stem has 4 channels. The head begins with a norm, which selects wherever something else reads the stream too.

BLOCKS = {"layers": 2, "inner": 3, "remat": False, "reverse": False}
REPEATED = 4 + 3 + 2 + 3  # the channels, their copies, and what is made of them
CASES: dict[str, tuple[list[tuple[str, dict[str, Any]]], int, int, int]] = {
    "conv": ([("conv_norm", {"width": 5, "bias": True, "stride": 2})], 4 + 5, 0, 0),
    "residual": ([("residual", {"project": False, "norm": True, "act": "relu"})], 4 + 4 + 4, 0, 0),
    "projected residual": ([("residual", {"project": True, "norm": True, "act": "relu"})], 4 + 4 + 4, 0, 0),
    "pre-activation": ([("pre_activation", {"inner": 3, "act": "gelu"})], 4 + 4 + 3 + 4, 0, 0),
    "padded shortcut, more channels": ([("zero_padded_residual", {"more": 2})], 6 + 4, 0, 0),
    "dense block": ([("dense_block", {"growth": 2, "layers": 3})], (4 + 2 + 2) + (4 + 6 + 8 + 10), 0, 0),
    "depthwise": ([("depthwise", {"multiplier": 1})], 4, 0, 0),
    "depthwise, multiplier 2": ([("depthwise", {"multiplier": 2})], 4 + 2, 4 * 2, 0),
    "grouped": ([("grouped", {"groups": 2, "each": 3, "out": 2})], 4 + 2 + 3 + 2, 2 * 3 + 2 * 2, 0),
    "branches, concatenated": ([("multi_branch", {"width": 3, "join": "concatenate"})], 4 + 3 + 3 * 3, 0, 0),
    "branches, added": ([("multi_branch", {"width": 5, "join": "sum"})], 4 + 3 + 5, 0, 0),
    "branches, stacked": ([("multi_branch", {"width": 5, "join": "stack"})], 4 + 3 + 5, 0, 0),
    "branches, multiplied": ([("multi_branch", {"width": 5, "join": "product"})], 4 + 3 + 5, 0, 0),
    "branches, the largest": ([("multi_branch", {"width": 5, "join": "max"})], 4 + 3 + 5, 0, 0),
    "split gate": ([("gated", {"width": 3, "how": "split"})], 4 + 3, 0, 0),
    "sliced gate": ([("gated", {"width": 3, "how": "slices"})], 4 + 3, 0, 0),
    "strided gate": ([("gated", {"width": 3, "how": "strides"})], 4 + 3, 0, 0),
    "jax.nn.glu": ([("gated", {"width": 3, "how": "glu"})], 4 + 3, 0, 0),
    "halves by split": ([("halved", {"each": 5, "how": "split"})], 4 + 10 + 3, 0, 0),
    "halves by slices": ([("halved", {"each": 5, "how": "slices"})], 4 + 10 + 3, 0, 0),
    "halves by strides": ([("halved", {"each": 5, "how": "strides"})], 4 + 10 + 3, 0, 0),
    "squeeze and excite": ([("squeeze_excite", {"hidden": 3})], 4 + 3 + 4, 0, 0),
    "attention": ([("attention", {"heads": 2, "each": 3, "norm": True})], 4 + 2 + 3 + 3 + 4, 4 * 6, 0),
    "attention, no norm": ([("attention", {"heads": 2, "each": 3, "norm": False})], 4 + 2 + 3 + 3 + 4, 4 * 6, 0),
    "attention, heads apart": ([("head_attention", {"heads": 2, "each": 3})], 4 + 2 + 3 + 3 + 4, 0, 0),
    "packed attention": ([("packed_attention", {"each": 3})], 4 + 3 + 4, 0, 0),
    "token mixing": ([("token_mixing", {"hidden": 3})], 4 + 3, 0, 0),
    "positions": ([("positions", {"first": True})], 4, 0, 0),
    "strided pooling": ([("pool", {"how": "strides"})], 4, 0, 0),
    "max pooling": ([("pool", {"how": "max"})], 4, 0, 0),
    "mean pooling": ([("pool", {"how": "mean"})], 4, 0, 0),
    "channel shuffle": ([("shuffle", {"groups": 2, "each": 3})], 4 + 2 + 3, 6 + 6, 0),
    "channels first": ([("channels_first", {"width": 3})], 4 + 3, 0, 0),
    "mirrored channels go in pairs": ([("mirrored", {"width": 5})], 4 + 3 + 4, 0, 0),
    "repeated, tiled": ([("repeated", {"times": 2, "how": "tile"}), ("conv", {"width": 3})], REPEATED, 6, 0),
    "repeated": ([("repeated", {"times": 2, "how": "concatenate"}), ("conv", {"width": 3})], REPEATED, 6, 0),
    "shared": ([("shared", {"norm": True})], 4 + 4 + 4, 0, 0),
    "shared, no norm between": ([("shared", {"norm": False})], 4 + 4, 0, 0),
    "shared layer on its own output": ([("shared_layer", {"width": 3, "how": "stacked", "act": "relu"})], 4 + 4, 0, 0),
    "shared layer, concatenated": ([("shared_layer", {"width": 3, "how": "joined", "act": "relu"})], 4 + 3 + 6, 0, 0),
    "shared layer on two inputs": ([("shared_layer", {"width": 3, "how": "siamese", "act": "relu"})], 4 + 3, 0, 0),
    "shared norm": ([("shared_layer", {"width": 3, "how": "norm", "act": "relu"})], 4 + 3, 0, 0),
    "kernel there and back": ([("tied", {"width": 3})], 4 + 3 + 4, 0, 0),
    "recurrent": ([("recurrent", {"rounds": 3})], 4 + 4, 0, 0),
    "scan": ([("scanned", {"layers": 3, "act": "silu"})], 4 + 4 + 4, 0, 0),
    "scan of remat blocks": ([("scanned_blocks", BLOCKS | {"remat": True, "out": "last"})], 4 + 3 + 4, 0, 0),
    "scan from the last block": ([("scanned_blocks", BLOCKS | {"reverse": True, "out": "last"})], 4 + 3 + 4, 0, 0),
    "scan, outputs of all blocks added": ([("scanned_blocks", BLOCKS | {"out": "sum"})], 4 + 3 + 4, 0, 0),
    "scan, outputs of all blocks joined": ([("scanned_blocks", BLOCKS | {"out": "joined"})], 4 + 3 + 8, 0, 0),
    "scan over the last axis": ([("scanned_last", {"layers": 2})], 4 + 4, 0, 0),
    "cond": ([("branches", {"width": 3})], 4 + 3, 0, 0),
    "while": ([("looped", {"rounds": 2})], 4, 0, 0),
    "padded with zeros": ([("ones_padded", {"value": 0.0})], 4 + 3, 0, 0),
    "padded with ones": ([("ones_padded", {"value": 1.0})], 4 + 3, 0, 0),
    "sigmoid into a convolution": ([("activation", {"act": "sigmoid"}), ("conv", {"width": 3})], 4 + 3, 0, 0),
    "layer norm": ([("layer_norm", {"fast": True})], 4, 0, 0),
    "layer norm in two passes": ([("layer_norm", {"fast": False})], 4, 0, 4),
    "softmax over channels": ([("channel_softmax", {})], 4, 0, 4),
    "im2col by shifts": ([("im2col", {"width": 3, "how": "shifts"})], 4 + 3, 0, 0),
    "im2col by patches, whose rows and columns can go": ([("im2col", {"width": 3, "how": "patches"})], 4 + 6 + 3, 0, 0),
    "sort": ([("sorted_channels", {})], 0, 0, 0),
    "weighted by index": ([("weighted_by_index", {})], 4, 0, 0),
}
UNIFORM = {"residual": 4 + 4, "pre-activation": 4 + 3, "dense block": 4 + 3 * 2, "shared": 4, "recurrent": 4, "scan": 4}


def case(name: str, wrap: str = "plain", **head: Any) -> Network:
    return Network(tuple((part, options, wrap) for part, options in CASES[name][0]), **head)


def graph_of(name: str, *, selection: bool = True, **head: Any) -> jaxslim.ChannelGraph:
    network = case(name, **head)
    return jaxslim.trace(network, network.init(), network.images(), selection=selection)


@pytest.mark.parametrize("name", CASES)
def test_units_are_those_worked_by_hand(name: str) -> None:
    for wrap in WRAPS:
        graph = graph_of(name, wrap=wrap)
        choosable = np.sum(graph.choosable)
        assert (choosable, graph.num_units - choosable, np.sum(~graph.exact)) == CASES[name][1:]
        assert graph.opaque == (("sort along the channels",) if name == "sort" else ())


@pytest.mark.parametrize("name", UNIFORM)
def test_without_selection_widths_are_uniform(name: str) -> None:
    graph = graph_of(name, selection=False)
    assert (graph.num_units, graph.exact.all()) == (UNIFORM[name], True)
    assert (graph.below.size, graph.closed.any()) == (0, False)


@pytest.mark.parametrize("name", CASES)
def test_invariants_hold_for_each_kind_of_layer(name: str) -> None:
    network = case(name, flat=True, hidden=3)
    variables, images = network.init(), network.images()
    graph = jaxslim.trace(network, variables, images)
    assert np.sum(graph.choosable) == CASES[name][1] + 3  # flattening fixes nothing
    check(network, variables, images, seed=5, share=0.5)


@pytest.mark.parametrize("name", ["layer norm in two passes", "softmax over channels"])
def test_inexact_units_do_differ(name: str) -> None:
    network = case(name)
    variables, images = network.init(), network.images()
    graph = jaxslim.trace(network, variables, images)
    plan = by_hand(graph, np.arange(graph.num_units + 1) != np.flatnonzero(~graph.exact)[0])
    narrow = compiled(jaxslim.narrow(network, graph, plan))(jaxslim.cut(graph, variables, plan), images)
    masked = compiled(network)(jaxslim.mask(graph, variables, plan), images)
    assert np.max(np.abs(narrow - masked)) > 1e-4


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


def test_units_of_some_axes() -> None:
    assert unit(graph_of("split gate"), "bn1/scale") == [5, 6, 7] * 2
    assert unit(graph_of("strided gate"), "bn1/scale") == [5, 5, 6, 6, 7, 7]
    assert unit(graph_of("mirrored channels go in pairs"), "bn1/scale") == [5, 6, 7, 6, 5]
    assert unit(graph_of("padded shortcut, more channels"), "bn1/scale") == [5, 1, 2, 3, 4, 6]
    assert unit(graph_of("strided pooling", flat=True), "dense0/kernel", 0) == [1, 2, 3, 4] * 4
    heads = graph_of("attention, heads apart")
    assert [unit(heads, f"project{i}/kernel", 1) for i in range(3)] == [[5, 6]] * 3
    assert unit(heads, "out0/kernel", 0) == [5, 6]
    assert unit(heads, "project0/kernel") == unit(heads, "project1/kernel") != unit(heads, "project2/kernel")


def above(graph: jaxslim.ChannelGraph, units: list[int]) -> list[list[int]]:
    """For each unit, those above."""
    return [graph.below[1, graph.below[0] == one].tolist() for one in units]


def test_an_element_goes_with_its_row_and_with_its_column() -> None:
    graph = graph_of("depthwise, multiplier 2")
    elements = unit(graph, "depthwise0/kernel")
    assert not graph.choosable[elements].any()
    rows, columns = zip(*above(graph, elements), strict=True)
    assert list(rows) == np.repeat(unit(graph, "bn0/scale"), 2).tolist()
    assert columns == columns[:2] * 4
    keep = np.ones(graph.num_units + 1, bool)
    keep[columns[0]] = False
    assert graph.survivors(keep)[elements].tolist() == [False, True] * 4


# ---------------------------------------------------------------------------------------------------------------------
# Channel selection: what goes behind a norm, and when the stream in front follows.


def trace_of(apply: Any, *shapes: tuple[int, ...], image: tuple[int, ...] = (2, 3), **how: Any) -> jaxslim.ChannelGraph:
    """Graph of `apply([w0, w1, ...], images)`."""
    return jaxslim.trace(apply, [np.ones(shape, np.float32) for shape in shapes], np.ones(image, np.float32), **how)


def read(w: Any, h: Any, scale: int, kernel: int) -> Any:
    """A norm and what reads it."""
    return jnp.tanh(h * w[scale][None]) @ w[kernel]


# Leaves are a stream's kernel, scales of norms, and kernels behind. Units of the scales (a list each), and whether the
# stream, units 1 to 4, goes when all behind the norms is gone.
ONE, TWO = ((3, 4), (4,), (4, 2)), ((3, 4), (4,), (4, 2), (4,), (4, 2))
FIRST, SECOND, THIRD = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]
SELECTION: dict[str, tuple[Any, Any, list[list[int]], bool]] = {
    "one norm": (lambda w, h: read(w, h, 1, 2), ONE, [FIRST], False),
    "two norms": (lambda w, h: read(w, h, 1, 2) + read(w, h, 3, 4), TWO, [SECOND, THIRD], True),
    "a norm and a raw reader": (lambda w, h: read(w, h, 1, 2) + h @ w[3], (*ONE, (4, 2)), [SECOND], False),
    "two norms, of which one is added to the stream": (
        lambda w, h: (h + h * w[1][None]) @ w[2] + read(w, h, 3, 4),
        TWO,
        [FIRST, SECOND],
        False,
    ),
    "a stream and its norm, added": (lambda w, h: (h + h * w[1][None]) @ w[2], ONE, [FIRST], False),
    "one norm in two places": (lambda w, h: read(w, h, 1, 2) + read(w, h[::-1], 1, 2), ONE, [FIRST], False),
    "a norm behind the mean": (lambda w, h: read(w, h - h.mean(1, keepdims=True), 1, 2), ONE, [FIRST], False),
}


@pytest.mark.parametrize("name", SELECTION)
def test_norms_select_channels(name: str) -> None:
    form, shapes, expected, closed = SELECTION[name]

    def apply(w: Any, x: Any) -> Any:
        return form(w, x @ w[0])

    graph = trace_of(apply, *shapes)
    scales = [unit(graph, str(number)) for number, shape in enumerate(shapes) if len(shape) == 1]
    assert (unit(graph, "0"), scales) == (FIRST, expected)
    assert np.flatnonzero(graph.closed).tolist() == (FIRST if closed else [])
    behind = [scale for scale in scales if scale != FIRST]
    assert [above(graph, scale) for scale in behind] == [[[1], [2], [3], [4]]] * len(behind)
    uniform = trace_of(apply, *shapes, selection=False)
    assert (uniform.num_units, uniform.below.size) == (4, 0)
    rng = np.random.default_rng(0)
    weights, x = [rng.normal(size=shape) for shape in shapes], rng.normal(size=(2, 3))
    for seed in range(3):
        check_masking(apply, graph, weights, x, random_keep(graph, seed, 0.5))


@pytest.mark.parametrize(
    ("name", "cut", "gone"),
    [
        ("two norms", [5], [5]),
        ("two norms", [5, 9], [1, 5, 9]),
        ("two norms", [2], [2, 6, 10]),
        ("a norm and a raw reader", [5], [5]),
        ("a norm and a raw reader", [1], [1, 5]),
    ],
)
def test_what_goes_when_other_units_go(name: str, cut: list[int], gone: list[int]) -> None:
    form, shapes, *_ = SELECTION[name]
    graph = trace_of(lambda w, x: form(w, x @ w[0]), *shapes)
    alive = graph.survivors(np.isin(np.arange(graph.num_units + 1), cut, invert=True))
    assert np.flatnonzero(~alive).tolist() == gone


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


def assert_same_graph(one: jaxslim.ChannelGraph, other: jaxslim.ChannelGraph) -> None:
    """But for what stops axes of length 1, which lie along the batch here or there."""
    for field in dataclasses.fields(one):
        mine, theirs = (getattr(graph, field.name) for graph in (one, other))
        if field.name == "work":  # the multiply-accumulates are those of the batch
            mine, theirs = ([work.axes for work in graph.work or ()] for graph in (one, other))
        assert field.name == "stops" or jax.tree.all(jax.tree.map(np.array_equal, mine, theirs))
    assert one.opaque == other.opaque


def test_print_shows_the_units_of_each_axis() -> None:
    weights = {"a": np.ones((2, 12)), "scale": np.ones(12), "b": np.ones((12, 1))}

    def apply(w: Any, x: Any) -> Any:
        return x @ w["a"] * w["scale"][None] @ w["b"]

    graph = jaxslim.trace(apply, weights, np.ones((1, 2)))
    assert repr([graph]) == "[ChannelGraph(3 arrays, 12 units, 12 exact)]"
    assert str(graph).splitlines() == [
        "ChannelGraph(3 arrays, 12 units, 12 exact)",
        "array  shape    units of each axis, 0 is fixed  exact  fixed by",
        "a      (2, 12)  0 1-12                          all    axis 0: input 0",
        "scale  (12,)    1-12                            all",
        "b      (12, 1)  1-12 0                          all    axis 1: output",
    ]
    graph = jaxslim.trace(lambda w, x: jnp.sort(apply(w, x) * x[:, :1] @ w["b"].T), weights, np.ones((1, 2)))
    assert repr(graph) == "ChannelGraph(3 arrays, 0 units, 0 exact, opaque: sort along the channels)"


def test_explain_says_what_goes_along_and_what_holds() -> None:
    def apply(w: Any, x: Any) -> Any:
        h = jnp.tanh(x @ w["enc"]["a"]) * w["scale"][None]
        return jnp.sort(h @ w["b"], axis=-1) @ w["c"]

    weights = {"enc": {"a": np.ones((2, 3))}, "scale": np.ones(3), "b": np.ones((3, 4)), "c": np.ones((4, 1))}
    graph = jaxslim.trace(apply, weights, np.ones((1, 2)))
    assert graph.explain("a").splitlines() == [
        "enc/a (2, 3)",
        "axis 0: 0 of 2 indices can go",
        "  held by input 0",
        "axis 1: 3 of 3 indices can go",
        "  cutting is exact",
        "  with axis 0 of scale",
        "  with axis 0 of b",
    ]
    lines = graph.explain("b").splitlines()
    assert lines[-2:] == ["axis 1: 0 of 4 indices can go", f"  held by sort along the channels at {line_of(apply, 2)}"]
    with pytest.raises(jaxslim.InputError, match="There is no array enc/c; the nearest are enc/a"):
        graph.explain("enc/c")


def test_print_leaves_out_the_middle_and_scattered_units() -> None:
    def apply(w: Any, x: Any) -> Any:
        for kernel in w:
            x = x @ kernel
        return x

    lines = str(trace_of(apply, *[(3, 3)] * 60)).splitlines()
    assert len(lines) == 27
    fields = [line.split() for line in lines]
    assert fields[2] == ["0", "(3,", "3)", "0", "1-3", "all", "axis", "0:", "input", "0"]
    assert fields[13] == ["11", "(3,", "3)", "31-33", "34-36", "all"]
    assert lines[14] == "... 36 more ..."
    assert fields[15] == ["48", "(3,", "3)", "142-144", "145-147", "all"]
    assert fields[-1] == ["59", "(3,", "3)", "175-177", "0", "all", "axis", "1:", "output"]
    assert unit_ranges(np.array([5, 4, 4, 9, 1, 2, 0])) == "0-2,4-5,9"
    assert unit_ranges(np.array([0, 2, 4, 6, 4])) == "3 units"
    assert unit_ranges(np.zeros(0, int)) == "none"


# ---------------------------------------------------------------------------------------------------------------------
# What stops a channel, and where.


def line_of(function: Any, more: int = 0) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno + more} ({code.co_name})"


STOPS = {
    "sort along the channels": lambda h: jnp.sort(h, axis=-1),
    "cumsum along the channels": lambda h: jnp.cumsum(h, axis=-1),
    "top_k along the channels": lambda h: lax.top_k(h, 4)[0],
    "fft along the channels": lambda h: jnp.abs(jnp.fft.fft(h)),
    "scatter at indices that are computed": lambda h: h.at[:, 0].set(1.0),
    "reduce_window_max window": lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME"),
    "lu": lambda h: lax.linalg.lu(h)[0],
}


@pytest.mark.parametrize("cause", STOPS)
def test_what_stops_channels_is_named_with_its_line(cause: str) -> None:
    spoil = STOPS[cause]
    graph = trace_of(lambda w, x: spoil(x @ w[0]) @ w[1] @ w[2] @ w[3], (3, 4), (4, 5), (5, 6), (6, 2))
    assert graph.opaque == (cause,)
    assert (graph.units[0][1] == 0).all()
    assert graph.num_units == 5 + 6  # what comes after is not touched
    stop = next(stop for stop in graph.stops if not stop.expected)
    assert (stop.path, stop.axis, stop.source) == (("0",), 1, line_of(spoil))
    assert str(stop) == f"axis 1 of 0: {cause} at {line_of(spoil)}"


def test_the_line_is_that_of_the_caller_each_time() -> None:
    """JAX traces its own functions once, whoever calls them."""

    def first(w: Any, x: Any) -> Any:
        return jnp.sort(x @ w[0]) @ w[1]

    def second(w: Any, x: Any) -> Any:
        return jnp.sort(x @ w[0]) @ w[1]

    for apply in (first, second):
        (stop,) = (stop for stop in trace_of(apply, (3, 4), (4, 2)).stops if not stop.expected)
        assert stop.source == line_of(apply, 1)


def test_inputs_and_outputs_are_expected_stops() -> None:
    graph = jaxslim.trace(
        lambda w, inputs: {"logits": jnp.tanh(inputs["x"] @ w["a"]) @ w["b"]},
        {"a": np.ones((3, 4)), "b": np.ones((4, 2))},
        {"x": np.ones((1, 3))},
    )
    assert [tuple(stop) for stop in graph.stops] == [
        (("a",), 0, "input 0/x", "", True),
        (("b",), 1, "output logits", "", True),
    ]
    assert graph.opaque == ()


def test_auxiliary_outputs_are_fixed_and_named() -> None:
    def apply(w: Any, x: Any) -> Any:
        h = jnp.tanh(x @ w[0])
        return h @ w[1], {"features": h}

    graph = trace_of(apply, (3, 4), (4, 2))
    assert graph.num_units == 0
    assert [str(stop) for stop in graph.stops if stop.axis != 0 or stop.path == ("1",)] == [
        "axis 1 of 0: output 1/features",
        "axis 0 of 1: output 1/features",
        "axis 1 of 1: output 0",
    ]
    assert trace_of(lambda w, x: apply(w, x)[0], (3, 4), (4, 2)).num_units == 4


# ---------------------------------------------------------------------------------------------------------------------
# Modes of one network.


def test_the_graph_of_several_modes_holds_in_all() -> None:
    def evaluate(w: Any, x: Any) -> Any:
        return jnp.tanh(x @ w[0]) @ w[2] + jnp.tanh(x @ w[1]) @ w[3]

    def train(w: Any, x: Any) -> Any:
        return evaluate(w, x), jnp.tanh(x @ w[0] + x @ w[1]).mean(1)

    shapes = ((3, 4), (3, 4), (4, 2), (4, 2))
    assert trace_of(evaluate, *shapes).num_units == 4 + 4
    assert_same_graph(trace_of([evaluate], *shapes), trace_of(evaluate, *shapes))
    assert trace_of((evaluate, train), *shapes).num_units == trace_of([train, evaluate], *shapes).num_units == 4


def test_leaves_that_no_mode_reads_have_no_units() -> None:
    def evaluate(w: Any, x: Any) -> Any:
        return jnp.tanh(x @ w[1]) @ w[2]

    def train(w: Any, x: Any) -> Any:
        return evaluate(w, x), jnp.tanh(x @ w[1]) @ w[0]

    shapes = ((4, 5), (3, 4), (4, 2))
    graph = trace_of(evaluate, *shapes)
    assert graph.paths == (("1",), ("2",), ("0",))
    assert graph.reads == (True, True, False)
    assert unit(graph, "0", 0) == [0] * 4
    assert [stop.cause for stop in graph.stops if stop.path == ("0",)] == ["read by no mode"] * 2
    both = trace_of([evaluate, train], *shapes)
    assert unit(both, "0", 0) == unit(both, "1") == [1, 2, 3, 4]


def test_new_statistics_are_the_leaves_they_replace() -> None:
    """A mean that is kept over the batches of training, once at the leaf's path and once at another."""

    def train(name: str) -> Any:
        def apply(v: Any, x: Any) -> Any:
            h = x @ v["params"]["a"]
            mean = 0.9 * v["stats"]["mean"] + 0.1 * h.mean(0)
            return (h - mean[None]) @ v["params"]["b"], {"stats": {name: mean}}

        return apply

    variables = {"params": {"a": np.ones((3, 4)), "b": np.ones((4, 2))}, "stats": {"mean": np.ones(4)}}
    graph = jaxslim.trace(train("mean"), variables, np.ones((5, 3)))
    assert unit(graph, "stats/mean") == unit(graph, "params/a") == [1, 2, 3, 4]
    graph = jaxslim.trace(train("other"), variables, np.ones((5, 3)))
    assert graph.num_units == 0
    assert {stop.cause for stop in graph.stops if stop.path == ("stats", "mean")} == {"output 1/stats/other"}


# ---------------------------------------------------------------------------------------------------------------------
# Primitives, as everyday code uses them.


@pytest.mark.parametrize("parts", [(0,), (0, 4), (4, 0)])
def test_empty_parts_take_nothing(parts: tuple[int, ...]) -> None:
    def apply(w: Any, x: Any) -> Any:
        h = x @ w[0]
        rest = h.shape[1] - sum(parts)
        return jnp.concatenate(lax.split(h, (*parts, rest), axis=1)[::-1], axis=1) @ w[1]

    graph = trace_of(apply, (3, 4), (4, 2))
    assert (graph.num_units, graph.opaque) == (4, ())


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


ALONG = {
    "gather": (lambda h: h[:, np.array([2, 0, 1, 3])], [3, 1, 2, 4]),
    "take": (lambda h: jnp.take(h, jnp.array([3, 2, 1, 0]), axis=1), [4, 3, 2, 1]),
    "flip": (lambda h: h[:, ::-1], [4, 3, 2, 1]),
    "roll": (lambda h: jnp.roll(h, 1, axis=1), [4, 1, 2, 3]),
    "slices, joined": (lambda h: jnp.concatenate([h[:, :1], h[:, 1:]], axis=1), [1, 2, 3, 4]),
    "uneven split, joined": (lambda h: jnp.concatenate(jnp.split(h, [3], axis=1)[::-1], axis=1), [4, 1, 2, 3]),
    "odd channels, then even ones": (lambda h: jnp.concatenate([h[:, 1::2], h[:, ::2]], axis=1), [2, 4, 1, 3]),
    "padded and cropped": (lambda h: jnp.pad(h, ((0, 0), (1, 2)))[:, 1:5], [1, 2, 3, 4]),
    "table": (lambda h: h + np.arange(4, dtype=np.float32)[None] ** 2, [1, 2, 3, 4]),
    "iota": (lambda h: h * jnp.arange(4.0)[None], [1, 2, 3, 4]),
    "mask of a table": (lambda h: jnp.where(jnp.tril(jnp.ones((4, 4)))[1:2] > 0, h, 0), [1, 2, 3, 4]),
    "noise": (lambda h: h + jax.random.normal(jax.random.key(0), h.shape), [1, 2, 3, 4]),
    "dropout": (lambda h: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, h.shape), h, 0), [1, 2, 3, 4]),
    "mean over channels": (lambda h: h - h.mean(1, keepdims=True), [1, 2, 3, 4]),
    "products of channels": (lambda h: h @ (h.T @ h), [1, 2, 3, 4]),
}


@pytest.mark.parametrize("name", ALONG)
def test_channels_pass_though_code_reads_along_them(name: str) -> None:
    use, units = ALONG[name]

    def apply(w: Any, x: Any) -> Any:
        return use(x @ w[0]) @ w[1]

    graph = trace_of(apply, (3, 4), (4, 2))
    assert (graph.num_units, graph.opaque, graph.exact.all()) == (4, (), True)
    assert (unit(graph, "0"), unit(graph, "1", 0)) == ([1, 2, 3, 4], units)
    rng = np.random.default_rng(0)
    weights, x = [rng.normal(size=shape) for shape in ((3, 4), (4, 2))], rng.normal(size=(2, 3))
    check_masking(apply, graph, weights, x, np.array([True, True, False, True, False]))


def test_padded_channels_can_go() -> None:
    graph = trace_of(lambda w, x: jnp.pad(x @ w[0], ((0, 0), (0, 2)), constant_values=1) @ w[1], (3, 4), (6, 2))
    assert unit(graph, "1", 0) == [1, 2, 3, 4, 5, 6]
    assert graph.exact.all()


def test_channels_that_are_unstacked_stay_and_what_is_stacked_can_go() -> None:
    graph = trace_of(lambda w, x: jnp.stack(jnp.unstack(x @ w[0], axis=1), axis=1) @ w[1], (3, 4), (4, 2))
    assert (unit(graph, "0"), unit(graph, "1", 0)) == ([0] * 4, [1, 2, 3, 4])


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


def test_rows_and_columns_of_a_merged_kernel_are_units_where_both_can_go() -> None:
    def joined(w: Any, x: Any) -> Any:
        """Both rows of the kernel meet the same channels, so only its columns can go."""
        h = x @ w[0]
        return jnp.concatenate([h, h], axis=1) @ w[1].reshape(8, 2)

    graph = trace_of(joined, (3, 4), (2, 4, 2))
    assert (graph.num_units, graph.choosable[1:].all()) == (4, True)
    assert unit(graph, "0") == unit(graph, "1", 1) == [1, 2, 3, 4]

    graph = trace_of(lambda w, x: (x @ w[0]) @ w[1].reshape(8, 2), (3, 8), (2, 4, 2))
    assert (np.sum(graph.choosable), graph.num_units) == (2 + 4, 2 + 4 + 8)


# ---------------------------------------------------------------------------------------------------------------------
# What a channel holds once everything of it is zero: the sum over channels behind is exact if that is 0.


def holds_zero(form: Any, *shapes: tuple[int, ...]) -> list[bool]:
    """For each of four channels that a scale makes, whether `form(channels, more leaves)` adds nothing to a sum."""

    def apply(w: Any, x: Any) -> Any:
        h = form(x @ w[0] * w[1][None], *w[2:])
        return h.sum(tuple(range(1, h.ndim)))

    graph = trace_of(apply, (3, 4), (4,), *shapes)
    assert graph.num_units == 4
    return graph.exact[1:].tolist()


@pytest.mark.parametrize(
    ("exact", "form"),
    [
        (True, jax.nn.relu),
        (True, jnp.tanh),
        (False, jax.nn.sigmoid),
        (False, jax.nn.softplus),
        (False, lambda h: h / h),
        (False, lambda h: h * (1 / h)),
        (False, lambda h: lax.rsqrt(h) * h),
        (False, lambda h: lax.round(h + 0.5, lax.RoundingMethod.AWAY_FROM_ZERO)),
        (False, lambda h: (3 * jax.nn.sigmoid(h)).astype(int) - 1.5),
        (True, lambda h: h - h.mean(0, keepdims=True)),
        (False, lambda h: h - h.mean(1, keepdims=True)),
        (True, lambda h: h + jnp.square(h) * np.arange(4, dtype=np.float32)[None]),
        (False, lambda h: h + np.arange(4, dtype=np.float32)[None]),
        (True, lambda h: jnp.concatenate([h, jnp.zeros_like(h)], axis=0)),
        (False, lambda h: jnp.concatenate([h, jnp.ones_like(h)], axis=0)),
        (True, lambda h: jnp.pad(h, ((0, 1), (0, 0)))),
        (False, lambda h: jnp.pad(h, ((0, 1), (0, 0)), constant_values=1.0)),
        (True, lambda h: lax.pad(h, 1.0, ((0, -1, 0), (0, 0, 0)))),  # cropped, not filled
        (False, lambda h: jnp.concatenate([h, jax.nn.sigmoid(h)], axis=1).reshape(2, 2, 4)),
    ],
)
def test_what_functions_make_of_zero(exact: bool, form: Any) -> None:
    assert holds_zero(form) == [exact] * 4


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_numbers_of_every_precision_are_known(dtype: Any) -> None:
    assert holds_zero(lambda h: jax.nn.relu(h.astype(dtype))) == [True] * 4


def test_division_by_a_vector_that_is_zeroed_is_inexact() -> None:
    assert holds_zero(lambda h, w: h / w[None], (4,)) == [False] * 4


@pytest.mark.parametrize(("filler", "exact"), [(0.0, True), (3.0, False), (math.nan, True), (None, True)])
def test_what_a_gather_fills_in_counts_as_what_a_dropped_channel_holds(filler: float | None, exact: bool) -> None:
    def form(h: Any) -> Any:
        return h.at[jnp.array([0, 5])].get(mode="fill", fill_value=filler)

    assert holds_zero(form) == [exact] * 4


@pytest.mark.parametrize(("padding", "exact"), [((1, 1), True), ((2, 0), False), ((0, 2), False)])
def test_a_pooling_window_wholly_in_the_padding_holds_what_no_channel_does(padding: Any, exact: bool) -> None:
    def form(h: Any) -> Any:
        return lax.reduce_window(h, -jnp.inf, lax.max, (2, 1), (1, 1), (padding, (0, 0)))

    assert holds_zero(form) == [exact] * 4


# ---------------------------------------------------------------------------------------------------------------------
# Faults found by these tests, each by its name.


def test_what_is_fixed_stays_fixed_in_either_order_and_in_loops() -> None:
    """Neither a table of positions nor the carry of a loop makes a spatial axis look as if it could be cut."""

    def positions(w: Any, x: Any) -> Any:
        return (w[1] + x @ w[0]).reshape(2, -1) @ w[2]

    def loop(w: Any, x: Any) -> Any:
        return lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h), x @ w[0]).reshape(2, -1) @ w[2]

    for apply in (positions, loop):
        assert trace_of(apply, (3, 4), (1, 5, 4), (20, 2), image=(2, 5, 3)).num_units >= 4


def test_repeated_features_bind_the_channels_they_meet() -> None:
    """Two features, each repeated as often as there are channels for it: both halves lose the same offsets."""

    def apply(w: Any, x: Any) -> Any:
        h = x @ w[0]
        return (h * jnp.repeat(x[:, :2], h.shape[1] // 2, axis=1)) @ w[1]

    graph = trace_of(apply, (3, 4), (4, 2))
    assert graph.units[0][1].tolist() == [1, 2, 1, 2]


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


def test_linen_units_and_invariants() -> None:
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    shapes = jax.eval_shape(Mixed().init, jax.random.key(0), images.astype(np.float32))
    rng = np.random.default_rng(1)
    variables = jax.tree_util.tree_map_with_path(lambda path, leaf: draw(rng, path[-1].key, leaf.shape), shapes)
    graph = jaxslim.trace(Mixed().apply, variables, images)
    streams = 4 + 4 + 4 + 4 + 4  # the stem's, and behind four norms
    assert graph.num_units == streams + 3 + 3 + 2 + 2 + 2 + 5  # heads, widths of queries with keys, and of values
    assert (graph.exact.all(), graph.opaque) == (True, ())
    for seed in range(3):
        check_masking(Mixed().apply, graph, variables, images, random_keep(graph, seed, 0.5))
