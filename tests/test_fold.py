"""Folding: BatchNorm in evaluation becomes part of the layer before it."""

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from jax import lax
from zoo import difference, filled, normal

import jaxslim
from jaxslim.core.flat import flatten


def primitives(apply, variables, *inputs):
    """Names of what a program does, with repetitions."""
    return [node.eqn.primitive.name for node in flatten(jax.make_jaxpr(apply)(variables, *inputs)).nodes]


class Net(nn.Module):
    """A convolution, a product and a grouped convolution, each with its norm."""

    @nn.compact
    def __call__(self, x, train=False):
        for layer in (nn.Conv(8, (3, 3)), nn.Dense(6, use_bias=False), nn.Conv(6, (3, 3), feature_group_count=3)):
            x = nn.BatchNorm(use_running_average=not train)(layer(x))
            x = nn.relu(x)
        return nn.Dense(4)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    images = normal(2, 6, 6, 3)
    return Net(), filled(jax.eval_shape(Net().init, jax.random.key(0), images)), images


def test_a_network_without_norms(net):
    module, variables, images = net
    apply, folded = jaxslim.fold(module, variables, images)
    assert difference(module.apply(variables, images), apply(folded, images)) < 1e-6
    assert not {"rsqrt", "sub", "mul"} & {*primitives(apply, folded, images)}
    assert "rsqrt" in primitives(module.apply, variables, images)
    shapes = jax.tree.map(np.shape, folded["params"])
    assert shapes == {
        "Conv_0": {"kernel": (3, 3, 3, 8), "bias": (8,)},
        "Dense_0": {"kernel": (8, 6), "bias": (6,)},
        "Conv_1": {"kernel": (3, 3, 2, 6), "bias": (6,)},
        "Dense_1": {"kernel": (6, 4), "bias": (4,)},
    }


def test_the_arithmetic(net):
    module, variables, images = net
    params, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
    factor = np.asarray(params["BatchNorm_0"]["scale"]) / np.sqrt(stats["var"] + 1e-5)
    found = jaxslim.fold(module, variables, images).variables["params"]["Conv_0"]
    np.testing.assert_allclose(found["kernel"], np.asarray(params["Conv_0"]["kernel"]) * factor, rtol=1e-5)
    bias = params["BatchNorm_0"]["bias"] + (params["Conv_0"]["bias"] - stats["mean"]) * factor
    np.testing.assert_allclose(found["bias"], bias, rtol=1e-4, atol=1e-6)


def test_other_batches_and_transforms(net):
    module, variables, _ = net
    apply, folded = jaxslim.fold(module, variables, jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32))
    images = normal(5, 6, 6, 3)
    assert difference(module.apply(variables, images), jax.jit(apply)(folded, images)) < 1e-6
    gradient = jax.grad(lambda x: module.apply(variables, x).sum())(images)
    assert difference(gradient, jax.grad(lambda x: apply(folded, x).sum())(images)) < 1e-5


def test_a_cut_network_folds_and_a_folded_one_is_cut(net):
    module, variables, images = net
    cut = jaxslim.prune(module, variables, 0.5, images)
    apply, folded = jaxslim.fold(cut.module, cut.variables, images)
    assert difference(cut.module.apply(cut.variables, images), apply(folded, images)) < 1e-6
    again = jaxslim.prune(apply, folded, 0.3, images)
    assert again.report.params[1] < again.report.params[0]
    assert again.report.difference < 1e-4


def test_what_something_else_reads_stays():
    """The convolution's own output goes on beside the norm's, and an inner step is an output."""

    def apply(variables, x):
        y = x @ variables["kernel"]
        z = (y - variables["mean"][None]) * variables["scale"][None]
        return y + z, z

    rng = np.random.default_rng(0)
    variables = {"kernel": rng.normal(size=(3, 4)), "mean": rng.normal(size=4), "scale": rng.normal(size=4)}
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)
    folded = jaxslim.fold(apply, variables, x := normal(2, 3))
    assert difference(apply(variables, x), folded.apply(folded.variables, x)) < 1e-6
    np.testing.assert_array_equal(folded.variables["kernel"], variables["kernel"])


