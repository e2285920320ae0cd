"""Pruning of models of every framework: the cut model is called, trained and copied as the full one is."""

import copy
import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import jaxslim

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
REASON = "belongs to the optional extra `zoo`"
LABELS = jnp.arange(4) % 3


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 6, 6, 2)).astype(np.float32)


def drawn(tree: Any, seed: int = 0) -> Any:
    """Variables as generic as those of a trained network."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Any:
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        positive = "var" in jax.tree_util.keystr(path)
        return jnp.asarray(
            rng.uniform(0.5, 2, leaf.shape) if positive else 0.5 * rng.normal(size=leaf.shape), leaf.dtype
        )

    return jax.tree.map_with_path(draw, tree)


def loss_of(logits: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def assert_close(one: Any, other: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other)


def shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


# ---------------------------------------------------------------------------------------------------------------------
# Linen


class Linen(nn.Module):
    """A convolution, a norm, dropout and a hidden layer; the fields are of kinds that no metadata can describe."""

    width: int = 8
    rate: float = 0.5
    act: Callable[[Any], Any] = nn.relu
    more: Any = dataclasses.field(default_factory=lambda: {"hidden": 6})

    def setup(self) -> None:
        self.conv = nn.Conv(self.width, (3, 3), use_bias=False)
        self.norm = nn.BatchNorm(momentum=0.9)
        self.dropout = nn.Dropout(self.rate)
        self.hidden = nn.Dense(self.more["hidden"])
        self.head = nn.Dense(3)

    def features(self, x: Any, train: bool = False) -> Any:
        x = self.act(self.norm(self.conv(x), use_running_average=not train))
        return self.dropout(x, deterministic=not train).mean((1, 2))

    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.head(self.act(self.hidden(self.features(x, train))))


@pytest.fixture(scope="module")
def linen() -> tuple[Any, Any, jaxslim.Pruned]:
    net = Linen()
    variables = drawn(jax.eval_shape(net.init, jax.random.key(0), images()))
    return net, variables, jaxslim.prune(net, variables, 0.5, images())


def test_a_linen_module_computes_what_the_masked_one_does(linen: Any) -> None:
    net, variables, pruned = linen
    masked = jaxslim.mask(pruned.graph, variables, pruned.plan)
    x = images(1)[:3]  # another batch size than in the call of prune
    assert_close(pruned.module.apply(pruned.variables, x), net.apply(masked, x))
    assert shapes(pruned.variables["params"]["conv"]) == {"kernel": (3, 3, 2, 4)}
    features = pruned.module.apply(pruned.variables, x, method="features")
    assert features.shape == (3, 4)
    assert_close(features, pruned.module.apply(pruned.variables, x, False, method=Linen.features))
    assert pruned.report.exact == 1
    assert pruned.report.difference < 1e-5


def test_training_a_linen_module_is_training_the_masked_one(linen: Any) -> None:
    """Gradients and statistics, without dropout, whose bits depend on the shape."""
    _, variables, _ = linen
    net = Linen(rate=0.0)
    pruned = jaxslim.prune(net, variables, 0.5, images())

    def loss(apply: Any, params: Any, variables: Any) -> Any:
        variables = {**variables, "params": params}
        logits, stats = apply(variables, images(), train=True, mutable=["batch_stats"])
        return loss_of(logits), stats

    def step(apply: Any, variables: Any) -> Any:
        gradients, stats = jax.grad(functools.partial(loss, apply), has_aux=True)(variables["params"], variables)
        return {"params": gradients, **stats}

    masked = jaxslim.mask(pruned.graph, variables, pruned.plan)
    expected = jaxslim.cut(pruned.graph, jax.jit(functools.partial(step, net.apply))(masked), pruned.plan)
    assert_close(jax.jit(functools.partial(step, pruned.module.apply))(pruned.variables), expected)


def test_a_linen_module_in_a_train_state(linen: Any) -> None:
    _, _, pruned = linen

    class State(TrainState):
        batch_stats: Any

    state = State.create(
        apply_fn=pruned.module.apply,
        params=pruned.variables["params"],
        tx=optax.adam(0.05),
        batch_stats=pruned.variables["batch_stats"],
    )

    @jax.jit
    def step(state: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, new = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                images(),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            return loss_of(logits), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, batch_stats=new["batch_stats"]), value

    before, losses = state, []
    for key in jax.random.split(jax.random.key(0), 30):
        state, value = step(state, key)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert shapes(state.batch_stats) == shapes(before.batch_stats) == {"norm": {"mean": (4,), "var": (4,)}}
    assert not np.array_equal(state.batch_stats["norm"]["mean"], before.batch_stats["norm"]["mean"])


def test_dropout_of_a_linen_module_follows_its_key(linen: Any) -> None:
    _, _, pruned = linen

    def drop(seed: int) -> Any:
        keys = {"dropout": jax.random.key(seed)}
        return pruned.module.apply(pruned.variables, images(), train=True, mutable=["batch_stats"], rngs=keys)[0]

    np.testing.assert_array_equal(drop(0), drop(0))
    assert not np.array_equal(drop(0), drop(1))


class Switched(nn.Module):
    """Evaluation needs a keyword, and training has a head of its own."""

    @nn.compact
    def __call__(self, x: Any, *, training: bool) -> Any:
        x = nn.relu(nn.BatchNorm(use_running_average=not training)(nn.Dense(8)(x)))
        logits = nn.Dense(3, name="head")(x)
        return (logits, nn.Dense(1, name="auxiliary")(x)) if training else logits


def test_the_graph_holds_in_training_too() -> None:
    """A layer that only training reads is cut with the rest."""
    net, x = Switched(), images()[:, 0, 0]
    variables = drawn(jax.eval_shape(functools.partial(net.init, training=True), jax.random.key(0), x))
    pruned = jaxslim.prune(net, variables, 0.5, x)
    assert shapes(pruned.variables["params"]["auxiliary"]["kernel"]) == (4, 1)
    masked = jaxslim.mask(pruned.graph, variables, pruned.plan)
    how = {"training": True, "mutable": ["batch_stats"]}
    (out, new), (expected, _) = pruned.module.apply(pruned.variables, x, **how), net.apply(masked, x, **how)
    assert_close(out, expected)
    assert shapes(new["batch_stats"]) == {"BatchNorm_0": {"mean": (4,), "var": (4,)}}


class Resized(nn.Module):
    """Computes with its width as a number, so that the narrower module is another function."""

    width: int = 8
    divide: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(self.width)(x)))
        return nn.Dense(3)(x / self.width if self.divide else x)

    def resized(self, variables: Any) -> "Resized":
        return self.clone(width=variables["params"]["Dense_0"]["kernel"].shape[-1])


def test_resized_is_used_where_it_computes_the_same() -> None:
    x = images()[:, 0, 0]
    for divide in (False, True):
        net = Resized(divide=divide)
        variables = drawn(jax.eval_shape(net.init, jax.random.key(0), x))
        pruned = jaxslim.prune(net, variables, 0.5, x)
        assert (pruned.module == Resized(4, divide)) is not divide
        masked = jaxslim.mask(pruned.graph, variables, pruned.plan)
        assert_close(pruned.module.apply(pruned.variables, x), net.apply(masked, x))


# ---------------------------------------------------------------------------------------------------------------------
# NNX


class NNX(nnx.Module):
    def __init__(self, rate: float = 0.5) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs)])
        self.head = nnx.Linear(8, 3, rngs=rngs)
        self.act = nnx.relu

    def features(self, x: Any) -> Any:
        return self.dropout(self.act(self.norm(self.conv(x)))).mean((1, 2))

    def __call__(self, x: Any) -> Any:
        x = self.features(x)
        return self.head(x + self.act(self.blocks[0](x)))


def trained_nnx(rate: float = 0.5) -> Any:
    net = NNX(rate)
    nnx.update(net, drawn(nnx.state(net)))
    return net


def test_an_nnx_module_computes_what_the_masked_one_does() -> None:
    net = trained_nnx()
    before = jax.tree.map(np.asarray, nnx.state(net, (nnx.Param, nnx.BatchStat)))
    pruned = jaxslim.prune(net, None, 0.5, images())
    cut = pruned.module
    assert isinstance(cut, NNX)
    masked = trained_nnx()
    nnx.update(masked, jaxslim.mask(pruned.graph, pruned.full, pruned.plan))
    for module in (cut, masked):
        module.eval()
    x = images(1)[:3]
    assert_close(cut(x), masked(x))
    assert_close(nnx.jit(lambda net, x: net(x))(cut, x), masked(x))
    assert cut.features(x).shape == (3, 4)
    assert cut.head.kernel.shape == (4, 3)
    assert cut.blocks[0].kernel.shape == (4, 4)
    assert shapes(nnx.state(cut)) == shapes(pruned.variables)
    assert jax.tree.structure(nnx.state(net)) == jax.tree.structure(nnx.state(cut))  # the same paths
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net, (nnx.Param, nnx.BatchStat)), before)  # left alone


def test_training_an_nnx_module() -> None:
    pruned = jaxslim.prune(trained_nnx(), None, 0.5, images())
    net = pruned.module
    net.train()
    optimizer = nnx.Optimizer(net, optax.adam(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any) -> Any:
        value, gradients = nnx.value_and_grad(lambda net: loss_of(net(images())))(net)
        optimizer.update(net, gradients)
        return value

    mean, drawn_before = np.asarray(net.norm.mean[...]), int(net.dropout.rngs.count[...])
    losses = [float(step(net, optimizer)) for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert net.norm.mean.shape == (4,)
    assert not np.array_equal(net.norm.mean[...], mean)
    assert int(net.dropout.rngs.count[...]) == drawn_before + 30
    np.testing.assert_array_equal(pruned.variables["norm"]["mean"][...], mean)  # what prune returned is left alone
    net.eval()
    graphdef, state = nnx.split(net)
    expected = net(images())
    for other in (copy.deepcopy(net), copy.copy(net), nnx.clone(net), nnx.merge(graphdef, state)):
        np.testing.assert_array_equal(other(images()), expected)
    twin = copy.deepcopy(net)
    twin.train()
    twin(images())
    np.testing.assert_array_equal(net(images()), expected)


def test_a_step_of_an_nnx_module_is_one_of_the_masked_one() -> None:
    net = trained_nnx(rate=0.0)
    pruned = jaxslim.prune(net, None, 0.5, images())
    nnx.update(net, jaxslim.mask(pruned.graph, pruned.full, pruned.plan))

    @nnx.jit
    def gradients(net: Any) -> Any:
        return nnx.grad(lambda net: loss_of(net(images())))(net)

    for module in (net, pruned.module):
        module.train()
    full, small = gradients(net), gradients(pruned.module)
    assert_close(small, jaxslim.cut(pruned.graph, full, pruned.plan))
    full, small = nnx.state(net, nnx.BatchStat), nnx.state(pruned.module, nnx.BatchStat)
    assert_close(small, jaxslim.cut(pruned.graph, full, pruned.plan))


def test_an_optimizer_goes_on_with_an_nnx_module() -> None:
    net = trained_nnx()
    pruned = jaxslim.prune(net, None, 0.5, images())
    state = nnx.state(nnx.Optimizer(net, optax.adam(0.1), wrt=nnx.Param))
    optimizer = nnx.Optimizer(pruned.module, optax.adam(0.1), wrt=nnx.Param)
    nnx.update(optimizer, jaxslim.cut(pruned.graph, state, pruned.plan))
    moments = optimizer.opt_state[0].mu["head"]["kernel"]
    assert moments.shape == pruned.module.head.kernel.shape == (4, 3)
    optimizer.update(pruned.module, nnx.state(pruned.module, nnx.Param))


class Remembering(nnx.Module):
    """Its call makes a variable."""

    def __init__(self) -> None:
        self.first, self.last = nnx.Linear(5, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1))

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.first(x))
        self.seen = nnx.Intermediate(x)
        return self.last(x)


def test_what_an_nnx_module_makes_in_its_call_is_there() -> None:
    net = jaxslim.prune(Remembering(), None, 0.5, np.ones((4, 5), np.float32)).module
    for _ in range(2):
        out = net(np.ones((4, 5), np.float32))
        assert_close(net.last(net.seen[...]), out)


class Keyed(nnx.Module):
    """Takes its random numbers with each call."""

    def __init__(self) -> None:
        self.first, self.last = nnx.Linear(5, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 3, rngs=nnx.Rngs(1))
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x: Any, rngs: Any = None) -> Any:
        return self.last(self.dropout(nnx.relu(self.first(x)), rngs=rngs))


def test_random_numbers_given_to_an_nnx_module_advance() -> None:
    net, x = jaxslim.prune(Keyed(), None, 0.5, np.ones((4, 5), np.float32)).module, np.ones((4, 5), np.float32)
    net.train()
    rngs, again = nnx.Rngs(dropout=0), nnx.Rngs(dropout=0)
    first, second = net(x, rngs=rngs), net(x, rngs)
    assert not np.array_equal(first, second)
    assert int(rngs.dropout.count[...]) == 2
    np.testing.assert_array_equal(net(x, rngs=again), first)


# ---------------------------------------------------------------------------------------------------------------------
# All kinds


def test_cutting_twice() -> None:
    x = images()
    module = trained_nnx()
    variables = drawn(jax.eval_shape(Linen().init, jax.random.key(0), x))
    once = [jaxslim.prune(module, None, 0.5, x), jaxslim.prune(Linen(), variables, 0.5, x)]
    twice = [
        jaxslim.prune(once[0].module, None, 0.5, x),
        jaxslim.prune(once[1].module, once[1].variables, 0.5, x),
    ]
    assert once[0].module.norm.mean.shape == (4,)
    assert twice[0].module.norm.mean.shape == (2,)
    assert twice[1].variables["params"]["conv"]["kernel"].shape == (3, 3, 2, 2)
    masked = jaxslim.mask(twice[0].graph, twice[0].full, twice[0].plan)
    nnx.update(once[0].module, masked)
    for pruned in (once[0], twice[0]):
        pruned.module.eval()
    assert_close(nnx.jit(lambda net: net(x))(twice[0].module), nnx.jit(lambda net: net(x))(once[0].module))
    masked = jaxslim.mask(twice[1].graph, twice[1].full, twice[1].plan)
    assert_close(twice[1].module.apply(twice[1].variables, x), once[1].module.apply(masked, x))


# ---------------------------------------------------------------------------------------------------------------------
# Functions


def dense(variables: Any, x: Any) -> Any:
    return jax.nn.relu(x @ variables["a"] + variables["b"][None]) @ variables["c"]


def dense_variables() -> Any:
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(5, 8)), "b": np.arange(8.0), "c": rng.normal(size=(8, 3))}


@pytest.mark.parametrize("batch", [1, 7])
def test_a_function_is_narrowed(batch: int) -> None:
    pruned = jaxslim.prune(dense, dense_variables(), 0.5, jax.ShapeDtypeStruct((4, 5), "float32"))
    masked = jaxslim.mask(pruned.graph, dense_variables(), pruned.plan)
    x = np.ones((batch, 5), np.float32)
    assert_close(pruned.module(pruned.variables, x), dense(masked, x))
    assert shapes(pruned.variables) == {"a": (5, 4), "b": (4,), "c": (4, 3)}


def test_keyword_arguments_go_to_the_model() -> None:
    def apply(variables: Any, x: Any, scale: Any, *, how: str) -> Any:
        assert how == "twice"
        return 2 * scale["by"] * dense(variables, x)

    pruned = jaxslim.prune(
        apply, dense_variables(), 0.5, np.ones((4, 5)), {"by": np.ones(())}, how="twice", multiple_of=4
    )
    assert pruned.variables["b"].shape == (4,)
    x, scale = np.ones((2, 5)), {"by": 3.0 * np.ones(())}
    out = pruned.module(pruned.variables, x, scale, how="twice")
    assert_close(out, apply(jaxslim.mask(pruned.graph, dense_variables(), pruned.plan), x, scale, how="twice"))


def test_modes_say_how_a_model_is_used() -> None:
    """A layer that only one of them reads is cut with the others."""

    def hidden(variables: Any, x: Any) -> Any:
        return jax.nn.relu(x @ variables["a"] + variables["b"][None])

    def second(variables: Any, x: Any) -> Any:
        return hidden(variables, x) @ variables["d"]

    variables = dense_variables() | {"d": np.ones((8, 2))}
    alone = jaxslim.prune(dense, variables, 0.5, np.ones((4, 5)))
    both = jaxslim.prune(dense, variables, 0.5, np.ones((4, 5)), modes=[dense, second])
    assert shapes(alone.variables["d"]) == (8, 2)
    assert shapes(both.variables["d"]) == (4, 2)
    masked = jaxslim.mask(both.graph, variables, both.plan)
    x = np.ones((2, 5), np.float32)
    assert_close(jaxslim.narrow(second, both.graph, both.plan)(both.variables, x), second(masked, x))


def test_a_training_mode_that_does_not_run_is_left_out() -> None:
    def apply(variables: Any, x: Any, train: bool = False) -> Any:
        if train:
            raise RuntimeError("training needs a key")
        return dense(variables, x)

    assert jaxslim.prune(apply, dense_variables(), 0.5, np.ones((4, 5))).variables["b"].shape == (4,)
    with pytest.raises(jaxslim.InputError, match="training needs a key"):
        jaxslim.prune(apply, dense_variables(), 0.5, np.ones((4, 5)), train=True)


# ---------------------------------------------------------------------------------------------------------------------
# Frameworks that jaxslim does not depend on


@pytest.fixture
def relaxed() -> Any:
    """Other frameworks add arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_equinox(relaxed: None) -> None:
    eqx = pytest.importorskip("equinox", reason=REASON)
    net = eqx.nn.MLP(5, 3, 8, 2, key=jax.random.key(0))
    x = images()[:, 0, 0, :1] * np.ones(5, np.float32)
    pruned = jaxslim.prune(net, None, 0.5, x[0])
    cut = pruned.module
    _, rest = eqx.partition(net, eqx.is_array)
    masked = jaxslim.mask(pruned.graph, pruned.full, pruned.plan).arrays
    expected = eqx.filter_jit(eqx.filter_vmap(eqx.combine(masked, rest)))(x)
    assert isinstance(cut, eqx.Module)
    assert_close(eqx.filter_jit(eqx.filter_vmap(cut))(x), expected)
    assert cut.layers[-1].weight.shape == (3, len(cut.layers[1].weight))
    before = [leaf.size for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_array))]
    assert pruned.report.params == (
        sum(before),
        sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(cut, eqx.is_array))),
    )

    def loss(net: Any, x: Any) -> Any:
        return (jax.vmap(net)(x) ** 2).mean()

    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    gradients, full = gradient(cut, x), gradient(eqx.combine(masked, rest), x)
    expected = jaxslim.cut(pruned.graph, eqx.filter(full, eqx.is_array), pruned.plan)
    assert_close(jax.tree.leaves(gradients), jax.tree.leaves(expected))
    again = jaxslim.prune(cut, None, 0.25, x[0])
    assert again.report.params[0] == pruned.report.params[1] > again.report.params[1]


