"""The cut program against the masked network: values, gradients, statistics and draws, for random programs."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from forms import SPLITS, merge_heads, split_heads, turn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from networks import NHWC, QUICK_TO_COMPILE, attend, draw
from programs import Program, programs

import jaxslim

SOME = settings(max_examples=max(1, settings.default.max_examples // 5))
FEW = settings(max_examples=max(1, settings.default.max_examples // 8))


@pytest.fixture(autouse=True)
def _in_64_bits() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Plans made by hand, and comparisons.


def plan_of(graph: jaxslim.ChannelGraph, keep: np.ndarray) -> jaxslim.Plan:
    return jaxslim.Plan(keep=keep, requested=None, achieved=0.0, layers=())


def by_hand(
    graph: jaxslim.ChannelGraph, keep: np.ndarray, spare: np.ndarray | None = None, least: int = 1
) -> jaxslim.Plan:
    """A plan that drops the choosable units which `keep` drops, and no more than the rest allows.

    What `spare` names stays, and so do `least` indices of each axis of each leaf.
    """
    keep = keep | ~graph.choosable
    above = {int(unit): ~graph.survivors(_all_but(keep, unit)) for unit in np.flatnonzero(~keep)}

    def restore(unit: int) -> None:
        """Take back what makes the unit go; where only several do together, the first of them."""
        causes = [cause for cause, gone in above.items() if not keep[cause] and gone[unit]]
        for cause in causes or np.flatnonzero(~keep)[:1]:
            keep[cause] = True

    while True:
        alive = graph.survivors(keep)
        gone = np.flatnonzero(~alive & (np.zeros_like(keep) if spare is None else spare))
        short = [axis for axes in graph.units for axis in axes if alive[axis].sum() < min(least, len(axis))]
        wanted = [*gone, *(axis[~alive[axis]][0] for axis in short)]
        if not wanted:
            return plan_of(graph, alive)
        restore(int(wanted[0]))


def _all_but(keep: np.ndarray, unit: int) -> np.ndarray:
    return np.arange(len(keep)) != unit


def random_keep(graph: jaxslim.ChannelGraph, seed: int, share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(graph.num_units + 1) >= share


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Equal but for rounding, of which there is more where numbers are larger."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (np.shape(a), a.dtype) == (np.shape(b), b.dtype)
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + np.max(np.abs(b), initial=0)))


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        is_key = jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)
        np.testing.assert_array_equal(*(map(jax.random.key_data, (a, b)) if is_key else (a, b)))


def jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=QUICK_TO_COMPILE)


def modes(apply: Callable[..., Any], train: bool) -> list[Callable[..., Any]]:
    """Evaluation, perhaps with training."""
    return [functools.partial(apply, train=mode) for mode in (False, True)[: 1 + train]]


def outputs(apply: Callable[..., Any], train: bool) -> Callable[..., Any]:
    return jitted(lambda *args: [mode(*args) for mode in modes(apply, train)])


def outputs_and_gradients(apply: Callable[..., Any], train: bool) -> Callable[..., Any]:
    """What each mode gives, and the gradient of a loss of the networks' outputs in all modes."""

    def loss(params: Any, variables: Any, *inputs: Any) -> tuple[Any, Any]:
        outs = [mode({**variables, "params": params}, *inputs) for mode in modes(apply, train)]
        logits = [outs[0], *(out for out, _ in outs[1:])]
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(logits)), outs

    @jitted
    def run(variables: Any, *inputs: Any) -> Any:
        gradient, outs = jax.grad(loss, has_aux=True)(variables["params"], variables, *inputs)
        return outs, gradient

    return run


def updated(variables: Any, stats: Any) -> Any:
    """The variables with new statistics, of which there may be fewer."""
    return {**variables, "batch_stats": {**variables["batch_stats"], **stats["batch_stats"]}}


# ---------------------------------------------------------------------------------------------------------------------
# The invariants, for any program.


