"""Running statistics estimated again, against means and variances worked out with NumPy."""

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
    """Two norms of different momentum on images whose channels may be anywhere."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.99, name="first")(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.5, name="second")(2 * x + 1)


def batches(count: int, shift: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    middles = np.array([0, shift, -shift])
    return [(rng.normal(size=(8, 4, 4, 3)) + middles).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_statistics_are_means_over_the_batches_whatever_the_momentum(shift: float) -> None:
    seen = batches(3, shift)
    variables = Normed().init(jax.random.key(0), seen[0])
    before = jax.tree.map(np.array, variables)
    found = jaxslim.recalibrate(Normed(), variables, seen)
    first, second = found["batch_stats"]["first"], found["batch_stats"]["second"]
    np.testing.assert_allclose(first["mean"], np.mean([x.mean((0, 1, 2)) for x in seen], 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["var"], np.mean([x.var((0, 1, 2)) for x in seen], 0), rtol=1e-3)
    np.testing.assert_allclose(second["mean"], 1, atol=1e-3)  # of normalised values times 2 plus 1
    np.testing.assert_allclose(second["var"], 4, rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])


def test_large_statistics() -> None:
    """Variances of ten million, in which the momentum would round away."""
    seen = [3000 * batch for batch in batches(2)]
    variables = Normed().init(jax.random.key(0), seen[0])
    found = jaxslim.recalibrate(Normed(), variables, seen)["batch_stats"]["first"]
    np.testing.assert_allclose(found["var"], np.mean([x.var((0, 1, 2)) for x in seen], 0), rtol=1e-3)


def test_a_layer_that_training_leaves_alone_keeps_its_statistics() -> None:
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = nn.BatchNorm(use_running_average=True, name="frozen")(x)
            return nn.BatchNorm(use_running_average=not train, name="free")(x)

    seen = batches(2, 1.0)
    variables = Half().init(jax.random.key(0), seen[0])
    variables["batch_stats"]["frozen"]["mean"] = jnp.array([1.0, 2.0, 3.0])
    found = jaxslim.recalibrate(Half(), variables, seen)["batch_stats"]
    assert found["frozen"]["mean"] is variables["batch_stats"]["frozen"]["mean"]
    assert found["frozen"]["var"].tolist() == [1, 1, 1]
    expected = np.mean(seen, (0, 1, 2, 3)) - np.array([1, 2, 3])
    np.testing.assert_allclose(found["free"]["mean"], expected, rtol=1e-3)


def test_what_other_layers_keep_among_the_statistics_stays() -> None:
    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            steps = self.variable("batch_stats", "steps", lambda: jnp.int32(7))
            if train:
                steps.value += 1
            x = nn.SpectralNorm(nn.Conv(2, (1, 1), name="conv"), name="spectral")(x, update_stats=train)
            return nn.BatchNorm(use_running_average=not train, name="norm")(x)

    seen = batches(2, 1.0)
    variables = Counted().init(jax.random.key(0), seen[0], train=True)
    found = jaxslim.recalibrate(Counted(), variables, seen)["batch_stats"]
    for name in ("steps", "spectral"):
        jax.tree.map(np.testing.assert_array_equal, found[name], variables["batch_stats"][name])
    assert found["steps"].dtype == np.int32
    mutable = ["batch_stats", "intermediates"]
    inner = [Counted().apply(variables, x, True, mutable=mutable, capture_intermediates=True)[1] for x in seen]
    before_norm = [one["intermediates"]["spectral"]["__call__"][0] for one in inner]
    np.testing.assert_allclose(found["norm"]["mean"], np.mean([y.mean((0, 1, 2)) for y in before_norm], 0), rtol=1e-3)
    np.testing.assert_allclose(found["norm"]["var"], np.mean([y.var((0, 1, 2)) for y in before_norm], 0), rtol=1e-3)


def test_other_arguments_of_the_module() -> None:
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x: Any, average: bool = True) -> Any:
            return nn.BatchNorm(use_running_average=average, name="norm")(x)

    seen = batches(2, 1.0)
    variables = Frozen().init(jax.random.key(0), seen[0])
    found = jaxslim.recalibrate(Frozen(), variables, seen, average=False)
    np.testing.assert_allclose(found["batch_stats"]["norm"]["mean"], np.mean(seen, (0, 1, 2, 3)), rtol=1e-4, atol=1e-6)


def test_a_cut_network_gets_what_the_zeroed_one_gets() -> None:
    module, variables = vgg()
    seen = [np.random.default_rng(seed).normal(size=(8, 8, 8, 3)).astype(np.float32) for seed in range(2)]
    graph = jaxslim.trace(module.apply, variables, seen[0])
    pruned = jaxslim.prune(module, variables, 0.5, seen[0])
    zeroed = jaxslim.recalibrate(module, jaxslim.zero(graph, variables, pruned.plan), seen)
    kept = jaxslim.cut(graph, zeroed, pruned.plan)
    found = jaxslim.recalibrate(pruned.module, pruned.variables, seen)
    for layer, stats in found["batch_stats"].items():
        for name, values in stats.items():
            np.testing.assert_allclose(values, kept["batch_stats"][layer][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (np.ones((2, 4, 4, 3), np.float32), "batches are one array or none; pass a list of arrays"),
        (None, "batches are one array or none; pass a list of arrays"),
        ([(np.ones((2, 4, 4, 3)), np.ones(2))], "A batch is no array of images, or an empty one; pass images without"),
        ([np.ones((0, 4, 4, 3))], "A batch is no array of images, or an empty one; pass images without labels"),
        ([np.ones((2, 4, 4, 5), np.float32)], "Normed cannot be applied as in training"),
    ],
)
def test_batches_that_are_none(seen: Any, message: str) -> None:
    variables = Normed().init(jax.random.key(0), batches(1)[0])
    with pytest.raises(InputError, match=message):
        jaxslim.recalibrate(Normed(), variables, seen)
    with pytest.raises(InputError, match="the module updates no statistics; pass the argument that it takes for"):
        jaxslim.recalibrate(Normed(), variables, batches(1), train=False)


def test_what_cannot_be_recalibrated() -> None:
    variables = nn.BatchNorm(use_running_average=True).init(jax.random.key(0), batches(1)[0])
    with pytest.raises(InputError, match=r"BatchNorm cannot be applied as in training .*; pass the argument that it"):
        jaxslim.recalibrate(nn.BatchNorm(), variables, batches(1))
    variables = Normed().init(jax.random.key(0), batches(1)[0])
    with pytest.raises(InputError, match=r"no batches to estimate the running statistics on; give at least one"):
        jaxslim.recalibrate(Normed(), variables, [])
    with pytest.raises(InputError, match=r"hold no batch_stats, and only networks with BatchNorm can be recalibrated"):
        jaxslim.recalibrate(nn.Dense(2), {"params": {"kernel": jnp.ones((3, 2))}}, batches(1))
