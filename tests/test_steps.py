"""Training and evaluation steps against PyTorch, numpy, hand-worked values, and eight devices against one."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_step
from flax import linen as nn
from flax import traverse_util
from hypothesis import example, given
from hypothesis import strategies as st

import jaxslim
from jaxslim import data
from jaxslim.errors import InputError
from jaxslim.models import VGG
from jaxslim.slim.criteria.scales import bn_scale_mask
from jaxslim.training import feed, loop
from jaxslim.training.config import TrainConfig
from jaxslim.training.evaluation import evaluator, training_batches
from jaxslim.training.feed import Batch, InMemory
from jaxslim.training.optimizer import learning_rates, losses, moving_average, optimizer

REFERENCE = dict(np.load(reference_step.FILE))
COLOURS = {"mean": reference_step.MEAN, "std": reference_step.STD}
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
every_case = pytest.mark.parametrize("name", reference_step.CASES)
every_l1 = pytest.mark.parametrize("l1", reference_step.L1)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def one_device() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))


def start(config: TrainConfig, module: Any, variables: Any, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """The state before the first step, and the step; an epoch is one step."""
    tx = optimizer(config, learning_rates(config, 1), bn_scale_mask(variables))
    state = new_state(variables, tx)
    return jax.device_put(state, feed.shardings(mesh)[0]), loop.train_step(config, module, tx, mesh)


def new_state(variables: Any, tx: Any) -> loop.TrainState:
    sums = loop.Sums(jnp.zeros(()), jnp.zeros((), int), jnp.zeros((), int))
    return loop.TrainState(jnp.zeros((), jnp.int32), variables, tx.init(variables["params"]), sums)


# Against PyTorch


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Everything in `dtype`, also the normalisation, which jaxslim does in float32."""
    with jax.enable_x64(dtype == "float64"), pytest.MonkeyPatch.context() as patch:
        if dtype == "float64":
            row = functools.partial(np.reshape, shape=(1, 1, 1, 3))
            patch.setattr(data, "normalise", lambda x, mean, std: (x.astype(dtype) / 255 - row(mean)) / row(std))
        yield


@functools.cache
def train(name: str, l1: float, dtype: str) -> dict[str, np.ndarray]:
    """What `reference_step.train` computes, by jaxslim with the recipe that is its default."""
    case = reference_step.CASES[name]
    images, labels, batches, _ = reference_step.inputs(case)
    config = TrainConfig(**COLOURS, augment=(), l1=l1, epochs=4, batch_size=reference_step.BATCH)
    history = []
    with precision(dtype):
        module = VGG(case.widths, reference_step.CLASSES, dtype=dtype)
        variables = jax.tree.map(jnp.array, reference_step.variables(case, dtype))
        state, step = start(config, module, variables, one_device())
        for number, chosen in enumerate(batches, start=1):
            before = jax.device_get(state.sums)
            state = step(state, Batch(images, labels, chosen[None]), jax.random.key(0))
            assert int(state.step) == int(state.sums.finite) == number
            named = traverse_util.flatten_dict(state.variables, sep="/")
            row = {name.partition("/")[2]: value for name, value in named.items()}
            row |= {
                "loss": (state.sums.loss - before.loss) / len(chosen),
                "correct": state.sums.correct - before.correct,
            }
            history.append(jax.device_get(row))
    return {array: np.stack([row[array] for row in history]) for array in history[0]}


