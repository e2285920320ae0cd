"""Counts of parameters and multiply-accumulates against figures worked by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from networks import NHWC, Network, networks

import jaxslim

REFERENCE = {  # ratios of the reference's table: widths, parameters, multiply-accumulates
    0.0: ("64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512", 20035018, 398136320),
    0.1: ("62 64 M 128 128 M 256 256 253 248 M 444 420 421 460 M 468 477 461 407", 15922908, 351496262),
    0.2: ("61 64 M 128 128 M 256 256 251 242 M 376 325 346 403 M 419 433 414 301", 12352671, 313435138),
    0.3: ("59 64 M 128 128 M 256 256 249 234 M 289 239 265 349 M 372 387 358 219", 9298804, 279746094),
    0.4: ("56 64 M 128 128 M 256 256 249 227 M 224 144 183 297 M 316 344 302 128", 6810148, 253111520),
    0.5: ("54 64 M 128 128 M 256 256 249 226 M 202 118 141 238 M 188 214 198 91", 4610516, 238188646),
    0.6: ("51 64 M 128 128 M 256 256 249 224 M 190 95 115 136 M 71 63 84 91", 3245835, 227109250),
    0.7: ("49 64 M 128 128 M 256 256 249 208 M 116 38 18 8 M 14 9 16 94", 2460793, 214348324),
}


def reference_widths(ratio: float) -> tuple[int | str, ...]:
    return tuple(width if width == "M" else int(width) for width in REFERENCE[ratio][0].split())


@pytest.mark.parametrize("ratio", REFERENCE)
def test_reference_table(ratio: float) -> None:
    _, params, macs = REFERENCE[ratio]
    module = jaxslim.VGG(reference_widths(ratio))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert jaxslim.count(module.apply, variables, images) == (params, macs)


def test_vgg19_has_the_widths_of_the_reference() -> None:
    assert tuple(jaxslim.vgg19().widths) == reference_widths(0.0)


def macs(apply: Any, *shapes: tuple[int, ...], image: tuple[int, ...] = (7, 6, 6, 4)) -> int:
    weights = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jaxslim.count(apply, weights, jax.ShapeDtypeStruct(image, jnp.float32)).macs


def conv(x: Any, kernel: Any, groups: int = 1, **how: Any) -> Any:
    how = {"window_strides": (1, 1), "padding": "SAME", **how}
    return lax.conv_general_dilated(x, kernel, dimension_numbers=NHWC, feature_group_count=groups, **how)


def test_convolutions() -> None:
    assert macs(lambda w, x: conv(x, w[0]), (3, 3, 4, 5)) == 36 * 9 * 4 * 5
    assert macs(lambda w, x: conv(x, w[0], padding="VALID"), (3, 3, 4, 5)) == 16 * 9 * 4 * 5
    assert macs(lambda w, x: conv(x, w[0], window_strides=(2, 3)), (3, 3, 4, 5)) == 3 * 2 * 9 * 4 * 5
    assert macs(lambda w, x: conv(x, w[0], groups=4), (3, 3, 1, 8)) == 36 * 9 * 8
    assert macs(lambda w, x: conv(x, w[0], groups=2), (3, 3, 2, 6)) == 36 * 9 * 2 * 6
    assert macs(lambda w, x: conv(x, w[0], rhs_dilation=(2, 2)), (3, 3, 4, 5)) == 36 * 9 * 4 * 5
    first = ("NCHW", "OIHW", "NCHW")
    plain = lambda w, x: lax.conv_general_dilated(x, w[0], (1, 1), "SAME", dimension_numbers=first)  # noqa: E731
    assert macs(plain, (5, 4, 1, 3), image=(2, 4, 6, 6)) == 36 * 3 * 4 * 5


def test_transposed_convolutions() -> None:
    """Each pixel meets each element of the kernel once, whatever the stride; a convolution makes the way back."""

    def transposed(x: Any, kernel: Any, stride: int, padding: Any) -> Any:
        return lax.conv_transpose(x, kernel, (stride, stride), padding)

    for stride, padding in ((1, "SAME"), (2, "SAME"), (3, "SAME"), (1, "VALID"), (2, "VALID"), (3, "VALID")):
        apply = lambda w, x, s=stride, p=padding: transposed(x, w[0], s, p)  # noqa: E731
        assert macs(apply, (3, 3, 4, 5)) == 36 * 9 * 4 * 5
        assert macs(apply, (4, 4, 4, 5), image=(2, 1, 1, 4)) == 16 * 4 * 5
    dilated = lambda w, x: conv(x, w[0], lhs_dilation=(2, 2), padding=((0, 0), (0, 0)))  # noqa: E731
    # 11 x 11 with the zeros between pixels; 9 positions, of which taps 0 and 2 meet pixels at 5, tap 1 at 4.
    assert macs(dilated, (3, 3, 4, 5)) == (5 + 4 + 5) ** 2 * 4 * 5
    image = jax.ShapeDtypeStruct((7, 6, 6, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 5), jnp.float32)
    loss = lambda image, kernel: conv(image, kernel, window_strides=(2, 2)).sum()  # noqa: E731
    backward = jaxslim.count(lambda kernel, image: jax.grad(loss)(image, kernel), kernel, image)
    assert backward.macs == 9 * 9 * 4 * 5 + 9 * 9 * 4 * 5


def flops(f: Any, *shapes: tuple[int, ...]) -> float:
    """What XLA counts for the compiled program."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(f).lower(*arrays).compile().cost_analysis().get("flops", 0.0)


