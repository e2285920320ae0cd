"""Cutting in steps: widths of one plan at the end, optimizer state carried along, what is gone stays away."""

import functools
import itertools
import re
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

import jaxslim
from jaxslim import criteria

IMAGES = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
LABELS = np.arange(16) % 4
SOME = settings(max_examples=max(1, settings.default.max_examples // 10))


class Net(nn.Module):
    """A residual block between two layers with BatchNorm."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(12, (3, 3), use_bias=False)(x)))
        y = nn.relu(norm()(nn.Conv(20, (3, 3), use_bias=False)(x)))
        x = nn.relu(x + norm()(nn.Conv(12, (3, 3), use_bias=False)(y)))
        return nn.Dense(4)(x.mean((1, 2)))


@functools.cache
def start() -> Any:
    return jax.jit(Net().init)(jax.random.key(0), IMAGES)


def trained(module: Any, variables: Any, tx: Any, state: Any, rounds: int = 1) -> tuple[Any, Any]:
    def loss(params: Any, stats: Any) -> Any:
        logits, stats = module.apply({"params": params, **stats}, IMAGES, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(LABELS)).mean(), stats

    @jax.jit
    def step(variables: Any, state: Any) -> tuple[Any, Any]:
        stats = {"batch_stats": variables["batch_stats"]}
        gradients, stats = jax.grad(loss, has_aux=True)(variables["params"], stats)
        updates, state = tx.update(gradients, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **stats}, state

    for _ in range(rounds):
        variables, state = step(variables, state)
    return variables, state


def by_hand(graph: jaxslim.ChannelGraph, variables: Any) -> np.ndarray:
    """Scores that training does not change."""
    return criteria.random(graph, seed=3)


@pytest.mark.parametrize("goal", [{"ratio": 0.6}, {"macs": 0.3}, {"params": 0.25}])
def test_steps_end_with_the_widths_of_one_plan(goal: dict[str, float]) -> None:
    variables, tx = start(), optax.adam(1e-3)
    state = tx.init(variables["params"])
    steps = jaxslim.Progressive(Net(), variables, IMAGES[:1], steps=2, scores=by_hand, **goal)
    kept = []
    while not steps.done:
        if "ratio" in goal:
            variables, state = trained(steps.module, variables, tx, state)
        variables, (state,) = steps.cut(variables, state)
        kept.append(steps.graph.survivors(steps.plan.keep))
        fresh = tx.init(variables["params"])
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, fresh)
        assert int(state[0].count) == len(kept) * ("ratio" in goal)
    assert [keep.sum() for keep in kept] == sorted((keep.sum() for keep in kept), reverse=True)
    assert all(not (after & ~before).any() for before, after in itertools.pairwise(kept))
    once = jaxslim.plan(steps.graph, by_hand(steps.graph, None), **goal)
    np.testing.assert_array_equal(kept[-1], steps.graph.survivors(once.keep))
    assert steps.plan.layers == once.layers


@SOME
@given(st.integers(1, 4), st.sampled_from(["cubic", "linear"]), st.floats(0.05, 0.8), st.integers(0, 99))
def test_what_is_gone_stays_away_whatever_the_scores_become(steps: int, how: Any, ratio: float, seed: int) -> None:
    variables = start()
    graph = jaxslim.trace(Net().apply, variables, IMAGES[:1])
    total, before = int(graph.choosable.sum()), None
    for number, share in enumerate(jaxslim.gradual(steps, how)):
        plan = jaxslim.plan(graph, criteria.random(graph, seed=seed + number), ratio * share, within=before)
        gone = ~graph.survivors(plan.keep)
        assert gone.sum() == int(total * ratio * share + 1e-9)
        if before is not None:
            assert not (~graph.survivors(before.keep) & ~gone).any()
        before = plan


def test_moments_stay_with_their_channels() -> None:
    variables, tx = start(), optax.sgd(0.1, momentum=0.9)
    steps = jaxslim.Progressive(Net(), variables, IMAGES[:1], ratio=0.5, steps=2)
    variables, state = trained(Net(), variables, tx, tx.init(variables["params"]))
    small, (cut,) = steps.cut(variables, state)
    plan = steps.plan
    expected = jaxslim.cut(steps.graph, state, plan)
    jax.tree.map(np.testing.assert_array_equal, cut, expected)
    small, moved = trained(steps.module, small, tx, cut)
    _, (later,) = steps.cut(small, moved)
    full = jaxslim.restore(steps.graph, plan, moved)
    jax.tree.map(np.testing.assert_array_equal, later, jaxslim.cut(steps.graph, full, steps.plan))


def test_a_module_that_holds_its_variables_is_cut_in_steps() -> None:
    class Dense(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(6, 12, rngs=nnx.Rngs(0))
            self.last = nnx.Linear(12, 2, rngs=nnx.Rngs(1))

        def __call__(self, x: Any) -> Any:
            return self.last(nnx.relu(self.first(x)))

    x = np.ones((3, 6), np.float32)
    model: Any = Dense()
    steps = jaxslim.Progressive(model, None, x, ratio=0.5, steps=2, schedule="linear")
    for width in (9, 6):
        kernel = steps.module.first.kernel
        kernel[...] = kernel[...] * 2.0  # training
        expected = kernel[...]
        steps.cut()
        assert steps.module.first.kernel.shape == (6, width)
        columns = {column.tobytes() for column in np.asarray(expected).T}
        assert {column.tobytes() for column in np.asarray(steps.module.first.kernel[...]).T} <= columns
        assert steps.module(x).shape == (3, 2)


def nnx_model() -> tuple[Any, Any, Any]:
    class Small(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.conv, self.norm = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.last = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    return Small(), None, IMAGES


def equinox_model() -> tuple[Any, Any, Any]:
    eqx = pytest.importorskip("equinox", reason="belongs to the optional extra `zoo`")

    class Small(eqx.Module):  # type: ignore[misc]
        conv: Any
        norm: Any
        last: Any

        def __init__(self, key: Any) -> None:
            self.conv = eqx.nn.Conv2d(3, 8, 3, key=key)
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
            self.last = eqx.nn.Linear(8, 4, key=key)

        def __call__(self, x: Any, state: Any) -> Any:
            y, state = self.norm(self.conv(x), state)
            return self.last(jax.nn.relu(y).mean((1, 2))), state

    model, state = eqx.nn.make_with_state(Small)(jax.random.key(0))
    return model, state, IMAGES[0].transpose(2, 0, 1)


def keras_model() -> tuple[Any, Any, Any]:
    keras = pytest.importorskip("keras", reason="belongs to the optional extra `zoo`")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend")
    layers = keras.layers
    head = (layers.BatchNormalization(), layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(4))
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(8, 3), *head]), None, IMAGES


def haiku_model() -> tuple[Any, Any, Any]:
    hk = pytest.importorskip("haiku", reason="belongs to the optional extra `zoo`")

    def forward(x: Any, is_training: bool = False) -> Any:
        y = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3)(x), is_training)
        return hk.Linear(4)(jax.nn.relu(y).mean((1, 2)))

    network = hk.without_apply_rng(hk.transform_with_state(forward))
    return network, network.init(jax.random.key(0), IMAGES, is_training=True), IMAGES


@pytest.mark.parametrize("build", [nnx_model, equinox_model, keras_model, haiku_model])
def test_every_kind_meets_targets_and_is_cut_in_steps(build: Any) -> None:
    with jax.numpy_rank_promotion("allow"):  # as it is for users
        model, variables, x = build()
        pruned = jaxslim.prune(model, variables, None, x, macs=0.6, scores=criteria.bn_scale)
        assert pruned.report.macs is not None
        assert pruned.report.macs[1] / pruned.report.macs[0] == 0.5  # of 8 channels 4, of which each has a share
        steps = jaxslim.Progressive(model, variables, x, ratio=0.5, steps=2, schedule="linear")
        given = variables
        for left in (6, 4):
            if build is equinox_model:
                given = steps.module, variables if left == 6 else steps.variables.state
            given, _ = steps.cut(None if build is nnx_model or (build is keras_model and left == 6) else given)
            assert max(np.shape(leaf)[0] for leaf in jax.tree.leaves(given) if np.ndim(leaf) == 1) in (left, 4)
        assert steps.plan.achieved == 0.5


def test_gradual() -> None:
    assert jaxslim.gradual(4, "linear") == (0.25, 0.5, 0.75, 1.0)
    np.testing.assert_allclose(jaxslim.gradual(2), [0.875, 1.0])


MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("Give one of ratio, macs, params, for example ratio=0.7.", {}),
    ("Give one of ratio, macs, params", {"ratio": 0.5, "macs": 0.5}),
    ("threshold cannot be met in steps; give one of ratio, macs, params.", {"threshold": 0.5}),
    ("steps is 0; it must be at least 1.", {"ratio": 0.5, "steps": 0}),
    ("The schedule is 'step'; it must be cubic or linear.", {"ratio": 0.5, "schedule": "step"}),
    ("A ratio of 0.99 cannot be met: with min_channels=1", {"ratio": 0.99}),
]


@pytest.mark.parametrize(("message", "arguments"), MISTAKES)
def test_mistakes_are_one_sentence(message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(jaxslim.InputError, match=re.escape(message)):
        jaxslim.Progressive(Net(), start(), IMAGES[:1], **arguments)


def test_there_is_an_end() -> None:
    steps = jaxslim.Progressive(Net(), start(), IMAGES[:1], ratio=0.2, steps=1)
    steps.cut(start())
    with pytest.raises(jaxslim.InputError, match="All steps are taken; the network has its final size"):
        steps.cut(steps.variables)