@SOME
@given(programs(), st.integers(0, 999), st.sampled_from([0.2, 0.5, 0.9]), st.booleans())
def test_cut_programs_are_the_masked_network(program: Program, seed: int, share: float, train: bool) -> None:
    """Where the units that go are exact; at another batch size than the traced one, in all traced modes."""
    variables, key, inputs = program.init(), program.key(), program.inputs(3)
    graph = jaxslim.trace(modes(program, train), variables, key, program.inputs(2))
    plan = by_hand(graph, random_keep(graph, seed, share), spare=~graph.exact)
    masked = jaxslim.mask(graph, variables, plan)
    expected, gradient = outputs_and_gradients(program, train)(masked, key, inputs)
    narrow = outputs_and_gradients(jaxslim.narrow(program, graph, plan), train)
    actual, narrow_gradient = narrow(jaxslim.cut(graph, variables, plan), key, inputs)
    assert_close(actual[0], expected[0])
    if train:
        (logits, stats), (full_logits, full_stats) = actual[1], expected[1]
        assert_close(logits, full_logits)
        small = jaxslim.cut(graph, updated(variables, full_stats), plan)["batch_stats"]
        assert_close(stats["batch_stats"], {layer: small[layer] for layer in full_stats["batch_stats"]})
    assert_close(narrow_gradient, jaxslim.cut(graph, {**variables, "params": gradient}, plan)["params"])


@FEW
@given(programs(3), st.integers(0, 999), st.sampled_from([0.2, 0.5, 0.9]), st.booleans())
def test_cutting_twice_is_cutting_once(program: Program, seed: int, share: float, train: bool) -> None:
    """Inexact units too. The second graph ties and fixes nothing that was free before."""
    variables, key, inputs = program.init(), program.key(), program.inputs(2)
    graph = jaxslim.trace(modes(program, train), variables, key, inputs)
    assume(graph.choosable.any())
    scores = np.random.default_rng(seed).random(graph.num_units + 1)
    first = jaxslim.plan(graph, scores, None, threshold=share / 2)
    both = by_hand(graph, first.keep & random_keep(graph, seed + 1, share))
    first = by_hand(graph, first.keep | both.keep)
    small, smaller = (jaxslim.cut(graph, variables, plan) for plan in (first, both))
    narrow = jaxslim.narrow(program, graph, first)
    again = jaxslim.trace(modes(narrow, train), small, key, inputs)
    then = carried_over(graph, first, again, both)
    assert_same(jaxslim.cut(again, small, then), smaller)
    once = outputs(jaxslim.narrow(program, graph, both), train)(smaller, key, inputs)
    assert_close(outputs(jaxslim.narrow(narrow, again, then), train)(smaller, key, inputs), once)


def carried_over(
    graph: jaxslim.ChannelGraph, first: jaxslim.Plan, again: jaxslim.ChannelGraph, both: jaxslim.Plan
) -> jaxslim.Plan:
    """The plan `both` in the units of the network that `first` left."""
    keep = np.ones(again.num_units + 1, bool)
    spared, named = np.zeros_like(keep), np.zeros_like(keep)
    for path, axes in zip(again.paths, again.units, strict=True):
        for units, before in zip(axes, graph.units[graph.paths.index(path)], strict=True):
            stays = both.keep[before[first.keep[before]]]
            np.logical_and.at(keep, units, stays)
            np.logical_or.at(spared, units, stays)
            named[units] = True
    assert keep[0], "an index that could be cut is fixed after the first cut"
    assert not (spared & ~keep).any(), "the first cut ties indices that could be cut apart"
    below, above = again.below
    for _ in range(2):  # as a head, of which the leaves hold elements only
        for unit in np.setdiff1d(above, np.flatnonzero(named)):
            keep[unit] = keep[below[above == unit]].any()
    return plan_of(again, keep)


@FEW
@given(programs(2))
def test_keeping_everything_changes_no_bit(program: Program) -> None:
    variables, key, inputs = program.init(), program.key(), program.inputs(3)
    graph = jaxslim.trace(modes(program, True), variables, key, program.inputs(2))
    plan = plan_of(graph, np.ones(graph.num_units + 1, bool))
    small = jaxslim.cut(graph, variables, plan)
    assert_same(small, variables)
    narrow = outputs_and_gradients(jaxslim.narrow(program, graph, plan), True)
    assert_same(narrow(small, key, inputs), outputs_and_gradients(program, True)(variables, key, inputs))


# ---------------------------------------------------------------------------------------------------------------------
# What can be cut where channels are split and merged: choosable units, worked by hand. The input is (2, 4, 3).


def weights_of(shapes: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) / math.sqrt(len(shape)) for shape in shapes]


def attended(split: str, constant: bool) -> Callable[..., Any]:
    """Two heads of three channels, cut out of queries, keys and values."""

    def apply(w: Any, x: Any) -> Any:
        q, k, v = (split_heads(x @ kernel, 2, 3, split) for kernel in w[:3])
        return merge_heads(attend(q, k, v), split, constant) @ w[3]

    return apply