_axis = st.fixed_dictionaries(
    {
        "pixels": st.integers(5, 8),
        "taps": st.integers(1, 3),
        "stride": st.integers(1, 3),
        "between": st.integers(1, 3),
        "reach": st.integers(1, 2),
        "padding": st.sampled_from([(0, 0)] * 3 + [(1, 1), (2, 0)]),
    }
)


@settings(max_examples=15)
@given(st.lists(_axis, min_size=1, max_size=2), st.sampled_from([(1, 1), (3, 1), (1, 2)]))
def test_convolutions_are_counted_as_xla_does_but_for_padding(axes: Any, groups: tuple[int, int]) -> None:
    """XLA leaves out products with padding. We count them, as papers do: the kernel is applied at every position."""
    features, batches = groups
    column = {name: [axis[name] for axis in axes] for name in axes[0]}

    def apply(kernel: Any, image: Any) -> Any:
        return lax.conv_general_dilated(
            image,
            kernel,
            column["stride"],
            column["padding"],
            column["between"],
            column["reach"],
            feature_group_count=features,
            batch_group_count=batches,
        )

    image, kernel = (batches, 2 * features, *column["pixels"]), (2 * features * batches, 2, *column["taps"])
    ours = 2 * macs_of(apply, kernel, image)
    theirs = flops(apply, kernel, image)
    if any(map(any, column["padding"])):
        assert ours >= theirs
    else:
        assert ours == theirs


