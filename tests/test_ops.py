"""The fast convolution and BatchNorm: the results of XLA and Flax, and a program that the graph follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxslim
from jaxslim import ops

NUMBERS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def compiles_convolution(module, variables, images) -> bool:
    return "stablehlo.convolution" in jax.jit(module.apply).lower(variables, images).as_text()


@given(
    st.sampled_from([2, ops.FEW_IMAGES]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(["SAME", "VALID", ((1, 1), (1, 1)), ((0, 2), (1, 0)), ((0, 1), (3, 0))]),
)
def test_values_and_gradients_are_those_of_lax(n, size, window, strides, padding):
    if padding == "VALID" and min(np.subtract(size, window)) < 0:
        return
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n, *size, 3)).astype(np.float32)
    kernel = rng.normal(size=(*window, 3, 4)).astype(np.float32)

    def mine(images, kernel):
        return ops.conv(images, kernel, strides, padding, dimension_numbers=NUMBERS)

    def plain(images, kernel):
        """Pads beforehand, because XLA's gradients on CPUs are wrong where padding reaches further than the kernel."""
        pads = lax.padtype_to_pads(size, window, strides, padding) if isinstance(padding, str) else padding
        padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
        return lax.conv_general_dilated(padded, kernel, strides, "VALID", dimension_numbers=NUMBERS)

    def both(conv, images, kernel):
        out, back = jax.vjp(conv, images, kernel)
        return out, *back(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    reaches_too_far = max(size) > ops.SMALL_MAP and padding == ((0, 1), (3, 0))
    results = jax.jit(lambda *arrays: (both(mine, *arrays), both(plain, *arrays)))(images, kernel)
    for number, (got, expected) in enumerate(zip(*results, strict=True)):
        if not (number and reaches_too_far):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize(("size", "expected"), [(2, False), (4, False), (8, True)])
def test_small_maps_become_matrix_products(n, size, expected):
    module = nn.Conv(4, (3, 3), conv_general_dilated=ops.conv)
    images = jnp.ones((n, size, size, 3))
    variables = module.init(jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"bias": (4,), "kernel": (3, 3, 3, 4)}
    assert compiles_convolution(module, variables, images) is expected


@pytest.mark.parametrize("size", [2, 4, 8])
def test_costs_are_those_of_the_convolution(size):
    """`count` counts the convolution on every platform, although the products leave out padded zeros."""
    module = nn.Conv(4, (3, 3), use_bias=False, conv_general_dilated=ops.conv)
    images = jnp.ones((8, size, size, 3))
    variables = module.init(jax.random.key(0), images)
    assert jaxslim.count(module.apply, variables, images).macs == 9 * size**2 * 3 * 4


def test_another_platform_gets_the_convolution():
    module = nn.Conv(4, (3, 3), conv_general_dilated=ops.conv)
    images = jnp.ones((8, 2, 2, 3))
    variables = module.init(jax.random.key(0), images)
    lowered = jax.jit(module.apply).trace(variables, images).lower(lowering_platforms=("cuda",))
    assert "stablehlo.convolution" in lowered.as_text()
    assert "stablehlo.dot" not in lowered.as_text()


@pytest.mark.parametrize("options", [{"feature_group_count": 3}, {"kernel_dilation": 2}, {"kernel_size": (1, 1)}])
def test_convolutions_of_other_kinds_are_left_to_lax(options):
    options = {"kernel_size": (3, 3), **options}
    module = nn.Conv(6, conv_general_dilated=ops.conv, **options)
    images = jnp.ones((1, 4, 4, 3))
    variables = module.init(jax.random.key(0), images)
    assert compiles_convolution(module, variables, images)


@pytest.mark.parametrize("n", [1, ops.FEW_IMAGES])
def test_half_precision_is_added_up_in_full(n):
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(n, 2, 2, 64)), rng.normal(size=(3, 3, 64, 4))
    half = [jnp.asarray(array, jnp.bfloat16) for array in (images, kernel)]
    got = ops.conv(*half, (1, 1), "SAME", dimension_numbers=NUMBERS)
    exact = lax.conv_general_dilated(
        *(array.astype(jnp.float32) for array in half), (1, 1), "SAME", dimension_numbers=NUMBERS
    )
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-8, atol=2**-8)