def test_equinox_with_state(relaxed: None) -> None:
    eqx = pytest.importorskip("equinox", reason=REASON)

    class Net(eqx.Module):
        conv: Any
        norm: Any
        dropout: Any
        head: Any
        act: Callable[[Any], Any]

        def __init__(self, key: Any) -> None:
            one, two = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(2, 8, 3, use_bias=False, key=one)
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="ema")
            self.dropout = eqx.nn.Dropout(0.5)
            self.head = eqx.nn.Linear(8, 3, key=two)
            self.act = jax.nn.relu

        def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
            x, state = self.norm(self.conv(x), state)
            return self.head(self.dropout(self.act(x), key=key).mean((1, 2))), state

    net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    net, state = drawn(net), drawn(state)
    x = images().transpose(0, 3, 1, 2)
    pruned = jaxslim.prune(net, state, 0.5, x[0])
    cut, small_state = pruned.module, pruned.variables.state
    assert cut.head.weight.shape == pruned.variables.arrays.head.weight.shape == (3, 4)
    _, rest = eqx.partition(net, eqx.is_array)
    masked, masked_state = jaxslim.mask(pruned.graph, pruned.full, pruned.plan)

    @eqx.filter_jit
    def evaluate(net: Any, state: Any) -> Any:
        return jax.vmap(lambda x: eqx.nn.inference_mode(net)(x, state)[0])(x)

    assert_close(evaluate(cut, small_state), evaluate(eqx.combine(masked, rest), masked_state))

    @eqx.filter_jit
    @functools.partial(eqx.filter_value_and_grad, has_aux=True)
    def step(net: Any, state: Any, keys: Any) -> Any:
        def one(x: Any, key: Any) -> Any:
            return net(x, state, key=key)

        logits, state = jax.vmap(one, axis_name="batch", out_axes=(0, None))(x, keys)
        return loss_of(logits), state

    (_, new), gradients = step(cut, small_state, jax.random.split(jax.random.key(0), 4))
    assert shapes(jax.tree.leaves(new)) == shapes(jax.tree.leaves(small_state))
    assert not np.array_equal(jax.tree.leaves(new)[1], jax.tree.leaves(small_state)[1])
    assert gradients.conv.weight.shape == (4, 2, 3, 3)