def test_a_vector_along_another_axis_is_no_part_of_the_kernel():
    def apply(variables, x):
        return (x @ variables["kernel"]) * variables["rows"][:, None]

    variables = {"kernel": normal(3, 4), "rows": normal(5, seed=2)}
    folded = jaxslim.fold(apply, variables, x := normal(5, 3))
    assert difference(apply(variables, x), folded.apply(folded.variables, x)) < 1e-6
    np.testing.assert_array_equal(folded.variables["kernel"], variables["kernel"])


def test_a_norm_without_a_layer_is_one_factor_and_one_shift():
    class PreActivation(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Conv(4, (3, 3))(nn.relu(nn.BatchNorm(use_running_average=True)(x)))
            return x[..., :1] + y

    variables = filled(jax.eval_shape(PreActivation().init, jax.random.key(0), x := normal(2, 4, 4, 4)))
    apply, folded = jaxslim.fold(PreActivation(), variables, x)
    assert difference(PreActivation().apply(variables, x), apply(folded, x)) < 1e-6
    assert [name for name in primitives(apply, folded, x) if name in ("mul", "sub", "rsqrt", "div")] == ["mul"]
    assert folded["params"]["BatchNorm_0"].keys() == {"scale", "bias"}
    gradient = jax.grad(lambda x: PreActivation().apply(variables, x).sum())(x)
    assert difference(gradient, jax.jit(jax.grad(lambda x: apply(folded, x).sum()))(x)) < 1e-5


LAYOUTS = {
    "a batch of one": lambda y, add: add(y[0], 0),
    "channels moved": lambda y, add: add(y.transpose(0, 2, 3, 1), 3),
    "a batch inside": lambda y, add: add(y.reshape(1, -1, 6, 4, 1, 5), 2),
    "several": lambda y, add: add(add(y[:, None], 2).transpose(2, 1, 0, 3, 4), 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_norm_behind_another_layout(name):
    """As Equinox has it, whose layers take one example."""

    def apply(variables, x):
        def add(y, axis):
            long = [6 if k == axis else 1 for k in range(y.ndim)]
            return y * variables["scale"].reshape(long) - variables["mean"].reshape(long)

        images = x[:1] if name == "a batch of one" else x
        return LAYOUTS[name](lax.conv(images, variables["kernel"], (1, 1), "SAME"), add)

    variables = {"kernel": normal(6, 2, 3, 3), "scale": normal(6, seed=2), "mean": normal(6, seed=3)}
    folded = jaxslim.fold(apply, variables, x := normal(3, 2, 4, 5))
    assert difference(apply(variables, x), folded.apply(folded.variables, x)) < 1e-6
    assert not {"mul", "sub"} & {*primitives(folded.apply, folded.variables, x)}
    assert folded.variables.keys() == {"kernel", "bias"}


def test_axes_that_are_merged_or_split_are_no_axes_of_the_kernel():
    def apply(variables, x):
        y = (x @ variables["kernel"]).reshape(-1, 2, 3) * variables["split"][None, None]
        return (x @ variables["kernel"]).reshape(1, -1) * variables["merged"][None] + y.sum()

    variables = {"kernel": normal(4, 6), "split": normal(3, seed=2), "merged": normal(12, seed=3)}
    folded = jaxslim.fold(apply, variables, x := normal(2, 4))
    assert difference(apply(variables, x), folded.apply(folded.variables, x)) < 1e-6


def test_nnx_modules_fold():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.norm(self.conv(x)))

    model, x = Model(nnx.Rngs(0)), normal(2, 4, 4, 3)
    model.norm.mean[...] = normal(8)
    apply, folded = jaxslim.fold(model, None, x)
    model.eval()
    assert difference(model(x), apply(folded, x)) < 1e-6
    assert [*map(np.size, jax.tree.leaves(folded))] == [8, 216]


def test_variables_of_another_network_are_refused(net):
    module, variables, images = net
    folded = jaxslim.fold(module, variables, images)
    with pytest.raises(jaxslim.InputError, match=r"The variables lack params/\w+/\w+; pass those that fold returned"):
        folded.apply({}, images)


@settings(max_examples=8)
@given(programs.programs(2))
def test_random_programs(program):
    variables, key, inputs = program.init(), program.key(), program.inputs()
    with jax.enable_x64(True):
        apply, folded = jaxslim.fold(program, variables, key, inputs)
        wanted, got = jax.jit(lambda *args: (program(variables, *args), apply(folded, *args)))(key, inputs)
        assert difference(wanted, got) < 1e-8
