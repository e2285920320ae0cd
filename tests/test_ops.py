"""The fast convolution: the results and derivatives of XLA's, and a program that the graph and JAX see as written."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxslim
from jaxslim import ops
from jaxslim.ops import forms, winograd

NUMBERS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
LAYOUTS = (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW"))
SAME = ((1, 1), (1, 1))


@pytest.fixture(scope="module", autouse=True)
def xla_as_it_is():
    """Commands, which other tests run in this process, have accelerated all convolutions."""
    ops.accelerate(False)


def lowered(function, *arrays, **options) -> str:
    return jax.jit(function).trace(*arrays).lower(**options).as_text()


@st.composite
def layers(draw):
    """A convolution of random shape, as the arguments of `lax.conv_general_dilated`, with its arrays."""
    pairs = st.tuples(st.sampled_from([1, 1, 2, 3]), st.sampled_from([1, 1, 2]))
    layout = draw(st.sampled_from(LAYOUTS))
    n, size = draw(st.sampled_from([1, 2, 8])), draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    window = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (2, 2), (4, 4), (5, 3)]))
    channels, groups = draw(st.sampled_from([(2, 1), (3, 1), (6, 1), (6, 6), (6, 2), (40, 4)]))
    features = channels if groups == channels else groups * draw(st.integers(1, 4))
    dilated, spread = draw(st.sampled_from([((1, 1), (1, 1))] * 3 + [((2, 1), (1, 1)), ((1, 1), (2, 3))]))
    strides = (1, 1) if spread != (1, 1) else draw(pairs)
    padding = draw(st.sampled_from(["SAME", "VALID", SAME, ((0, 2), (1, 0)), ((0, 1), (3, 0)), ((-1, 1), (0, -1))]))
    images, kernel = random((n, *size, channels), (*window, channels // groups, features))
    images = images.transpose(0, 3, 1, 2) if layout[0] == "NCHW" else images
    kernel = kernel.transpose(3, 2, 0, 1) if layout[1] == "OIHW" else kernel
    return images, kernel, (strides, padding, spread, dilated, layout, groups)


def random(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def padded_before(images, kernel, strides, padding, spread, dilated, layout, groups):
    """XLA's, padded beforehand, since its results on CPUs are wrong where padding is or becomes negative."""
    axes, taken = (tuple(map(layout[place].index, "HW")) for place in (0, 1))
    if isinstance(padding, str):
        sizes = [(images.shape[axis] - 1) * step + 1 for axis, step in zip(axes, spread, strict=True)]
        windows = [(kernel.shape[axis] - 1) * step + 1 for axis, step in zip(taken, dilated, strict=True)]
        padding = lax.padtype_to_pads(sizes, windows, strides, padding)
    around = [(0, 0, 0)] * 4
    for axis, pad, step in zip(axes, padding, spread, strict=True):
        around[axis] = (*pad, step - 1)
    images = lax.pad(images, np.float32(0), around)
    return lax.conv_general_dilated(images, kernel, strides, "VALID", (1, 1), dilated, layout, groups)


def plain(images, kernel):
    return lax.conv_general_dilated(images, kernel, (1, 1), SAME, None, None, NUMBERS)


def with_gradients(conv):
    def results(images, kernel):
        out, back = jax.vjp(conv, images, kernel)
        return out, *back(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    return results


def assert_close(got, expected, share=5e-5):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=share * max(1e-3, float(np.abs(other).max())))


@settings(max_examples=50)
@given(layers(), st.sampled_from([0, forms.MOVED]))
def test_values_and_gradients_are_those_of_xla(layer, moved):
    """Also where Winograd's algorithm would not pay."""
    images, kernel, options = layer
    try:
        shape = jax.eval_shape(lambda *arrays: lax.conv_general_dilated(*arrays, *options), images, kernel).shape
    except ValueError:  # the kernel is larger than the padded image
        shape = (0,)
    assume(0 not in shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "MOVED", moved)
        got = jax.jit(with_gradients(lambda *arrays: ops.conv(*arrays, *options)))(images, kernel)
    expected = jax.jit(with_gradients(lambda *arrays: padded_before(*arrays, *options)))(images, kernel)
    assert_close(got, expected)