def test_other_options_and_empty_outputs_are_left_to_lax():
    images, kernel = jnp.ones((2, 2, 2, 3)), jnp.ones((3, 3, 3, 4))
    assert ops.conv(images, kernel, (1, 1), "VALID", dimension_numbers=NUMBERS).shape == (2, 0, 0, 4)
    half = (images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    options = {"dimension_numbers": NUMBERS, "preferred_element_type": jnp.float32}
    assert ops.conv(*half, (1, 1), "SAME", **options).dtype == jnp.float32


def test_compiler_options_are_ones_that_xla_takes(monkeypatch):
    jax.jit(lambda x: x + 1, compiler_options=ops.compiler_options())(1.0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ops.compiler_options.__wrapped__() == {}


def test_the_graph_sees_through_it():
    module = jaxslim.VGG((4, "M", 5, "M", 6), num_classes=2)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert "dot_general" in str(jax.make_jaxpr(module.apply)(variables, images))
    graph = jaxslim.trace(module.apply, variables, images)
    assert (graph.num_units, graph.opaque) == (4 + 5 + 6, ())
    assert graph.exact.all()


FLAX = {"use_fast_variance": False, "momentum": 0.9, "epsilon": 1e-4}


def trained(module, variables, x, **options):
    """Output, new statistics, and the gradients of the parameters and of x."""

    def loss(params, x):
        out, updated = module.apply({**variables, "params": params}, x, mutable=["batch_stats"], **options)
        return jnp.sum(jnp.sin(3 * out.astype(jnp.float32))), (out, updated)

    gradients, rest = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return gradients, rest


@settings(max_examples=12)
@given(
    st.integers(2, 4),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(1, 5),
    st.floats(-3, 3),
)
def test_batch_norm_trains_as_flax_does(n, size, channels, shift):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(shift, 2, (n, *size, channels)), jnp.float32)
    options = {"use_running_average": False}
    theirs, mine = nn.BatchNorm(**FLAX), ops.BatchNorm(**FLAX)
    start = theirs.init(jax.random.key(0), x, **options)
    assert jax.tree.all(jax.tree.map(np.array_equal, start, mine.init(jax.random.key(0), x, **options)))
    params = {name: jnp.asarray(rng.normal(1, 0.5, channels), jnp.float32) for name in ("scale", "bias")}
    variables = {"params": params, "batch_stats": start["batch_stats"]}

    @jax.jit
    def results(variables, x):
        return [jax.tree.leaves(trained(module, variables, x, **options)) for module in (mine, theirs)]

    for a, b in zip(*results(variables, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 * max(1, float(jnp.abs(b).max())))
    np.testing.assert_array_equal(*(m.apply(variables, x, use_running_average=True) for m in (mine, theirs)))


@pytest.mark.parametrize(
    "options",
    [{"dtype": jnp.bfloat16}, {"axis": 1}, {"use_scale": False}, {"mask": True}],
)
def test_batch_norms_of_other_kinds_are_left_to_flax(options):
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2)) + 1
    options = dict(options)
    call = {"use_running_average": False}
    if options.pop("mask", False):
        call["mask"] = jnp.arange(4).reshape(4, 1, 1, 1) < 2
    mine, theirs = (kind(**{**FLAX, **options}) for kind in (ops.BatchNorm, nn.BatchNorm))
    variables = theirs.init(jax.random.key(0), x, **call)
    for a, b in zip(*(jax.tree.leaves(trained(m, variables, x, **call)) for m in (mine, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_statistics_pass_no_gradient_on():
    """Flax's do. No loss depends on running statistics, so the hand-written gradient leaves them out."""
    module = ops.BatchNorm(**FLAX, use_running_average=False)
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    variables = module.init(jax.random.key(0), x)

    def statistics(x):
        return sum(map(jnp.sum, jax.tree.leaves(module.apply(variables, x, mutable=["batch_stats"])[1])))

    assert not jax.grad(statistics)(x).any()