def with_unbiased_variance(found: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Running variances of Flax, which averages biased ones, as PyTorch has them, which averages unbiased ones."""
    case = reference_step.CASES[name]
    weights = reference_step.inputs(case).weights
    converted = dict(found)
    for layer in range(3):  # a pooling stands before each but the first
        count = reference_step.BATCH * (case.height >> layer) * (case.width >> layer)
        array = f"bn{layer}/var"
        of_start = np.outer(0.9 ** np.arange(1, 5), weights[array])
        converted[array] = of_start + (found[array] - of_start) * count / (count - 1)
    return converted


def largest_difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Over all arrays and steps, relative to the largest magnitude in the array."""
    assert found.keys() == expected.keys()
    largest = 0.0
    for array, values in expected.items():
        assert found[array].shape == values.shape
        for left, right in zip(found[array], values, strict=True):
            largest = max(largest, np.abs(left - right).max() / max(np.abs(right).max(), 1e-30))
    return largest


def committed(name: str, l1: float) -> dict[str, np.ndarray]:
    prefix = f"{name}/{l1}/"
    return {key.removeprefix(prefix): value for key, value in REFERENCE.items() if key.startswith(prefix)}


@every_case
@every_l1
@every_dtype
def test_step_equals_reference_values(name, l1, dtype):
    """Every parameter, running statistic and loss, after each of four steps with two drops of the learning rate."""
    found = with_unbiased_variance(train(name, l1, dtype), name)
    assert largest_difference(found, committed(name, l1)) < TOLERANCE[dtype]


@every_case
@every_l1
@every_dtype
def test_step_equals_pytorch(name, l1, dtype):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    found = with_unbiased_variance(train(name, l1, dtype), name)
    assert largest_difference(found, reference_step.train(reference_step.CASES[name], l1, dtype)) < TOLERANCE[dtype]


def test_reference_values_are_those_of_pytorch():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert largest_difference(REFERENCE, reference_step.everything("float64")) < 1e-12


def test_l1_pulls_on_scales_alone():
    """One step apart from the same start: scales by rate * l1 * sign, nothing else, nothing at zero."""
    without, pulled = train("even", 0.0, "float64"), train("even", 0.01, "float64")
    for array, start_value in reference_step.inputs(reference_step.CASES["even"]).weights.items():
        pull = 0.1 * 0.01 * np.sign(start_value) if array.endswith("/scale") else 0 * start_value
        np.testing.assert_allclose(without[array][0] - pulled[array][0], pull, atol=1e-14)


# Learning rates


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [1]), (4, [1, 1, 0.1, 0.01]), (5, [1, 1, 1, 0.1, 0.01]), (7, [1, 1, 1, 1, 0.1, 0.1, 0.01])],
)
def test_learning_rates_of_short_runs(epochs, expected):
    """An epoch starts with the drops that lie before it; odd numbers of epochs miss none."""
    rate = learning_rates(TrainConfig(epochs=epochs), steps_per_epoch=3)
    np.testing.assert_allclose(rate(np.arange(3 * epochs)), 0.1 * np.repeat(expected, 3), rtol=1e-6)