def test_haiku(relaxed: None) -> None:
    hk = pytest.importorskip("haiku", reason=REASON)

    def forward(x: Any, is_training: bool) -> Any:
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3, with_bias=False)(x), is_training))
        if is_training:
            x = hk.dropout(hk.next_rng_key(), 0.5, x)
        return hk.Linear(3)(x.mean((1, 2)))

    net = hk.transform_with_state(forward)
    variables = drawn(net.init(jax.random.key(0), images(), True))
    pruned = jaxslim.prune(net, variables, 0.5, images())
    assert isinstance(pruned.module, hk.TransformedWithState)
    masked = jaxslim.mask(pruned.graph, variables, pruned.plan)
    evaluation = {"is_training": False}
    run, full = (jax.jit(functools.partial(one.apply, **evaluation)) for one in (pruned.module, net))
    assert_close(run(*pruned.variables, None, images())[0], full(*masked, None, images())[0])
    _, state = jax.jit(functools.partial(pruned.module.apply, is_training=True))(
        *pruned.variables, jax.random.key(0), images()
    )
    assert shapes(state) == shapes(pruned.variables[1])
    assert shapes(state["batch_norm/~/mean_ema"]["hidden"]) == (1, 1, 1, 4)
    with pytest.raises(jaxslim.InputError, match="cannot be initialised"):
        pruned.module.init(jax.random.key(0), images(), True)
    with pytest.raises(jaxslim.InputError, match=r"are not the pair \(params, state\) that init returned"):
        jaxslim.prune(net, variables[0], 0.5, images())


