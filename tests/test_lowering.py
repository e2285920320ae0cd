"""The lowering of convolutions: the results of `lax.conv_general_dilated`, and a program that the graph follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import jaxslim
from jaxslim import lowering

NUMBERS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def primitives(jaxpr) -> set[str]:
    return {eqn.primitive.name for eqn in jaxpr.eqns}


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(["SAME", "VALID", ((1, 1), (1, 1)), ((0, 2), (1, 0))]),
)
def test_values_and_gradients_are_those_of_lax(size, window, strides, padding):
    if padding == "VALID" and min(np.subtract(size, window)) < 0:
        return
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(*window, 3, 4)).astype(np.float32)

    def run(conv, images, kernel):
        return conv(images, kernel, strides, padding, dimension_numbers=NUMBERS)

    def both(conv):
        out, back = jax.vjp(lambda *args: run(conv, *args), images, kernel)
        return out, *back(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    for mine, theirs in zip(both(lowering.conv), both(lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [(2, "dot_general"), (4, "dot_general"), (8, "conv_general_dilated")])
def test_small_maps_become_a_matrix_product(size, expected):
    module = nn.Conv(4, (3, 3), conv_general_dilated=lowering.conv)
    images = jnp.ones((1, size, size, 3))
    variables = module.init(jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"bias": (4,), "kernel": (3, 3, 3, 4)}
    assert expected in primitives(jax.make_jaxpr(module.apply)(variables, images))


@pytest.mark.parametrize("options", [{"feature_group_count": 3}, {"kernel_dilation": 2}, {"kernel_size": (1, 1)}])
def test_what_it_does_not_know_is_left_to_lax(options):
    options = {"kernel_size": (3, 3), **options}
    module = nn.Conv(6, conv_general_dilated=lowering.conv, **options)
    images = jnp.ones((1, 4, 4, 3))
    variables = module.init(jax.random.key(0), images)
    assert "conv_general_dilated" in primitives(jax.make_jaxpr(module.apply)(variables, images))


def test_the_graph_sees_through_it():
    module = jaxslim.VGG((4, "M", 5, "M", 6), num_classes=2)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert "dot_general" in str(jax.make_jaxpr(module.apply)(variables, images))
    graph = jaxslim.trace(module.apply, variables, images)
    assert (graph.num_units, graph.opaque) == (4 + 5 + 6, ())
    assert graph.exact.all()