def test_learning_rates_of_the_reference():
    rate = learning_rates(TrainConfig(), steps_per_epoch=500)
    around = [0, 80 * 500 - 1, 80 * 500, 120 * 500 - 1, 120 * 500, 160 * 500 - 1]
    np.testing.assert_allclose(rate(np.array(around)), [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


@given(
    epochs=st.integers(1, 100),
    steps_per_epoch=st.integers(1, 3),
    percents=st.lists(st.integers(1, 99), max_size=4),
    factor=st.sampled_from([0.1, 0.5, 0.0, 2.0]),
)
@example(epochs=100, steps_per_epoch=1, percents=[55], factor=0.1)  # in floats 0.55 * 100 > 55
def test_learning_rates(epochs, steps_per_epoch, percents, factor):
    """In each epoch the rate has met the drops whose share of the run is over when it starts."""
    drops = tuple(percent / 100 for percent in percents)
    config = TrainConfig(epochs=epochs, lr_drops=drops, lr_drop_factor=factor)
    numbers = np.arange(300)  # always as many, so that nothing compiles anew
    found = np.broadcast_to(learning_rates(config, steps_per_epoch)(numbers), numbers.shape)
    for epoch in range(epochs):
        met = sum(Fraction(percent, 100) * epochs <= epoch for percent in percents)
        here = found[epoch * steps_per_epoch : (epoch + 1) * steps_per_epoch]
        np.testing.assert_allclose(here, 0.1 * factor**met, rtol=1e-5)


def test_learning_rates_along_a_cosine():
    rate = learning_rates(TrainConfig(epochs=10, schedule="cosine"), steps_per_epoch=6)
    numbers = np.arange(60)
    np.testing.assert_allclose(rate(numbers), 0.05 * (1 + np.cos(np.pi * numbers / 60)), rtol=1e-4)


def test_learning_rates_of_one_cycle():
    """Up along half a cosine over the first 30 %, from a 25th, and down to next to nothing."""
    rate = learning_rates(TrainConfig(epochs=10, schedule="one-cycle"), steps_per_epoch=10)
    found = np.array([float(rate(number)) for number in range(100)])
    np.testing.assert_allclose(found[[0, 15, 30]], [0.004, 0.052, 0.1], rtol=1e-4)
    assert np.all(np.diff(found[:31]) > 0)
    assert np.all(np.diff(found[30:]) < 0)
    assert found[-1] < 1e-4


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_warmup_rises_along_a_line_to_the_rate(schedule):
    """Then the schedule is what it is without, a cosine over the rest of the run."""
    config = TrainConfig(epochs=10, schedule=schedule, warmup=0.2)
    rate = learning_rates(config, steps_per_epoch=10)
    found = np.array([float(rate(number)) for number in range(100)])
    np.testing.assert_allclose(found[:21], 0.1 * (1 + np.arange(21)) / 21, rtol=1e-4)
    if schedule == "cosine":
        np.testing.assert_allclose(found[20:], 0.05 * (1 + np.cos(np.pi * np.arange(80) / 80)), rtol=1e-3, atol=1e-7)
    else:
        np.testing.assert_allclose(found[[20, 49, 50, 80]], [0.1, 0.1, 0.01, 0.001], rtol=1e-4)


# What the optimizer does


@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_accumulated_batches_make_the_step_of_one_large_batch(method):
    """Over several updates, with momentum, decay, both pulls and a rate that falls; parameters rest in between."""
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(2, 3)), "scale": rng.normal(size=3), "b": rng.normal(size=(3, 2))}
    params = jax.tree.map(jnp.float32, params)
    graph = jaxslim.trace(lambda p, x: jax.nn.relu(x @ p["a"] * p["scale"][None]) @ p["b"], params, np.ones((1, 2)))
    mask = {"a": False, "scale": True, "b": False}
    config = TrainConfig(l1=0.01, group_lasso=0.02, group_lasso_growth=0.5, l1_method=method, momentum=0.5)
    gradients = [jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params) for _ in range(9)]

    def trained(every: int) -> list[Any]:
        one = dataclasses.replace(config, accumulate=every)
        tx = optimizer(one, lambda step: 0.1 / (1 + step // 3), mask, graph, 9)
        if every == 1:  # steps are counted in batches
            tx = optimizer(one, lambda step: 0.1 / (1 + step), mask, graph, 3)
        now, state, history = params, tx.init(params), []
        batches = gradients
        if every == 1:
            batches = [jax.tree.map(lambda *g: sum(g) / 3, *gradients[at : at + 3]) for at in (0, 3, 6)]
        for gradient in batches:
            updates, state = jax.jit(tx.update)(gradient, state, now)
            now = jax.tree.map(jnp.add, now, updates)
            history.append(now)
        return history

    large, small = trained(1), trained(3)
    for number, expected in enumerate(large):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), small[3 * number + 2], expected
        )
    jax.tree.map(np.testing.assert_array_equal, small[1], params)


def test_the_moving_average_by_hand():
    """Numbers that are no floats are taken over, and the first steps count more."""
    average, new = {"w": jnp.float32(0), "n": jnp.int32(1)}, {"w": jnp.float32(1), "n": jnp.int32(7)}
    for step, decay in ((0, 1 / 10), (8, 9 / 18), (10_000, 0.9)):
        found = moving_average(average, new, 0.9, jnp.int32(step))
        np.testing.assert_allclose(found["w"], 1 - decay, rtol=1e-6)
        assert int(found["n"]) == 7


