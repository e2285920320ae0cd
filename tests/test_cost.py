"""Counts of parameters and multiply-accumulates against figures worked by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
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
    assert jaxslim.count(branched, weights, jax.ShapeDtypeStruct((2, 4), jnp.float32)) == (17, 2 * 16)


def test_a_loop_of_unknown_length_cannot_be_counted() -> None:
    def looped(w: Any, x: Any, body: Any) -> Any:
        return lax.while_loop(lambda x: x.sum() < 9, body, x)

    with pytest.raises(jaxslim.InputError, match="multiplies inside a while loop, whose rounds cannot be counted"):
        macs(lambda w, x: looped(w, x, lambda x: x @ w[0]), (4, 4), image=(2, 4))
    assert macs(lambda w, x: looped(w, x, jnp.tanh) @ w[0], (4, 5), image=(2, 4)) == 20


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