@settings(max_examples=10)
@given(
    st.integers(1, 9), st.tuples(st.integers(1, 13), st.integers(1, 13)), st.sampled_from([winograd.F2, winograd.F4])
)
def test_winograd_in_portions(n, size, algorithm):
    """As many images as they may be, a portion holds few of them; tiles reach over the edges of the images."""
    arrays = random((n, *size, 3), (3, 3, 3, 5), (n, *size, 5))

    def results(images, kernel, gradient):
        return (
            winograd.convolve(images, kernel, SAME, algorithm),
            winograd.convolve(gradient, kernel[::-1, ::-1], SAME, algorithm, features_first=True),
            winograd.kernel_gradient(images, gradient, SAME, algorithm),
        )

    def plain(images, kernel, gradient):
        def conv(images, kernel):
            return lax.conv_general_dilated(images, kernel, (1, 1), SAME, None, None, NUMBERS)

        outputs, back = jax.vjp(conv, images, kernel)
        return outputs, *back(gradient)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "PORTION_BYTES", 3 * 36 * 5 * 4 * 9)
        got, expected = jax.jit(lambda *arrays: (results(*arrays), plain(*arrays)))(*arrays)
    assert_close(got, expected, 1e-5 if algorithm is winograd.F2 else 5e-5)


def test_the_error_of_winograd_and_how_to_turn_it_off():
    """F(4x4) stays within 5e-5 of the largest result; `precision="highest"` within 1e-6, as all else."""
    images, kernel = random((8, 16, 16, 128), (3, 3, 128, 128))
    padded = np.pad(images.astype(np.float64), ((0, 0), *SAME, (0, 0)))
    exact = sum(
        padded[:, row : row + 16, column : column + 16] @ kernel[row, column] for row, column in np.ndindex(3, 3)
    )
    errors = {}
    for precision in (None, "highest"):
        got = ops.conv(images, kernel, (1, 1), SAME, None, None, NUMBERS, precision=precision)
        errors[precision] = float(np.abs(got - exact).max() / np.abs(exact).max())
    assert 1e-6 < errors[None] < 5e-5
    assert errors["highest"] < 2e-6


@pytest.mark.parametrize(
    ("size", "channels", "features", "batch", "kind"),
    [
        (32, 64, 64, 64, "F4"),
        (8, 256, 256, 64, "F4"),
        (8, 249, 208, 64, "F4"),
        (4, 512, 512, 256, "F4"),
        (4, 512, 512, 64, "F2"),
        (2, 512, 512, 64, None),
        (32, 3, 64, 64, None),
        (32, 16, 16, 64, None),
        (4, 512, 512, 1, None),
    ],
)
def test_the_choice_by_shape_and_batch(size, channels, features, batch, kind):
    """As measured on two cores; see the comments beside the thresholds."""
    images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, features), jnp.float32)
    form = forms.forward(images, kernel, ops.layer.Layer((3, 3), padding=SAME), exact=False)
    chosen = getattr(form, "keywords", {}).get("by")
    assert chosen is {"F4": winograd.F4, "F2": winograd.F2, None: None}[kind]


def test_derivatives_of_all_kinds():
    """Forward mode, reverse mode over forward mode, and one gradient for each example."""
    images, kernel, tangent = random((4, 2, 2, 3), (3, 3, 3, 4), (3, 3, 3, 4))

    def loss(conv, kernel, images):
        return jnp.sum(jnp.sin(conv(images, kernel, (1, 1), SAME, dimension_numbers=NUMBERS)))

    def found(conv):
        def products(kernel):
            return jax.jvp(lambda kernel: loss(conv, kernel, images), (kernel,), (tangent,))[1]

        of_each = jax.vmap(lambda one: jax.grad(lambda kernel: loss(conv, kernel, one[None]))(kernel))
        return products(kernel), jax.grad(products)(kernel), of_each(images)

    assert_close(found(ops.conv), found(lax.conv_general_dilated), 1e-5)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("size", [2, 6])