@pytest.mark.parametrize("decay_scales", [True, False])
@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_one_step_of_the_optimizer_by_hand(decay_scales, method):
    params = {"bn": {"scale": jnp.array([2.0, 0.001]), "bias": jnp.array([1.0, 1.0])}}
    config = TrainConfig(l1=0.01, l1_method=method, decay_scales=decay_scales, weight_decay=0.5, momentum=0.75)
    tx = optimizer(config, lambda _: 0.1, {"bn": {"scale": True, "bias": False}})
    updates, _ = tx.update(jax.tree.map(lambda p: jnp.full_like(p, 3.0), params), tx.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)["bn"]
    np.testing.assert_allclose(after["bias"], [1 - 0.1 * (3 + 0.5)] * 2, rtol=1e-6)
    decay = 0.5 if decay_scales else 0.0
    if method == "subgradient":
        expected = [2 - 0.1 * (3 + 2 * decay + 0.01), 0.001 - 0.1 * (3 + 0.001 * decay + 0.01)]
    else:  # the threshold is 0.1 * 0.01 / (1 - 0.75)
        expected = [2 - 0.1 * (3 + 2 * decay) - 0.004, 0.001 - 0.1 * (3 + 0.001 * decay) + 0.004]
    np.testing.assert_allclose(after["scale"], expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_group_lasso_in_the_optimizer_by_hand(method):
    """The one unit has the elements 3 and 4; half of the run of four steps is for growing, and step 1 pulls by half."""
    params = {"a": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}
    graph = jaxslim.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, np.ones((1, 1)))
    config = TrainConfig(
        group_lasso=0.02, group_lasso_growth=0.5, l1_method=method, weight_decay=0.0, momentum=0.75, lr_drops=()
    )
    tx = optimizer(config, lambda _: 0.1, {"a": False, "b": False}, graph, 4)
    state, found = tx.init(params), []
    for _ in range(2):
        updates, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), state, params)
        found.append(updates["a"][0, 0])
    unit = np.sqrt(2) * 3 / 5
    pulled = 0.1 * 0.01 * unit / (0.25 if method == "proximal" else 1)
    np.testing.assert_allclose(found, [0, -pulled], rtol=1e-4)


def test_batches_for_recalibration_are_as_in_training():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    config = TrainConfig(image_size=8, pad=2, augment=(), batch_size=6)
    labels = np.arange(20, dtype=np.int32)
    whole = data.Dataset("random", images, labels, images, labels, ("a",))
    found = training_batches(config, whole, 5)
    assert [batch.shape for batch, _ in found] == [(6, 8, 8, 3)] * 3
    seen = np.round((np.concatenate([batch for batch, _ in found]) * 0.5 + 0.5) * 255).astype(np.uint8)
    named = np.concatenate([own for _, own in found])
    assert len(set(named.tolist())) == 18
    np.testing.assert_array_equal(seen, images[named])
    cropped = training_batches(dataclasses.replace(config, augment=("crop",)), whole, 1)
    assert not np.array_equal(found[0][0], cropped[0][0])
    assert len(training_batches(dataclasses.replace(config, holdout=0.5), whole, 5)) == 1
    with pytest.raises(InputError, match=r"A batch of 6 is larger than the training set of 5; use a smaller one"):
        training_batches(config, whole._replace(train_images=images[:5]), 1)