@pytest.mark.parametrize("keyed", [False, True])
def test_haiku_without_state(relaxed: None, keyed: bool) -> None:
    hk = pytest.importorskip("haiku", reason=REASON)
    net = hk.transform(lambda x: hk.Linear(3)(jax.nn.relu(hk.Linear(8)(x))))
    x, key = images()[:, 0, 0], (None,) if keyed else ()
    variables = drawn(net.init(jax.random.key(0), x))
    net = net if keyed else hk.without_apply_rng(net)
    pruned = jaxslim.prune(net, variables, 0.5, x)
    masked = jaxslim.mask(pruned.graph, variables, pruned.plan)
    assert_close(pruned.module.apply(pruned.variables, *key, x), net.apply(masked, *key, x))
    assert shapes(pruned.variables["linear_1"]) == {"b": (4,), "w": (2, 4)}


def test_keras(relaxed: None) -> None:
    keras = pytest.importorskip("keras", reason=REASON)
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    for number, variable in enumerate(net.weights):
        if variable.dtype == "float32":
            variable.assign(np.abs(np.random.default_rng(number).normal(size=variable.shape)) - 0.1 * (number == 0))
    pruned = jaxslim.prune(net, None, 0.5, images())
    masked = jaxslim.mask(pruned.graph, pruned.full, pruned.plan)
    trainable, non_trainable = pruned.variables
    run, full = (jax.jit(functools.partial(one.stateless_call, training=False)) for one in (pruned.module, net))
    assert_close(run(list(trainable), list(non_trainable), images())[0], full(*masked, images())[0])

    @jax.jit
    def step(trainable: Any, non_trainable: Any) -> Any:
        def loss(trainable: Any) -> Any:
            logits, new = pruned.module.stateless_call(trainable, non_trainable, images(), training=True)
            return loss_of(logits), new

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    (_, new), gradients = step(trainable, non_trainable)
    assert shapes(gradients) == shapes(trainable)
    assert shapes(list(new)) == [(4,), (4,), (2,)]
    assert not np.array_equal(new[0], non_trainable[0])
    assert not np.array_equal(new[2], non_trainable[2])  # the seed of dropout
    tx = optax.adam(0.1)
    state = jaxslim.cut(pruned.graph, tx.init(pruned.full[0]), pruned.plan)
    assert shapes(tx.update(gradients, state, trainable)[0]) == shapes(trainable)
    again = jaxslim.prune(pruned.module, pruned.variables, 0.5, images())
    assert again.variables[1][0].shape == (2,)


