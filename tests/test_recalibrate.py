"""Recalibrated running statistics against means and variances worked out with NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from test_prune import vgg

import jaxslim
from jaxslim.errors import InputError


class Normed(nn.Module):
    """Two norms of different momentum; the second one sees mean 1 and variance 4."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.99, name="first")(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.5, name="second")(2 * x + 1)


def batches(count: int, shift: float = 0.0) -> list[np.ndarray]:
    """Images whose channels have the means 0, `shift` and `-shift`."""
    rng = np.random.default_rng(0)
    means = np.array([0, shift, -shift])
    return [(rng.normal(size=(8, 4, 4, 3)) + means).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_statistics_are_means_over_the_batches_whatever_the_momentum(shift: float) -> None:
    images = batches(3, shift)
    variables = Normed().init(jax.random.key(0), images[0])
    before = jax.tree.map(np.array, variables)
    found = jaxslim.recalibrate(Normed(), variables, images)
    first, second = found["batch_stats"]["first"], found["batch_stats"]["second"]
    np.testing.assert_allclose(first["mean"], np.mean([x.mean((0, 1, 2)) for x in images], 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["var"], np.mean([x.var((0, 1, 2)) for x in images], 0), rtol=1e-3)
    np.testing.assert_allclose(second["mean"], 1, atol=1e-3)  # of normalised values times 2 plus 1
    np.testing.assert_allclose(second["var"], 4, rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])


def test_statistics_keep_their_type() -> None:
    norm = nn.BatchNorm(use_running_average=False, param_dtype=jnp.bfloat16, force_float32_reductions=False)
    images = batches(2, 3.0)
    variables = norm.init(jax.random.key(0), images[0])
    found = jaxslim.recalibrate(norm, variables, images, use_running_average=None)["batch_stats"]
    assert found["mean"].dtype == found["var"].dtype == variables["batch_stats"]["mean"].dtype
    np.testing.assert_allclose(found["mean"].astype(np.float32), np.mean(images, (0, 1, 2, 3)), rtol=0.02, atol=0.02)


def test_large_statistics() -> None:
    """Variances of ten million, beside which small numbers round away."""
    images = [3000 * batch for batch in batches(2)]
    variables = Normed().init(jax.random.key(0), images[0])
    found = jaxslim.recalibrate(Normed(), variables, images)["batch_stats"]["first"]
    np.testing.assert_allclose(found["var"], np.mean([x.var((0, 1, 2)) for x in images], 0), rtol=1e-3)


def test_a_layer_that_training_leaves_alone_keeps_its_statistics() -> None:
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = nn.BatchNorm(use_running_average=True, name="frozen")(x)
            return nn.BatchNorm(use_running_average=not train, name="free")(x)

    images = batches(2, 1.0)
    variables = Half().init(jax.random.key(0), images[0])
    variables["batch_stats"]["frozen"]["mean"] = jnp.array([1.0, 2.0, 3.0])
    found = jaxslim.recalibrate(Half(), variables, images)["batch_stats"]
    assert found["frozen"]["mean"] is variables["batch_stats"]["frozen"]["mean"]
    assert found["frozen"]["var"].tolist() == [1, 1, 1]
    expected = np.mean(images, (0, 1, 2, 3)) - np.array([1, 2, 3])
    np.testing.assert_allclose(found["free"]["mean"], expected, rtol=1e-3)


class OwnNorm(nn.Module):
    """Keeps statistics as BatchNorm does, but is none."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        mean = self.variable("batch_stats", "mean", jnp.zeros, 3)
        if train:
            mean.value = 0.9 * mean.value + 0.1 * x.mean((0, 1, 2))
        return x


def test_everything_else_among_the_statistics_stays() -> None:
    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            steps = self.variable("batch_stats", "steps", lambda: jnp.int32(7))
            seen = self.variable("batch_stats", "seen", lambda: jnp.array(False))
            if train:
                steps.value += 1
                seen.value = ~seen.value
            x = OwnNorm(name="own")(x, train)
            x = nn.SpectralNorm(nn.Conv(2, (1, 1), name="conv"), name="spectral")(x, update_stats=train)
            return nn.BatchNorm(use_running_average=not train, name="norm")(x)

    images = batches(2, 1.0)
    variables = Counted().init(jax.random.key(0), images[0], train=True)
    found = jaxslim.recalibrate(Counted(), variables, images)["batch_stats"]
    for name in ("steps", "seen", "own", "spectral"):
        assert jax.tree.all(jax.tree.map(lambda new, old: new is old, found[name], variables["batch_stats"][name]))
    mutable = ["batch_stats", "intermediates"]
    inner = [Counted().apply(variables, x, True, mutable=mutable, capture_intermediates=True)[1] for x in images]
    before_norm = [one["intermediates"]["spectral"]["__call__"][0] for one in inner]
    np.testing.assert_allclose(found["norm"]["mean"], np.mean([y.mean((0, 1, 2)) for y in before_norm], 0), rtol=1e-3)
    np.testing.assert_allclose(found["norm"]["var"], np.mean([y.var((0, 1, 2)) for y in before_norm], 0), rtol=1e-3)


class Norm(nn.BatchNorm):
    """A subclass with a signature of its own, which calls its parent."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return super().__call__(x, use_running_average=not train)


class Block(nn.Module):
    """Gives mean 1 and variance 4 to whatever comes in."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        return 2 * Norm(name="norm")(x, train) + 1


class Step(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: None) -> Any:
        return Block(name="block")(x, True), None


class Lifted(nn.Module):
    """Three blocks in a row behind a Flax transformation, or one block three times."""

    how: str

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        if self.how in ("jit", "remat"):
            for name in "abc":
                x = getattr(nn, self.how)(Block, static_argnums=(2,))(name=name)(x, train)
        elif self.how == "scan":
            axes, split = {"params": 0, "batch_stats": 0}, {"params": True}
            x, _ = nn.scan(Step, variable_axes=axes, split_rngs=split, length=3)(name="scan")(x, None)
        elif self.how == "scan that carries":
            step, once = Step(name="scan"), {"variable_broadcast": "params", "variable_carry": "batch_stats"}
            if self.is_initializing():
                return step(x, None)[0]
            x, _ = nn.scan(lambda step, x, _: step(x, None), **once, length=3)(step, x, None)
        else:
            block = nn.remat(Block, static_argnums=(2,))(name="shared") if "remat" in self.how else Block(name="shared")
            for _ in range(3):
                x = block(x, train)
        return x


@pytest.mark.parametrize("how", ["jit", "remat", "scan", "scan that carries", "shared", "shared remat"])
def test_layers_behind_transformations_and_layers_that_run_several_times(how: str) -> None:
    images = batches(2, 3.0)
    variables = Lifted(how).init(jax.random.key(0), images[0])
    before = Lifted(how).apply(variables, images[0], train=True, mutable=["batch_stats"])[1]
    found = jaxslim.recalibrate(Lifted(how), variables, images)["batch_stats"]
    mean = np.mean([x.mean((0, 1, 2)) for x in images], 0)
    var = np.mean([x.var((0, 1, 2)) for x in images], 0)
    rows = np.stack([[mean, var], *[[np.ones(3), np.full(3, 4.0)]] * 2])  # of the three blocks
    if how in ("jit", "remat"):
        for row, name in zip(rows, "abc", strict=True):
            np.testing.assert_allclose(list(found[name]["norm"].values()), row, rtol=1e-3, atol=1e-3)
    else:
        stats = found["scan"]["block"]["norm"] if "scan" in how else found["shared"]["norm"]
        expected = rows.swapaxes(0, 1) if how == "scan" else rows.mean(0)
        np.testing.assert_allclose([stats["mean"], stats["var"]], expected, rtol=1e-3, atol=1e-3)
    after = Lifted(how).apply(variables, images[0], train=True, mutable=["batch_stats"])[1]
    jax.tree.map(np.testing.assert_array_equal, after, before)  # training is traced as before, nn.jit's too


def test_vectorised_layers_have_statistics_of_their_own() -> None:
    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            axes = {"params": 0, "batch_stats": 0}
            members = nn.vmap(nn.BatchNorm, variable_axes=axes, split_rngs={"params": True})
            return members(use_running_average=not train, name="norm")(x)

    images = batches(2, 3.0)
    found = jaxslim.recalibrate(Ensemble(), Ensemble().init(jax.random.key(0), images[0]), images)
    expected = np.mean([x.mean((1, 2)) for x in images], 0)  # eight members, one for each image
    np.testing.assert_allclose(found["batch_stats"]["norm"]["mean"], expected, rtol=1e-4, atol=1e-5)


def test_dropout_has_a_key_unless_arguments_are_given() -> None:
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
            return nn.Dropout(0.5, deterministic=not train)(x)

    images = batches(1)
    variables = Dropping().init(jax.random.key(0), images[0])
    found = jaxslim.recalibrate(Dropping(), variables, images)
    np.testing.assert_allclose(found["batch_stats"]["norm"]["mean"], images[0].mean((0, 1, 2)), atol=1e-5)
    with pytest.raises(InputError, match=r"Dropping cannot be applied as in training .*needs PRNG"):
        jaxslim.recalibrate(Dropping(), variables, images, train=True)


def test_other_arguments_of_the_module() -> None:
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x: Any, average: bool = True) -> Any:
            return nn.BatchNorm(use_running_average=average, name="norm")(x)

    images = batches(2, 1.0)
    variables = Frozen().init(jax.random.key(0), images[0])
    found = jaxslim.recalibrate(Frozen(), variables, images, average=False)
    np.testing.assert_allclose(
        found["batch_stats"]["norm"]["mean"], np.mean(images, (0, 1, 2, 3)), rtol=1e-4, atol=1e-6
    )


def test_a_cut_network_gets_what_the_zeroed_one_gets() -> None:
    module, variables = vgg()
    images = [np.random.default_rng(seed).normal(size=(8, 8, 8, 3)).astype(np.float32) for seed in range(2)]
    graph = jaxslim.trace(module.apply, variables, images[0])
    pruned = jaxslim.prune(module, variables, 0.5, images[0])
    zeroed = jaxslim.recalibrate(module, jaxslim.mask(graph, variables, pruned.plan), images)
    kept = jaxslim.cut(graph, zeroed, pruned.plan)
    found = jaxslim.recalibrate(pruned.module, pruned.variables, images)
    for layer, stats in found["batch_stats"].items():
        for name, values in stats.items():
            np.testing.assert_allclose(values, kept["batch_stats"][layer][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.ones((2, 4, 4, 3), np.float32), "The batches are one array; pass a list of arrays"),
        ([(np.ones((2, 4, 4, 3)), np.ones(2))], "A batch is no array of images, or an empty one; pass images without"),
        ([np.ones((0, 4, 4, 3))], "A batch is no array of images, or an empty one; pass images without labels"),
        ([np.ones((2, 4, 4, 5), np.float32)], "Normed cannot be applied as in training"),
        ([], "There are no batches to estimate the running statistics on; give at least one"),
    ],
)
def test_what_is_no_list_of_batches_is_refused(images: Any, message: str) -> None:
    variables = Normed().init(jax.random.key(0), batches(1)[0])
    with pytest.raises(InputError, match=message):
        jaxslim.recalibrate(Normed(), variables, images)


def test_modules_that_update_no_statistics_are_refused() -> None:
    images = batches(1)
    variables = Normed().init(jax.random.key(0), images[0])
    with pytest.raises(InputError, match=r"updates the statistics of no nn.BatchNorm; pass the argument that it takes"):
        jaxslim.recalibrate(Normed(), variables, images, train=False)
    variables = OwnNorm().init(jax.random.key(0), images[0], True)
    with pytest.raises(InputError, match=r"updates the statistics of no nn.BatchNorm; .* other classes cannot be"):
        jaxslim.recalibrate(OwnNorm(), variables, images)
    variables = nn.BatchNorm(use_running_average=True).init(jax.random.key(0), images[0])
    with pytest.raises(InputError, match=r"BatchNorm cannot be applied as in training .*; pass the argument that it"):
        jaxslim.recalibrate(nn.BatchNorm(), variables, images)
    with pytest.raises(InputError, match=r"hold no batch_stats, and only networks with BatchNorm can be recalibrated"):
        jaxslim.recalibrate(nn.Dense(2), {"params": {"kernel": jnp.ones((3, 2))}}, images)