# Order


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 60), st.integers(1, 20))
def test_order(seed, epoch, count, batch_size):
    batches = feed.order(seed, epoch, count, batch_size)
    assert batches.shape == (count // batch_size, batch_size)
    assert len(np.unique(batches)) == batches.size
    assert np.isin(batches, np.arange(count)).all()
    np.testing.assert_array_equal(batches, feed.order(seed, epoch, count, batch_size))


def test_order_depends_on_seed_and_epoch():
    orders = [feed.order(seed, epoch, 60, 60).tolist() for seed in range(3) for epoch in range(3)]
    assert all(sorted(row) == list(range(60)) for ((*row,),) in orders)
    assert len({str(row) for row in orders}) == 9


def test_order_leaves_out_other_images_each_epoch():
    assert {index for epoch in range(20) for index in feed.order(0, epoch, 7, 3).flat} == set(range(7))


# Evaluation


class Linear(nn.Module):
    """Easy to compute in numpy."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(3)(images.reshape(len(images), -1))


def linear_variables(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    dense = {"kernel": rng.normal(size=(4 * 5 * 3, 3)) / 5, "bias": rng.normal(size=3)}
    return {"params": {"Dense_0": {name: value.astype(np.float32) for name, value in dense.items()}}}


def some_images(count: int, height: int = 4, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, 3), np.uint8), rng.integers(0, 3, count)


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (12, 4), (3, 500), (1, 1)])
def test_evaluator_equals_numpy(count, batch):
    images, labels = some_images(count)
    variables = linear_variables(1)
    evaluate = evaluator(TrainConfig(**COLOURS, eval_batch_size=batch), Linear(), one_device(), images, labels)
    found = evaluate(variables)

    dense = variables["params"]["Dense_0"]
    logits = reference_step.normalised(images).reshape(count, -1) @ dense["kernel"] + dense["bias"]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(count), labels]
    assert found.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert found.accuracy == np.mean(logits.argmax(1) == labels)
    assert type(found.loss) is type(found.accuracy) is float


# Compilation and precision


def compilations(caplog: pytest.LogCaptureFixture) -> int:
    """How many steps were compiled under `jax.log_compiles`."""
    return sum(record.getMessage().startswith("Compiling jit(step)") for record in caplog.records)


def test_evaluator_compiles_once(caplog):
    images, labels = some_images(10)
    with jax.log_compiles():
        evaluate = evaluator(TrainConfig(**COLOURS, eval_batch_size=4), Linear(), one_device(), images, labels)
        for seed in range(3):
            evaluate(linear_variables(seed))
            evaluate(jax.device_put(linear_variables(seed)))
    assert compilations(caplog) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_step(dtype, caplog):
    """It compiles once; parameters and statistics stay float32 in bfloat16, and the losses are close."""
    case = reference_step.CASES["even"]
    images, labels, batches, _ = reference_step.inputs(case)
    module = VGG(case.widths, reference_step.CLASSES, dtype=dtype)
    config = TrainConfig(**COLOURS, augment=(), l1=0.01, epochs=4)
    variables = jax.tree.map(jnp.array, reference_step.variables(case, "float32"))
    state, step = start(config, module, variables, one_device())
    totals = [0.0]
    with jax.log_compiles():
        for number, chosen in enumerate(batches):
            state = step(state, Batch(images, labels, chosen[None]), jax.random.key(number))
            totals.append(float(state.sums.loss) / len(chosen))
    assert compilations(caplog) == 1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.variables, state.sums.loss)))
    assert module.apply(state.variables, jnp.zeros((1, 8, 8, 3))).dtype == jnp.float32
    np.testing.assert_allclose(
        np.diff(totals), committed("even", 0.01)["loss"], rtol={"float32": 1e-5, "bfloat16": 0.02}[dtype]
    )


# Where the images lie, and how many steps a call takes


def trained(monkeypatch: pytest.MonkeyPatch, free: float = np.inf, together: bool = False) -> Any:
    """The state after three augmented steps of a network without convolutions, which loops take well."""
    images, labels = some_images(24)
    config = TrainConfig(**COLOURS, pad=1, batch_size=8, epochs=1)
    mesh, module, variables = one_device(), Linear(), linear_variables(1)
    tx = optimizer(config, learning_rates(config, 3), jax.tree.map(lambda _: False, variables["params"]))
    state, key = jax.device_put((new_state(variables, tx), jax.random.key(1)), feed.shardings(mesh)[0])
    step = loop.train_step(config, module, tx, mesh)
    monkeypatch.setattr(feed, "_free_memory", lambda mesh: free)
    monkeypatch.setattr(feed, "_looped", lambda mesh: together)
    batches = InMemory(mesh, images, labels, config.batch_size)
    assert batches.steps_per_epoch == 3
    calls = 0
    with jax.transfer_guard("disallow"):
        for batch in batches.batches(1):
            state = step(state, batch, key)
            calls += 1
    assert calls == (1 if together else 3)
    return jax.device_get(state)


def test_many_steps_in_a_call_equal_single_steps(monkeypatch):
    """As on accelerators; and nothing moves between host and device but what `feed` sends."""
    single, together = trained(monkeypatch), trained(monkeypatch, together=True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), single, together)


def test_images_too_large_for_the_device_come_from_the_host(monkeypatch, caplog):
    caplog.set_level("INFO", logger="jaxslim")
    resident = trained(monkeypatch)
    assert not caplog.records
    streamed = trained(monkeypatch, free=1000)
    jax.tree.map(np.testing.assert_array_equal, resident, streamed)
    said = "The 24 images (0.00 GB) are too large for the device (0.00 GB free); batches come from the host."
    assert caplog.messages == [said]


def test_evaluation_from_the_host_is_the_same(monkeypatch):
    images, labels = some_images(10)
    found = []
    for free in (np.inf, 100):
        monkeypatch.setattr(feed, "_free_memory", lambda mesh, free=free: free)
        config = TrainConfig(**COLOURS, eval_batch_size=4)
        found.append(evaluator(config, Linear(), one_device(), images, labels)(linear_variables(1)))
    assert found[0] == found[1]


# Eight devices


def compare_devices() -> None:
    """Print, as JSON, what training and evaluation give on all devices, against the first alone."""
    config = TrainConfig(**COLOURS, pad=2, l1=0.01, epochs=3, batch_size=16, eval_batch_size=20)
    module = VGG((8, "M", 16), 3)
    images, labels = some_images(48, 8, 8)
    images = (images * np.linspace(0.2, 1, 48).reshape(-1, 1, 1, 1)).astype(np.uint8)  # so that shards differ
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    order = feed.order(0, 1, len(labels), config.batch_size)
    key = jax.random.key(1)

    def run(mesh: jax.sharding.Mesh) -> dict[str, Any]:
        state, step = start(config, module, jax.tree.map(jnp.copy, variables), mesh)
        history, totals = [], []
        for batch in InMemory(mesh, images, labels, config.batch_size).batches(1):
            state = step(state, batch, key)
            history.append(jax.device_get(state.variables))
            totals.append(jax.device_get(state.sums))
        sets = [evaluator(config, module, mesh, images[:count], labels[:count]) for count in (37, 3)]
        evaluations = [evaluate(state.variables) for evaluate in sets]
        return jax.device_get({"variables": history, "sums": totals, "evaluations": evaluations})

    def far(left: Any, right: Any) -> float:
        relative = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)), left, right)
        return max(jax.tree.leaves(relative))

    one, every = run(one_device()), run(feed.device_mesh())

    plain = images[order[0]]
    augment_key, _ = jax.random.split(jax.random.fold_in(key, 0))
    batch = data.augmenter(config.augment, pad=config.pad)(jnp.asarray(plain), augment_key)
    pixels = data.normalise(batch, config.mean, config.std)

    @jax.jit
    def statistics(part: jax.Array) -> Any:
        return module.apply(variables, part, train=True, mutable="batch_stats")[1]["batch_stats"]

    whole = statistics(pixels)
    shards = jax.tree.map(lambda *parts: sum(parts) / 8, *map(statistics, jnp.split(pixels, 8)))
    after_first = every["variables"][0]["batch_stats"]

    refused = {}
    for size in (3, 12, 64):
        try:
            feed.check_batches(size, 1, len(labels), feed.device_mesh())
        except InputError as error:
            refused[size] = str(error)
    feed.check_batches(8, 1, len(labels), feed.device_mesh())
    found = {
        "devices": feed.device_mesh().size,
        "far": {name: far(every[name], one[name]) for name in one},
        "augmented": float(np.mean(np.asarray(batch) != plain)),
        "far_from_global": far(after_first, whole),
        "far_from_shards": far(after_first["bn0"]["var"], shards["bn0"]["var"]),
        "refused": refused,
    }
    print(json.dumps(found))


@pytest.fixture(scope="module")
def devices():
    command = [sys.executable, "-c", "import test_steps; test_steps.compare_devices()"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    return found


@pytest.mark.parametrize("name", ["variables", "sums", "evaluations"])
def test_eight_devices_equal_one(devices, name):
    """After each of three augmented steps, and on test sets that neither batches nor devices divide."""
    assert devices["augmented"] > 0.5
    assert devices["far"][name] < 1e-5


class Keeping(nn.Module):
    """Keeps the batch that it was trained on among its statistics."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        batch = self.variable("batch_stats", "batch", jnp.zeros, images.shape)
        if train:
            batch.value = images
        return nn.Dense(3)(images.mean((1, 2)))


def batches_seen(mesh: jax.sharding.Mesh) -> np.ndarray:
    """What the network sees in two epochs of three steps, (6, 16, 8, 8, 3)."""
    config = TrainConfig(mean=(0.0,) * 3, std=(1.0,) * 3, pad=2, batch_size=16)
    images, labels = some_images(48, 8, 8)
    variables = Keeping().init(jax.random.key(0), jnp.zeros((16, 8, 8, 3)))
    state, step = start(config, Keeping(), variables, mesh)
    seen = []
    for epoch in (1, 2):
        for batch in InMemory(mesh, images, labels, config.batch_size, seed=5).batches(epoch):
            state = step(state, batch, jax.random.key(1))
            seen.append(jax.device_get(state.variables["batch_stats"]["batch"]))
    return np.stack(seen)


def test_eight_devices_see_what_one_sees(tmp_path):
    """In another process, bit for bit: the order of the data, and how each image is shifted and mirrored."""
    program = "import sys, numpy, test_steps; from jaxslim.training.feed import device_mesh; mesh = device_mesh(); "
    program += "assert mesh.size == 8; numpy.save(sys.argv[1], test_steps.batches_seen(mesh))"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", program, str(tmp_path / "seen.npy")]
    subprocess.run(command, cwd=Path(__file__).parent, env=environment, check=True)
    mine = batches_seen(one_device())
    np.testing.assert_array_equal(np.load(tmp_path / "seen.npy"), mine)
    plain = some_images(48, 8, 8)[0][feed.order(5, 1, 48, 16)]
    assert np.mean(mine[:3] != plain / np.float32(255)) > 0.5


def test_statistics_are_of_the_global_batch(devices):
    assert devices["far_from_global"] < 1e-5
    assert devices["far_from_shards"] > 1e-3


def test_batches_that_devices_cannot_share_are_refused(devices):
    cannot = "A batch of {} cannot be split over 8 devices; use --batch-size 8."
    large = "A batch of 64 is larger than the training set of 48; use a smaller one."
    assert devices["refused"] == {"3": cannot.format(3), "12": cannot.format(12), "64": large}


# Dropout, losses and optimizers


class Dropping(nn.Module):
    """Its logits tell which pixels dropout let through."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(images))
        kept = self.variable("batch_stats", "kept", jnp.zeros, images.shape)
        if train:
            kept.value = x
        return nn.Dense(3)((images * x).mean((1, 2)))


def test_dropout_draws_anew_for_each_step_and_the_same_when_a_step_is_taken_again():
    images, labels = some_images(8)
    variables = Dropping().init(jax.random.key(0), jnp.zeros((8, 4, 5, 3)))
    rows = np.arange(8)[None]

    def kept(steps: int) -> list[np.ndarray]:
        state, step = start(
            TrainConfig(**COLOURS, batch_size=8), Dropping(), jax.tree.map(jnp.copy, variables), one_device()
        )
        found = []
        for _ in range(steps):
            state = step(state, Batch(images, labels, rows), jax.random.key(1))
            found.append(np.asarray(state.variables["batch_stats"]["kept"]))
        return found

    first, second = kept(2)
    assert set(np.unique(first)) == {0.0, 2.0}
    assert np.mean(first != second) > 0.3
    np.testing.assert_array_equal(kept(1)[0], first)


def test_losses_by_hand():
    """Two classes with logits 0 and ln 3, so with probabilities 1/4 and 3/4."""
    logits, labels = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]])), jnp.array([0, 1])
    plain = losses(TrainConfig())(logits, labels)
    np.testing.assert_allclose(plain, -np.log([1 / 4, 3 / 4]), rtol=1e-6)
    smooth = losses(TrainConfig(label_smoothing=0.2))(logits, labels)
    np.testing.assert_allclose(smooth, [-0.9 * np.log(p) - 0.1 * np.log(1 - p) for p in (1 / 4, 3 / 4)], rtol=1e-6)
    squared = losses(TrainConfig(loss="squared-error"))(logits, labels)
    np.testing.assert_allclose(squared, [1 + np.log(3) ** 2, (1 - np.log(3)) ** 2], rtol=1e-6)
    focal = losses(TrainConfig(loss="focal"))(logits, labels)  # sigmoids 1/2 and 3/4, each against its 0 or 1
    of_zero = {0: 0.5**2 * -np.log(0.5), 1: 0.5**2 * -np.log(0.5)}
    of_three = {0: 0.75**2 * -np.log(0.25), 1: 0.25**2 * -np.log(0.75)}
    np.testing.assert_allclose(focal, [of_zero[1] + of_three[0], of_zero[0] + of_three[1]], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "direct"),
    [
        ("adamw", {"b2": 0.9}, lambda rate, mask: optax.adamw(rate, b2=0.9, weight_decay=0.5, mask=mask)),
        ("lion", {}, lambda rate, mask: optax.lion(rate, weight_decay=0.5, mask=mask)),
        ("adam", {}, lambda rate, mask: optax.chain(optax.add_decayed_weights(0.5, mask), optax.adam(rate))),
        (
            "rmsprop",
            {"decay": 0.5},
            lambda rate, mask: optax.chain(
                optax.add_decayed_weights(0.5, mask), optax.rmsprop(rate, decay=0.5, momentum=0.9)
            ),
        ),
    ],
)
def test_optimizers_by_name(name, arguments, direct):
    """Each as optax has it, with the configuration's decay and momentum where it takes these."""
    params = {"bn": {"scale": jnp.array([2.0, -1.0]), "bias": jnp.array([1.0, 3.0])}}
    scales = {"bn": {"scale": True, "bias": False}}
    config = TrainConfig(optimizer=name, optimizer_args=arguments, weight_decay=0.5, decay_scales=False)
    mask = jax.tree.map(lambda scale: not scale, scales)
    mine, theirs = optimizer(config, lambda _: 0.1, scales), direct(0.1, mask)
    gradients = jax.tree.map(lambda p: 0.3 * p + 1, params)
    found, expected = (tx.update(gradients, tx.init(params), params)[0] for tx in (mine, theirs))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sdg"}, "optimizer is 'sdg'; it must be one of optax's, for example sgd or adamw."),
        ({"optimizer": "chain"}, "optimizer is 'chain'; it must be one of optax's"),
        ({"optimizer_args": {"b2": 1.0}}, "optimizer sgd cannot be used with the optimizer_args {'b2': 1.0}"),
    ],
)
def test_optimizers_that_there_are_not(changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        optimizer(TrainConfig(**changes), lambda _: 0.1, {})


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_step_lowers_for_accelerators(platform, steps):
    """No GPU is needed for that; a scan over the steps of a call becomes one loop."""
    module, images = VGG((8, "M", 16), 3), some_images(16, 8, 8)[0]
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    state, step = start(TrainConfig(**COLOURS, l1=0.01, batch_size=4), module, variables, one_device())
    batch = Batch(images, np.zeros(16, np.int32), np.zeros((steps, 4), np.int32))
    program = jax.export.export(step, platforms=(platform,))(state, batch, jax.random.key(0)).mlir_module()
    assert program.count("stablehlo.while") == (steps > 1)
    assert program.count("stablehlo.convolution") == 2 + 2 + 1  # forward, kernels, the second layer's images


def test_a_step_on_a_cpu_copies_no_parameters():
    """Beside the state it holds the gradients and little else."""
    config, module = TrainConfig(augment=(), batch_size=8), jaxslim.mlp(num_classes=10, widths=(1500, 1500, 1500))
    variables = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    state, step = start(config, module, variables, one_device())
    batch = Batch(jnp.zeros((8, 16, 16, 3), jnp.uint8), jnp.zeros(8, jnp.int32))
    needed = step.lower(state, batch, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes
    assert needed < 1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