# ---------------------------------------------------------------------------------------------------------------------
# What is scored, checked and refused


def test_the_smallest_weights_go_where_there_is_no_batch_norm() -> None:
    variables = dense_variables()
    variables["a"][:, [1, 5]] = variables["c"][[1, 5]] = 0
    variables["b"][[1, 5]] = 0
    pruned = jaxslim.prune(dense, variables, 0.25, np.ones((4, 5)))
    np.testing.assert_array_equal(pruned.variables["b"], np.delete(variables["b"], [1, 5]))


@pytest.mark.parametrize("form", ["tree", "array", "function"])
def test_scores_of_ones_own(form: str) -> None:
    variables = dense_variables()
    graph = jaxslim.trace(dense, variables, np.ones((4, 5)))
    array = np.zeros(graph.num_units + 1)
    array[graph.units[graph.find(("b",))][0]] = variables["b"]
    scores = {"tree": {"b": variables["b"]}, "array": array, "function": lambda graph, variables: {"b": variables["b"]}}
    pruned = jaxslim.prune(dense, variables, 0.5, np.ones((4, 5)), scores=scores[form])
    np.testing.assert_array_equal(pruned.variables["b"], [4, 5, 6, 7])
    kept = [4, 5, 6, 7]
    np.testing.assert_array_equal(pruned.variables["a"], variables["a"][:, kept])