def fused(names: str, turned: str = "none") -> Callable[..., Any]:
    sizes = {"3": 3, "h": 2, "d": 4}

    def apply(w: Any, x: Any) -> Any:
        y = (x @ w[0]).reshape(*x.shape[:2], *(sizes[name] for name in names))
        q, k, v = (y.take(i, axis=2 + names.index("3")) for i in range(3))
        return attend(turn(q, turned), turn(k, turned), v).reshape(*x.shape[:2], -1) @ w[1]

    return apply


def grouped(how: str) -> Callable[..., Any]:
    """Four query heads share two key heads."""

    def apply(w: Any, x: Any) -> Any:
        b, n, _ = x.shape
        q = (x @ w[0]).reshape(b, n, 4, 3)
        k, v = ((x @ kernel).reshape(b, n, 2, 3) for kernel in w[1:3])
        if how == "reshape":
            scores = jax.nn.softmax(jnp.einsum("bqhrd,bkhd->bhrqk", q.reshape(b, n, 2, 2, 3), k), axis=-1)
            return jnp.einsum("bhrqk,bkhd->bqhrd", scores, v).reshape(b, n, 12) @ w[3]
        if how == "library":
            return jax.nn.dot_product_attention(q, k, v).reshape(b, n, 12) @ w[3]
        if how == "repeat":
            k, v = (jnp.repeat(part, 2, axis=2) for part in (k, v))
        else:
            k, v = (jnp.broadcast_to(part[:, :, :, None], (b, n, 2, 2, 3)).reshape(b, n, 4, 3) for part in (k, v))
        return attend(q, k, v).reshape(b, n, 12) @ w[3]

    return apply


def rotated(how: str) -> Callable[..., Any]:
    def apply(w: Any, x: Any) -> Any:
        q, k, v = ((x @ kernel).reshape(2, 4, 2, 4) for kernel in w[:3])
        return attend(turn(q, how), turn(k, how), v).reshape(2, 4, 8) @ w[3]

    return apply


def shuffled(w: Any, x: Any) -> Any:
    y = (x @ w[0]).reshape(2, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 3)
    return jnp.tanh(y) @ w[1]