def test_a_batch_of_any_size(window, groups, size):
    """In exported programs the batch has no number: values and gradients are those of a known batch."""
    images, kernel = random((3, size, size, 4), (window, window, 4 // groups, 8 if groups < 4 else 4))
    both = with_gradients(
        lambda *arrays: ops.conv(*arrays, (1, 1), "SAME", dimension_numbers=NUMBERS, feature_group_count=groups)
    )
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = (
        jax.ShapeDtypeStruct((batch, *images.shape[1:]), jnp.float32),
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
    )
    assert_close(jax.export.export(jax.jit(both))(*shapes).call(images, kernel), jax.jit(both)(images, kernel), 1e-5)


@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize(("size", "expected"), [(2, False), (4, False), (8, True)])
def test_small_maps_become_matrix_products(n, size, expected):
    module = nn.Conv(4, (3, 3), conv_general_dilated=ops.conv)
    images = jnp.ones((n, size, size, 3))
    variables = module.init(jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"bias": (4,), "kernel": (3, 3, 3, 4)}
    assert ("stablehlo.convolution" in lowered(module.apply, variables, images)) is expected


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_program_holds_a_convolution(size, groups):
    """What reads programs sees JAX's convolution: the graph, costs, exports. Costs count padded zeros too."""
    module = nn.Conv(4, (3, 3), use_bias=False, conv_general_dilated=ops.conv, feature_group_count=groups)
    images = jnp.ones((8, size, size, 4))
    variables = module.init(jax.random.key(0), images)
    assert jaxslim.count(module.apply, variables, images).macs == 9 * size**2 * 4 * 4 // groups
    assert [eqn.primitive for eqn in jax.make_jaxpr(module.apply)(variables, images).eqns] == [
        lax.conv_general_dilated_p
    ]


def test_other_platforms_get_the_convolution():
    """On them nothing is ours; a program for several platforms holds both."""
    images, kernel = random((8, 2, 2, 3), (3, 3, 3, 4))

    def conv(images, kernel):
        return ops.conv(images, kernel, (1, 1), SAME, dimension_numbers=NUMBERS)

    for platform in ("cuda", "tpu"):
        texts = [lowered(both, images, kernel, lowering_platforms=(platform,)) for both in (conv, plain)]
        assert [text.count("stablehlo.convolution") for text in texts] == [1, 1]
        assert "stablehlo.dot" not in texts[0]
    several = jax.export.export(jax.jit(conv), platforms=("cpu", "cuda"))(images, kernel).mlir_module()
    assert "stablehlo.convolution" in several
    assert "stablehlo.dot" in several


@pytest.mark.parametrize(
    "options",
    [{"kernel_dilation": 2}, {"kernel_size": (3,)}, {"kernel_size": (3, 3, 3)}],
)
def test_convolutions_of_other_kinds_are_left_to_xla(options):
    options = {"kernel_size": (3, 3), **options}
    module, plain = (nn.Conv(6, conv_general_dilated=conv, **options) for conv in (ops.conv, None))
    images = jnp.ones((2, *(4,) * len(options["kernel_size"]), 3))
    variables = module.init(jax.random.key(0), images)
    assert lowered(module.apply, variables, images) == lowered(plain.apply, variables, images)


@pytest.mark.parametrize("n", [1, forms.FEW_IMAGES])
@pytest.mark.parametrize("groups", [1, 4])
def test_half_precision_is_added_up_in_full(n, groups):
    half = [jnp.asarray(array, jnp.bfloat16) for array in random((n, 2, 2, 64), (3, 3, 64 // groups, 4))]
    options = {"dimension_numbers": NUMBERS, "feature_group_count": groups}
    got = ops.conv(*half, (1, 1), "SAME", **options)
    exact = lax.conv_general_dilated(*(array.astype(jnp.float32) for array in half), (1, 1), "SAME", **options)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-8, atol=2**-8)


def test_a_type_of_results_and_empty_outputs():
    images, kernel = jnp.ones((2, 2, 2, 3)), jnp.ones((3, 3, 3, 4))
    assert ops.conv(images, kernel, (1, 1), "VALID", dimension_numbers=NUMBERS).shape == (2, 0, 0, 4)
    assert ops.conv(images[:0], kernel, (1, 1), "SAME", dimension_numbers=NUMBERS).shape == (0, 2, 2, 4)
    half = (images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    options = {"dimension_numbers": NUMBERS, "preferred_element_type": jnp.float32}
    assert ops.conv(*half, (1, 1), "SAME", **options).dtype == jnp.float32


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxslim import ops
from jaxslim.ops import depthwise, forms, winograd

forms.MOVED, winograd.PORTION_BYTES, depthwise.PORTION_BYTES = 0, 2**16, 2**12
numbers = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
kernels = [np.random.default_rng(1).normal(size=(3, 3, n, 128)).astype(np.float32) for n in (128, 1, 16)]

def loss(conv, images, *kernels):
    for kernel in kernels:
        groups = 128 // kernel.shape[2]
        images = conv(images, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)
    return jnp.sin(images / 100).sum()

def found(conv, way, images):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit if way == "explicit" else AxisType.Auto,))
    function = lambda *arrays: loss(conv, *arrays)
    if way == "shard_map":
        whole = lambda *arrays: lax.psum(loss(conv, *arrays), "data")
        function = jax.shard_map(whole, mesh=mesh, in_specs=(P("data"), P(), P(), P()), out_specs=P())
    step = jax.jit(jax.grad(function, argnums=(0, 1, 2, 3)))
    with jax.set_mesh(mesh):
        specs = [P("data"), *[P()] * len(kernels)]
        arrays = [jax.device_put(one, NamedSharding(mesh, spec)) for one, spec in zip((images, *kernels), specs)]
        return step.lower(*arrays).as_text(), step(*arrays)

for way in ("auto", "explicit", "shard_map"):
    for size in (2, 8):
        images = np.random.default_rng(0).normal(size=(16, size, size, 128)).astype(np.float32)
        (text, got), (_, expected) = (found(conv, way, images) for conv in (ops.conv, lax.conv_general_dilated))
        for one, other in zip(got, expected):
            np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))
        print(way, size, "stablehlo.convolution" in text, "stablehlo.while" in text)
"""


def test_several_devices():
    """A dense, a depthwise and a grouped layer: XLA divides convolutions among devices, but no portions of a batch.

    Inside `shard_map` each device is alone.
    """
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {line.rsplit(" ", 2)[0]: line.split()[2:] for line in done.stdout.splitlines()}
    assert found == {
        "auto 2": ["True", "False"],
        "auto 8": ["True", "False"],
        "explicit 2": ["True", "False"],
        "explicit 8": ["True", "False"],
        "shard_map 2": ["False", "True"],
        "shard_map 8": ["False", "True"],
    }


class Plain(nn.Module):
    """A network that knows nothing of jaxslim, with an inverted residual block of MobileNetV2."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), 2)(x))
        y = nn.relu(nn.Conv(16, (1, 1), use_bias=False)(x))
        y = nn.relu(nn.Conv(16, (3, 3), feature_group_count=16)(y))
        x = x + nn.Conv(8, (1, 1))(y)
        return nn.ConvTranspose(3, (2, 2), (2, 2))(x).mean((1, 2))


def test_accelerate_speeds_up_any_network_without_a_change():
    module = Plain()
    (images,) = random((2, 8, 8, 3))
    variables = module.init(jax.random.key(0), images)

    def loss(variables):
        return jnp.square(module.apply(variables, images)).sum()

    def step():
        """A new function each time: JAX keeps what it compiled of the old ones."""
        return jax.jit(lambda variables: jax.value_and_grad(loss)(variables))

    def convolutions():
        return lowered(step(), variables).count("stablehlo.convolution")

    ops.accelerate(False)
    before, plain = convolutions(), step()(variables)
    try:
        ops.accelerate()
        fewer, fast = convolutions(), step()(variables)
        with ops.as_written():
            assert convolutions() == before
    finally:
        ops.accelerate(False)
    assert (before, convolutions()) == (14, 14)
    assert fewer < 4
    assert_close(jax.tree.leaves(fast), jax.tree.leaves(plain), 1e-5)


def test_the_graph_sees_through_it():
    module = jaxslim.VGG((4, "M", 5, "M", 6), num_classes=2)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
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