def test_the_report_in_words() -> None:
    report = jaxslim.prune(dense, dense_variables(), 0.5, np.ones((4, 5))).report
    assert (report.params, report.macs, report.exact) == ((72, 36), (64, 32), 1.0)
    first, second, third = str(report).splitlines()
    assert (first, second) == ("72 -> 36 parameters (50.0%)", "64 -> 32 MACs (50.0%)")
    assert third.startswith("100.0% of the units cut are exact; outputs within ")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.exact = 0.5


def test_a_wrong_network_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxslim.slim.prune.narrow", lambda *given: lambda *call: 1.1 * jaxslim.narrow(*given)(*call))
    with pytest.raises(
        jaxslim.InputError, match=r"outputs differ from the masked full network's by 0\.1.* of the largest"
    ):
        jaxslim.prune(dense, dense_variables(), 0.5, np.ones((4, 5)))


def test_half_precision_is_no_wrong_network() -> None:
    def apply(variables: Any, x: Any) -> Any:
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
        return dense(half, x.astype(jnp.bfloat16)).astype(jnp.float32)

    pruned = jaxslim.prune(apply, dense_variables(), 0.5, images()[:, 0, 0, :1] * np.ones(5, np.float32))
    assert pruned.report.difference < 0.05


def test_nan_harms_only_where_it_stays() -> None:
    variables = dense_variables()
    variables["a"][2, 1] = np.nan
    variables["c"][0, 1] = np.inf
    pruned = jaxslim.prune(dense, variables, 0.25, np.ones((4, 5)), scores={"b": np.arange(8.0)})
    assert pruned.report.difference < 1e-5
    with pytest.raises(jaxslim.InputError, match=r"a holds NaN in what stays \(1 of 35 numbers\); take an earlier"):
        jaxslim.prune(dense, variables, 0.125, np.ones((4, 5)), scores={"b": np.arange(8.0)})
    variables["a"][2, 1] = 0
    with pytest.raises(jaxslim.InputError, match=r"c holds infinities in what stays \(1 of 24 numbers\)"):
        jaxslim.prune(dense, variables, 0.0, np.ones((4, 5)), scores={"b": np.arange(8.0)})