def shuffled_first(w: Any, x: Any) -> Any:
    y = (x @ w[0]).reshape(2, 2, 2, 3, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(2, 4, 4, 3)
    return jnp.tanh(y) @ w[1]


def unshuffled(order: tuple[int, ...]) -> Callable[..., Any]:
    return lambda w, x: jnp.tanh(x @ w[0]).reshape(2, 2, 2, 3).transpose(0, 1, *order).reshape(2, 2, 6) @ w[1]


def maps(w: Any, x: Any) -> Any:
    y = (x.mean(1) @ w[0]).reshape(2, 2, 2, 3)
    return lax.conv_general_dilated(y, w[1], (1, 1), "SAME", dimension_numbers=NHWC)


SPLIT_SHAPES = ((3, 6), (3, 6), (3, 6), (6, 2))
GROUPED_SHAPES = ((3, 12), (3, 6), (3, 6), (12, 2))
RESHAPES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], int]] = {
    **{
        f"heads {split}, {'constant' if constant else 'inferred'} behind": (
            attended(split, constant),
            SPLIT_SHAPES,
            2 + 3 + 3,
        )
        for split in SPLITS
        for constant in (False, True)
    },
    "fused (3, h, d)": (fused("3hd"), ((3, 24), (8, 2)), 2 + 4),
    "fused (h, 3, d)": (fused("h3d"), ((3, 24), (8, 2)), 2 + 4),
    "fused (h, d, 3)": (fused("hd3"), ((3, 24), (8, 2)), 2 + 4),
    "queries in groups": (grouped("reshape"), GROUPED_SHAPES, 2 + 2 + 3 + 3),
    "queries in groups, by the library": (grouped("library"), GROUPED_SHAPES, 2 + 2 + 3 + 3),
    "keys repeated": (grouped("repeat"), GROUPED_SHAPES, 2 + 2 + 3 + 3),
    "keys broadcast": (grouped("broadcast"), GROUPED_SHAPES, 2 + 2 + 3 + 3),
    "rotary halves": (rotated("halves"), ((3, 8),) * 3 + ((8, 2),), 2 + 2 + 4),
    "rotary pairs": (rotated("pairs"), ((3, 8),) * 3 + ((8, 2),), 2 + 2 + 4),
    "rotary strides": (rotated("strides"), ((3, 8),) * 3 + ((8, 2),), 2 + 2 + 4),
    "pixel shuffle": (shuffled, ((3, 12), (3, 2)), 3),
    "pixel shuffle, channels outer": (shuffled_first, ((3, 12), (3, 2)), 3),
    "pixel unshuffle": (unshuffled((2, 3)), ((3, 3), (6, 2)), 3),
    "pixel unshuffle, channels outer": (unshuffled((3, 2)), ((3, 3), (6, 2)), 3),
    "maps from a dense layer": (maps, ((3, 12), (3, 3, 3, 2)), 3),
    "pairs, the larger": (lambda w, x: (x @ w[0]).reshape(2, 4, 3, 2).max(-1) @ w[1], ((3, 6), (3, 2)), 3 + 2),
    "halves, the larger": (lambda w, x: (x @ w[0]).reshape(2, 4, 2, 3).max(-2) @ w[1], ((3, 6), (3, 2)), 3 + 2),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_reshaped_channels_can_be_cut(name: str) -> None:
    apply, shapes, choosable = RESHAPES[name]
    weights, x = weights_of(shapes), np.random.default_rng(1).normal(size=(2, 4, 3))
    graph = jaxslim.trace(apply, weights, x)
    assert graph.choosable.sum() == choosable
    for seed in range(3):
        keep = random_keep(graph, seed, 0.5)
        anything = by_hand(graph, keep)
        out = jitted(jaxslim.narrow(apply, graph, anything))(jaxslim.cut(graph, weights, anything), x)
        assert np.isfinite(out).all()
        plan = by_hand(graph, keep, spare=~graph.exact)
        expected = jitted(apply)(jaxslim.mask(graph, weights, plan), x)
        actual = jitted(jaxslim.narrow(apply, graph, plan))(jaxslim.cut(graph, weights, plan), x)
        assert_close(actual, expected, 1e-5 if "library" in name else 1e-9)  # which has a softmax in 32 bits


# ---------------------------------------------------------------------------------------------------------------------
# Linen modules whose code branches on shapes or computes with widths.


class ResNetBlock(nn.Module):
    """Projects where the shapes differ."""

    width: int

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, param_dtype=float)
        conv = functools.partial(nn.Conv, use_bias=False, param_dtype=float)
        y = nn.relu(norm()(conv(self.width, (3, 3))(x)))
        y = norm()(conv(self.width, (3, 3))(y))
        if x.shape != y.shape:
            x = norm()(conv(self.width, (1, 1))(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for width in (4, 4, 6):
            x = ResNetBlock(width)(x, train)
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(3, param_dtype=float)(x) / math.sqrt(x.shape[-1])


def trained(variables: Any, seed: int = 0) -> Any:
    """Random numbers as generic as those of a trained network."""
    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: draw(rng, path[-1].key, leaf.shape), variables)


def resnet() -> tuple[nn.Module, Any, np.ndarray]:
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    return ResNet(), trained(jax.eval_shape(ResNet().init, jax.random.key(0), images)), images


def test_a_branch_on_shapes_is_taken_as_in_the_full_network() -> None:
    module, variables, images = resnet()
    graph = jaxslim.trace(module.apply, variables, images)
    assert graph.choosable.sum() == 4 + 4 + 4 + 6 + 6  # of two blocks one stream; the third projects to its own
    assert graph.exact.all()
    for seed in range(3):
        plan = by_hand(graph, random_keep(graph, seed, 0.5))
        narrow = jitted(jaxslim.narrow(module.apply, graph, plan))
        expected = jitted(module.apply)(jaxslim.mask(graph, variables, plan), images)
        assert_close(narrow(jaxslim.cut(graph, variables, plan), images), expected)


def test_training_draws_and_counts_for_what_is_left() -> None:
    """Static arguments, mutable statistics and keys go through as they are."""
    module, variables, images = resnet()
    graph = jaxslim.trace(module.apply, variables, images)
    plan = by_hand(graph, random_keep(graph, 1, 0.5))
    narrow = jaxslim.narrow(module.apply, graph, plan)

    def step(apply: Any) -> Any:
        options = {"train": True, "mutable": ["batch_stats"]}
        return jitted(lambda variables, key: apply(variables, images, rngs={"dropout": key}, **options))

    key = jax.random.key(1)
    logits, changed = step(narrow)(jaxslim.cut(graph, variables, plan), key)
    full_logits, full_changed = step(module.apply)(jaxslim.mask(graph, variables, plan), key)
    assert_close(logits, full_logits)
    assert_close(changed, jaxslim.cut(graph, full_changed, plan))


# ---------------------------------------------------------------------------------------------------------------------
# Where a cut program is used.

USED = Program(
    (
        (
            "attention",
            {"heads": 2, "each": 2, "fused": "apart", "split": "(h, d)", "rotary": "halves", "mask": "none"}
            | {"constant": True, "after": "batch norm"},
            "residual",
            "remat",
        ),
        ("own_derivative", {"how": "product"}, "none", "jit"),
        ("recurrent", {"hidden": 4, "cell": "gru", "gates": "split"}, "residual", "plain"),
    ),
    size=2,
)


@functools.cache
def used() -> tuple[Any, Any, Any]:
    """The cut program of a network, its variables, and what the masked one computes."""
    variables, key = USED.init(), USED.key()
    graph = jaxslim.trace(USED, variables, key, USED.inputs(2))
    plan = by_hand(graph, random_keep(graph, 3, 0.5), spare=~graph.exact)
    assert np.sum(~plan.keep) > 4
    masked = jaxslim.mask(graph, variables, plan)
    return jaxslim.narrow(USED, graph, plan), jaxslim.cut(graph, variables, plan), lambda *inputs: USED(masked, *inputs)


def stacked(inputs: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), inputs)