@settings(max_examples=10)
@given(st.lists(_axis, min_size=1, max_size=2))
def test_padding_counts_as_pixels_do(axes: Any) -> None:
    kernel, image = (3, 2, *(axis["taps"] for axis in axes)), (1, 2, *(axis["pixels"] for axis in axes))
    padding = [(axis["taps"] // 2, (axis["taps"] - 1) // 2) for axis in axes]
    stride = [axis["stride"] for axis in axes]
    padded = (*image[:2], *(n + sum(both) for n, both in zip(image[2:], padding, strict=True)))
    ours = macs_of(lambda w, x: lax.conv_general_dilated(x, w, stride, padding), kernel, image)
    assert 2 * ours == flops(lambda w, x: lax.conv_general_dilated(x, w, stride, "VALID"), kernel, padded)


def macs_of(apply: Any, weight: tuple[int, ...], image: tuple[int, ...]) -> int:
    """For the image as it is: a second input has another leading axis."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (weight, image, (image[0] + 1,))]
    return jaxslim.count(lambda w, x, _: apply(w, x), *arrays).macs


@settings(max_examples=15)
@given(st.lists(st.integers(2, 4), min_size=3, max_size=3), st.permutations(range(3)), st.permutations(range(3)))
def test_products_are_counted_as_xla_does(lengths: list[int], left: list[int], right: list[int]) -> None:
    """One axis of each side is contracted, one goes through both, and one is its own."""
    batch, inner, mine = lengths
    one, other = "bim", "bin"
    expression = f"{''.join(one[k] for k in left)},{''.join(other[k] for k in right)}->bmn"
    shapes = tuple((batch, inner, mine)[k] for k in left), tuple((batch, inner, 5)[k] for k in right)
    f = lambda x, y: jnp.einsum(expression, x, y)  # noqa: E731
    assert 2 * macs_of(f, *shapes) == flops(f, *shapes) == 2 * batch * inner * mine * 5


def test_ragged_and_scaled_products() -> None:
    """Each row meets the matrix of its own group alone."""
    rows, matrices, sizes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((6, 3), (2, 3, 4), (2,)))
    sizes = jax.ShapeDtypeStruct((2,), jnp.int32)
    assert jaxslim.count(lambda w, x, n: lax.ragged_dot(x, w, n), matrices, rows, sizes).macs == 6 * 3 * 4
    columns = jax.ShapeDtypeStruct((6, 4), jnp.float32)
    by_group = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    gradient = lambda w, x, n: lax.ragged_dot_general(x, w, n, by_group)  # noqa: E731
    assert jaxslim.count(gradient, columns, rows, sizes).macs == 6 * 3 * 4
    eighths = [jax.ShapeDtypeStruct(shape, jnp.float8_e4m3fn) for shape in ((4, 32), (32, 5))]
    scales = [jax.ShapeDtypeStruct(shape, jnp.float8_e8m0fnu) for shape in ((4, 1), (1, 5))]
    scaled = lambda w, x, s, t: lax.scaled_dot(x, w, lhs_scale=s, rhs_scale=t)  # noqa: E731
    assert jaxslim.count(scaled, eighths[1], eighths[0], *scales).macs == 4 * 32 * 5


def test_matrix_products() -> None:
    assert macs(lambda w, x: x @ w[0], (4, 5), image=(9, 4)) == 4 * 5
    assert macs(lambda w, x: jnp.einsum("bhwc,bijc->bhwij", x, x)) == 36 * 36 * 4
    assert macs(lambda w, x: jnp.einsum("bhwc,chd->bwd", x, w[0]), (4, 6, 5)) == 6 * 5 * 4 * 6
    assert macs(lambda w, x: x * 2 + jnp.exp(x)) == 0


def test_programs_inside_programs() -> None:
    square = ((3, 4, 4),)

    def scanned(w: Any, x: Any) -> Any:
        return lax.scan(lambda x, w: (x @ w, None), x, w[0])[0]

    assert macs(scanned, *square, image=(2, 4)) == 3 * 16
    assert macs(lambda w, x: lax.scan(lambda x, _: (scanned(w, x), None), x, None, 5)[0], *square, image=(2, 4)) == 240
    assert macs(lambda w, x: lax.fori_loop(0, 6, lambda i, x: x @ w[0][0], x), *square, image=(2, 4)) == 6 * 16

    def with_jvp(f: Any) -> Any:
        f = jax.custom_jvp(f)
        f.defjvp(lambda primals, tangents: (f(*primals), f(*primals)))
        return f

    def with_vjp(f: Any) -> Any:
        f = jax.custom_vjp(f)
        f.defvjp(lambda *args: (f(*args), None), lambda *_: None)
        return f

    for wrap in (jax.jit, jax.checkpoint, with_jvp, with_vjp):
        assert macs(lambda w, x, wrap=wrap: wrap(lambda w, x: x @ w)(w[0][0], x), *square, image=(2, 4)) == 16


def test_a_branch_costs_what_the_dearest_does() -> None:
    def branched(w: Any, x: Any) -> Any:
        return lax.switch(w[1], [lambda x: x @ w[0], lambda x: x @ w[0] @ w[0], lambda x: x], x)

    weights = [jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)]
    assert jaxslim.count(branched, weights, jax.ShapeDtypeStruct((2, 4), jnp.float32)) == (16, 2 * 16)


def test_a_loop_of_unknown_length_cannot_be_counted() -> None:
    def looped(w: Any, x: Any, body: Any) -> Any:
        return lax.while_loop(lambda x: x.sum() < 9, body, x)

    with pytest.raises(jaxslim.InputError, match="multiplies inside a while loop, whose rounds cannot be counted"):
        macs(lambda w, x: looped(w, x, lambda x: x @ w[0]), (4, 4), image=(2, 4))
    assert macs(lambda w, x: looped(w, x, jnp.tanh) @ w[0], (4, 5), image=(2, 4)) == 20


def test_devices_are_added_up() -> None:
    mesh = AbstractMesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    parts = {"mesh": mesh, "in_specs": (P(None, "model"), P("data")), "out_specs": P("data", "model")}
    product = jax.shard_map(lambda w, x: x @ w, **parts)
    assert macs(lambda w, x: product(w[0], x), (4, 6), image=(8, 4)) == 4 * 6
    partly = jax.shard_map(lambda w, x: x @ w, **(parts | {"in_specs": (P(), P("data")), "out_specs": P("data")}))
    assert (
        macs(lambda w, x: partly(w[0], x), (4, 6), image=(8, 4)) == 2 * 4 * 6
    )  # by both halves of each row of devices
    data = {"in_specs": (P(), P("data")), "out_specs": P("data"), "axis_names": {"data"}}
    inner = jax.shard_map(lambda w, x: x @ w, **(parts | data))
    assert macs(lambda w, x: jax.jit(inner)(w[0], x), (4, 6), image=(8, 4)) == 4 * 6


def test_a_solver_costs_its_solution_alone() -> None:
    assert macs(lambda w, x: jnp.linalg.solve(w[0], x.T) @ x, (4, 4), image=(9, 4)) == 4 * 4
    solve = lambda w, x: lax.custom_linear_solve(lambda v: x @ v, x[0], lambda _, b: w[0] @ b)  # noqa: E731
    assert macs(solve, (4, 4), image=(4, 4)) == 16 // 4


def test_a_kernel_runs_once_for_each_cell_of_its_grid() -> None:
    def kernel(x: Any, w: Any, out: Any) -> None:
        out[...] = x[...] @ w[...]

    def apply(w: Any, x: Any) -> Any:
        rows = pl.BlockSpec((4, 6), lambda i: (i, 0))
        call = pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((8, 6), jnp.float32),
            grid=(2,),
            in_specs=[rows, pl.BlockSpec((6, 6), lambda i: (0, 0))],
            out_specs=rows,
            interpret=True,
        )
        return call(x.reshape(8, 6), w[0])

    assert macs(apply, (6, 6), image=(3, 16, 3)) == 8 * 6 * 6


def test_numbers_that_training_cannot_adjust_are_no_parameters() -> None:
    tree = {"w": np.ones((3, 2)), "step": np.arange(4), "key": jax.random.key(0), "rate": 0.5}
    assert jaxslim.count(lambda v, x: x @ v["w"], tree, np.ones((1, 3))) == (6 + 1, 6)


def test_running_statistics_are_no_parameters() -> None:
    leaf, images = jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((1, 3), jnp.float32)
    tree = {"params": {"a": leaf}, "batch_stats": {"b": leaf}}
    apply = lambda v, x: x * v["params"]["a"][None]  # noqa: E731
    assert jaxslim.count(apply, tree, images).params == 3
    assert jaxslim.count(apply, tree, images, trained="batch_stats").params == 3
    assert jaxslim.count(apply, tree, images, trained="weights").params == 6
    assert jaxslim.count(lambda v, x: x * v["a"][None], {"a": leaf, "b": leaf}, images).params == 6


def test_inputs_may_be_a_tree() -> None:
    inputs = {"tokens": jax.ShapeDtypeStruct((8, 5), jnp.int32), "image": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    apply = lambda w, x: jax.nn.one_hot(x["tokens"], 3).sum(1) @ w[0] + x["image"] @ w[1]  # noqa: E731
    weights = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 2), (4, 2))]
    assert jaxslim.count(apply, weights, inputs) == (6 + 8, 6 + 8)


def test_inputs_may_be_many_and_of_all_kinds() -> None:
    """Scalars and random keys, new or old, are no batch."""

    def apply(w: Any, images: Any, pair: Any, key: Any, old: Any, temperature: Any, scale: Any) -> Any:
        noise = jax.random.normal(key, (3,)) + jax.random.normal(old, (3,))
        return (images + pair[0]["shift"] + noise[None] * scale) @ w / temperature + pair[1][:, None]

    shift = {"shift": jax.ShapeDtypeStruct((8, 3), jnp.float32)}
    keys = (jax.random.key(0), jax.random.PRNGKey(0))
    inputs = (np.ones((8, 3)), (shift, np.arange(8)), *keys, jax.ShapeDtypeStruct((), jnp.float32), 2.0)
    assert jaxslim.count(apply, np.ones((3, 2)), *inputs) == (6, 6)
    assert jaxslim.count(lambda w: w @ w, np.ones((3, 3))) == (9, 27)


def test_inputs_with_other_leading_axes_are_counted_as_they_are() -> None:
    """The nodes and the edges of a graph: nothing says how many examples they are."""
    nodes, edges, ends = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 3), (7, 4), (7,)))
    ends = jax.ShapeDtypeStruct((7,), jnp.int32)
    apply = lambda w, x, e, to: (x @ w[0]).at[to].add(e @ w[1])  # noqa: E731
    assert jaxslim.count(apply, [np.ones((3, 2)), np.ones((4, 2))], nodes, edges, ends).macs == 5 * 6 + 7 * 8


def test_a_network_of_one_batch_size_is_counted_at_it() -> None:
    assert macs(lambda w, x: (x.reshape(8, 2, 2) @ w[0]).sum(), (2, 5), image=(8, 4)) == 2 * 2 * 5
    with pytest.raises(jaxslim.InputError, match="The network cannot be applied"):
        macs(lambda w, x: x @ w[0], (3, 5), image=(8, 4))


@settings(max_examples=15)
@given(networks(), st.integers(1, 9))
def test_count_is_for_one_image_and_of_shapes_only(network: Network, batch: int) -> None:
    variables = network.init()
    cost = jaxslim.count(network, variables, network.images(batch))
    assert cost == jaxslim.count(network, variables, network.images(1))
    described = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, variables))
    assert cost == jaxslim.count(network, described, network.images(1))
    assert cost.params == sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    assert cost.macs >= 16 * 27 * 4  # of the stem alone