def test_a_cut_that_makes_nan_is_refused() -> None:
    """The norm divides by the length of its input, which is 0 when the other channels are gone."""

    def apply(variables: Any, x: Any) -> Any:
        hidden = x @ variables["a"]
        return (hidden / jnp.sqrt((hidden**2).sum(-1, keepdims=True))) @ variables["c"]

    variables = {"a": np.eye(3, 4), "c": np.ones((4, 3))}
    with pytest.raises(jaxslim.InputError, match="Without these channels the network computes NaN"):
        jaxslim.prune(apply, variables, 0.75, np.eye(3)[:1], scores=lambda graph, _: np.arange(graph.num_units + 1))


def test_infinities_that_do_no_harm_may_stay() -> None:
    """Masks of attention hold them."""

    def apply(variables: Any, x: Any) -> Any:
        return dense(variables, jax.nn.softmax(x + variables["mask"]))

    variables = dense_variables() | {"mask": np.array([[0, 0, 0, -np.inf, 0]])}
    pruned = jaxslim.prune(apply, variables, 0.5, np.ones((4, 5)), scores={"b": np.arange(8.0)})
    assert pruned.variables["b"].shape == (4,)


KINDS = "a Flax Linen or NNX module, an Equinox module, a Keras model on the JAX backend, the functions that Haiku's"