USES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "as it is": lambda run, key, inputs: run(key, inputs),
    "jit": lambda run, key, inputs: jax.jit(run)(key, inputs),
    "remat": lambda run, key, inputs: jax.checkpoint(run)(key, inputs),
    "vmap": lambda run, key, inputs: jax.vmap(run, in_axes=(None, 0))(key, stacked(inputs)),
    "vmap over keys": lambda run, key, inputs: jax.vmap(run, in_axes=(0, None))(jax.random.split(key, 2), inputs),
    "scan": lambda run, key, inputs: lax.scan(lambda c, i: (c, run(key, i)), 0, stacked(inputs))[1],
    "gradient of the input": lambda run, key, inputs: jax.grad(
        lambda x: jnp.sin(run(key, {**inputs, "image": x})).sum()
    )(inputs["image"]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_cut_programs_work_under_transformations(use: Any) -> None:
    narrow, small, masked = used()
    key, inputs = USED.key(), USED.inputs(3)
    expected = jitted(functools.partial(use, masked))(key, inputs)
    assert_close(use(functools.partial(narrow, small), key, inputs), expected)


def test_a_cut_program_is_exported_with_an_open_batch() -> None:
    narrow, small, masked = used()
    key, open_batch = USED.key(), jax.export.symbolic_shape("b")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*open_batch, *leaf.shape[1:]), leaf.dtype), USED.inputs())
    exported = jax.export.export(jax.jit(lambda inputs: narrow(small, key, inputs)))(shapes)
    for batch in (1, 5):
        assert_close(exported.call(USED.inputs(batch)), jitted(masked)(key, USED.inputs(batch)))


def test_a_cut_program_runs_in_the_precision_of_the_day() -> None:
    narrow, small, _ = used()
    expected = jax.jit(narrow)(small, USED.key(), USED.inputs())
    low = jax.tree.map(np.float32, small)
    with jax.enable_x64(False):
        out = jax.jit(narrow)(low, USED.key(), USED.inputs())
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)


def test_a_cut_program_traces_the_network_once_for_each_shape() -> None:
    weights, x = [np.ones((3, 4)), np.ones((4, 2))], np.ones((1, 3))
    traced = []

    def apply(w: Any, x: Any, slope: float = 0.0) -> Any:
        traced.append(slope)
        y = x @ w[0]
        return jnp.maximum(y, slope * y) @ w[1]

    graph = jaxslim.trace(apply, weights, x)
    plan = plan_of(graph, np.array([True, True, False, True, False]))
    narrow, small = jaxslim.narrow(apply, graph, plan), jaxslim.cut(graph, weights, plan)
    traced.clear()
    for batch in (1, 1, 2, 2, 1):
        assert narrow(small, np.full((batch, 3), -1.0)).tolist() == [[0.0, 0.0]] * batch
    assert len(traced) == 2
    assert narrow(small, -x, slope=0.5).tolist() == [[-3.0, -3.0]]
    assert traced[2:] == [0.5]


def test_constants_that_are_equal_are_not_taken_for_each_other() -> None:
    def apply(variables: Any, x: Any, *, option: Any) -> Any:
        return x @ variables["a"] @ variables["b"] * (2.0 if option is True else option)

    variables = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    graph = jaxslim.trace(lambda variables, x: apply(variables, x, option=1), variables, jnp.ones((1, 3)))
    plan = jaxslim.plan(graph, np.arange(graph.num_units + 1.0), 0.5)
    narrow, small = jaxslim.narrow(apply, graph, plan), jaxslim.cut(graph, variables, plan)
    assert [narrow(small, jnp.ones((1, 3)), option=option)[0, 0] for option in (1, True, 1.0)] == [6.0, 12.0, 6.0]