@pytest.mark.parametrize(
    ("model", "variables", "message"),
    [
        ("net", {}, rf"'net' is no model; pass {KINDS}"),
        (({}, 3), {}, KINDS),
        (dense, None, rf"The variables of .* are missing. A model is {KINDS}"),
        (Linen, {}, r"Linen is a class; pass a model, for example Linen\(\)"),
        (Linen(), None, "The variables of Linen are missing; pass all that its init returned"),
        (Remembering(), {}, "Remembering is an NNX module, which holds its variables; pass None"),
        (dense, {"a": np.ones((4, 8))}, r"The network cannot be applied \(.*\); "),
        (Linen(), {"params": {}}, r"The network cannot be applied \(.*\); "),
    ],
)
def test_models_that_are_refused(model: Any, variables: Any, message: str) -> None:
    with pytest.raises(jaxslim.InputError, match=message):
        jaxslim.prune(model, variables, 0.5, images())


def test_calls_that_are_refused() -> None:
    with pytest.raises(jaxslim.InputError, match="There are no inputs to trace the model with"):
        jaxslim.prune(dense, dense_variables(), 0.5)
    with pytest.raises(jaxslim.InputError, match=r"An input is False; pass what is no array by its name"):
        jaxslim.prune(dense, dense_variables(), 0.5, np.ones((4, 5)), False)
    with pytest.raises(jaxslim.InputError, match="absorb is for models of one input whose variables have params"):
        jaxslim.prune(dense, dense_variables(), 0.5, np.ones((4, 5)), absorb=True)
    with pytest.raises(jaxslim.InputError, match=r"unexpected keyword argument 'min_chanels'"):
        jaxslim.prune(dense, dense_variables(), 0.5, np.ones((4, 5)), min_chanels=2)
    with pytest.raises(jaxslim.InputError, match=r"Nothing can be cut: 0 units, .*output"):
        jaxslim.prune(lambda w, x: x @ w, np.ones((5, 3)), 0.5, np.ones((4, 5)))


def test_frameworks_are_not_imported_for_other_models() -> None:
    code = "import sys, jaxslim, numpy as np; jaxslim.prune(lambda w, x: (x @ w['a']) @ w['b'], "
    code += "{'a': np.ones((3, 4)), 'b': np.ones((4, 2))}, 0.5, np.ones((1, 3))); "
    code += "print([name for name in ('keras', 'haiku', 'equinox') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
