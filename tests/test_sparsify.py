"""L1 penalties against their formulas worked out by hand, and the masks that say which parameters they pull on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxslim
from jaxslim.slim.criteria.scales import scale_values


class Normed(nn.Module):
    """All kinds of norms, of which two are BatchNorms with a scale."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
        x = nn.GroupNorm(2)(nn.LayerNorm()(x))
        x = nn.BatchNorm(use_running_average=True, use_scale=False, name="bare")(x)
        return nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True, name="inner")])(x)


def variables() -> Any:
    shapes = jax.eval_shape(Normed().init, jax.random.key(0), jnp.ones((2, 5)))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


def scales(*values: float) -> Any:
    return {"bn": {"scale": jnp.array(values), "bias": jnp.ones(len(values))}, "w": jnp.full((2, 2), 3.0)}


MASK = {"bn": {"scale": True, "bias": False}, "w": False}


@given(hnp.arrays(np.float32, 6, elements=st.floats(-2, 2, width=32)), st.floats(0, 1))
def test_l1_adds_strength_times_sign_to_what_the_mask_names(scale: np.ndarray, strength: float) -> None:
    params = scales(*scale)
    grads = jax.tree.map(lambda p: 0.25 * jnp.ones_like(p), params)
    tx = jaxslim.l1_subgradient(strength, MASK)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["bn"]["scale"], 0.25 + strength * np.sign(scale), rtol=1e-6)
    np.testing.assert_array_equal(updates["bn"]["bias"], 0.25)
    np.testing.assert_array_equal(updates["w"], 0.25)


def test_l1_is_the_gradient_of_the_penalty() -> None:
    params = scales(0.5, -2.0, 1e-3)
    tx = jaxslim.l1_subgradient(1e-2, MASK)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    by_autodiff = jax.grad(lambda p: 1e-2 * jnp.abs(p["bn"]["scale"]).sum())(params)
    jax.tree.map(np.testing.assert_allclose, updates, by_autodiff)


def test_a_scale_at_zero_stays() -> None:
    params = scales(0.0, -0.0)
    tx = jaxslim.l1_subgradient(0.5, MASK)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(updates["bn"]["scale"], 0.0)


def test_mask_may_be_a_function_or_a_prefix() -> None:
    params = scales(1.0, -1.0)
    grads = jax.tree.map(jnp.zeros_like, params)
    tx = jaxslim.l1_subgradient(0.5, lambda p: jax.tree.map(lambda leaf: leaf.ndim == 1, p))
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["bn"]["scale"], [0.5, -0.5])
    np.testing.assert_array_equal(updates["bn"]["bias"], 0.5)
    tx = jaxslim.l1_subgradient(0.5, {"bn": True, "w": False})
    prefixed, _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, prefixed, updates)


def test_l1_comes_before_weight_decay_and_momentum() -> None:
    """Two steps of the reference's optimizer, written out: v = 0.9 v + (g + lambda sign(p) + decay p); p -= lr v."""
    strength, decay, rate = 1e-2, 1e-1, 0.5
    tx = optax.chain(
        jaxslim.l1_subgradient(strength, MASK), optax.add_decayed_weights(decay), optax.sgd(rate, momentum=0.9)
    )
    params = scales(0.7, -0.3)
    state = tx.init(params)
    expected, velocity = np.array([0.7, -0.3]), np.zeros(2)
    for step in range(2):
        grads = jax.tree.map(lambda p, g=step + 1.0: g * jnp.ones_like(p), params)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + (step + 1.0) + strength * np.sign(expected) + decay * expected
        expected = expected - rate * velocity
    np.testing.assert_allclose(params["bn"]["scale"], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_l1_keeps_the_type_of_the_updates(dtype: Any) -> None:
    params = scales(1.0, -1.0)
    for of_params in (dtype, jnp.float32):
        cast = jax.tree.map(lambda p, to=of_params: p.astype(to), params)
        grads = jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params)
        tx = jaxslim.l1_subgradient(0.5, MASK)
        updates, _ = tx.update(grads, tx.init(cast), cast)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
        np.testing.assert_array_equal(updates["bn"]["scale"].astype(np.float32), [0.5, -0.5])


def test_only_batch_norm_scales_are_picked() -> None:
    tree = variables()
    mask = jaxslim.bn_scale_mask(tree)
    assert jax.tree.structure(mask) == jax.tree.structure(tree["params"])
    picked = [jax.tree_util.keystr(path) for path, use in jax.tree_util.tree_leaves_with_path(mask) if use]
    assert picked == ["['BatchNorm_0']['scale']", "['inner']['scale']"]


def test_scores_are_absolute_scales_at_their_paths() -> None:
    tree = variables()
    tree["params"]["inner"]["scale"] = jnp.array([-0.5, 0.0, 2.0])
    scores = jaxslim.bn_scales(tree)
    found = {jax.tree_util.keystr(path): leaf.tolist() for path, leaf in jax.tree_util.tree_leaves_with_path(scores)}
    assert found == {
        "['params']['BatchNorm_0']['scale']": [1.0] * 4,
        "['params']['inner']['scale']": [0.5, 0.0, 2.0],
    }


def test_values_of_all_scales_lie_one_after_another() -> None:
    tree = variables()
    tree["params"]["inner"]["scale"] = jnp.array([-0.5, 0.0, 2.0])
    assert scale_values(tree).tolist() == [1.0] * 4 + [0.5, 0.0, 2.0]


def test_scores_need_a_batch_norm() -> None:
    tree = variables()
    for without in ({"params": tree["params"]}, {"params": {}, "batch_stats": tree["batch_stats"]}):
        with pytest.raises(jaxslim.InputError, match=r"hold no BatchNorm scale .*; pass both collections"):
            jaxslim.bn_scales(without)


@given(hnp.arrays(np.float32, 6, elements=st.floats(-2, 2, width=32)), st.floats(0, 2), st.floats(0, 1))
def test_proximal_l1_is_a_soft_threshold_after_the_step(scale: np.ndarray, strength: float, rate: float) -> None:
    params = scales(*scale)
    tx = optax.chain(optax.sgd(1.0), jaxslim.l1_proximal(strength, rate, MASK))
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.25), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    moved = scale - np.float32(0.25)
    expected = np.sign(moved) * np.maximum(np.abs(moved) - rate * strength, 0)
    np.testing.assert_allclose(after["bn"]["scale"], expected, atol=1e-6)
    np.testing.assert_allclose(after["bn"]["bias"], 0.75)
    np.testing.assert_allclose(after["w"], 2.75)


def test_proximal_l1_reaches_zero_and_stays_there() -> None:
    params = {"bn": {"scale": jnp.array([0.25, -0.035, 0.8])}}
    tx = optax.chain(optax.sgd(0.1), jaxslim.l1_proximal(0.2, 0.1, lambda tree: jax.tree.map(lambda _: True, tree)))
    state = tx.init(params)
    for _ in range(20):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert params["bn"]["scale"][:2].tolist() == [0, 0]
    np.testing.assert_allclose(params["bn"]["scale"][2], 0.4, rtol=1e-5)  # 20 steps of 0.02


def test_proximal_l1_follows_the_schedule() -> None:
    params = {"scale": jnp.ones(1)}
    tx = jaxslim.l1_proximal(1.0, lambda step: jnp.array([0.25, 0.125])[step], True)
    state = tx.init(params)
    for left in (0.75, 0.625):
        updates, state = tx.update({"scale": jnp.zeros(1)}, state, params)
        params = optax.apply_updates(params, updates)
        assert params["scale"].tolist() == [left]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_both_forms_of_l1_pull_as_hard(momentum: float) -> None:
    """Far from zero and without a loss, 400 steps move a scale equally far, but for the first steps of momentum."""
    moved = []
    for first, last in (
        ([jaxslim.l1_subgradient(1e-2, True)], []),
        ([], [jaxslim.l1_proximal(1e-2 / (1 - momentum), 0.1, True)]),
    ):
        tx = optax.chain(*first, optax.sgd(0.1, momentum), *last)
        params = {"scale": jnp.full(1, 10.0)}
        state = tx.init(params)
        for _ in range(400):
            updates, state = tx.update({"scale": jnp.zeros(1)}, state, params)
            params = optax.apply_updates(params, updates)
        moved.append(10 - float(params["scale"][0]))
    assert moved[0] == pytest.approx(moved[1], rel=0.03)
    assert moved[1] == pytest.approx(400 * 0.1 * 1e-2 / (1 - momentum), rel=1e-3)


@pytest.mark.parametrize("strength", [-1, math.nan, math.inf])
def test_strengths_that_are_none_are_refused(strength: Any) -> None:
    for make in (jaxslim.l1_subgradient, lambda strength, mask: jaxslim.l1_proximal(strength, 0.1, mask)):
        with pytest.raises(jaxslim.InputError, match=r"The L1 strength is .*; it must be a number of at least 0"):
            make(strength, MASK)


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
def test_rates_that_are_none_are_refused(rate: Any) -> None:
    with pytest.raises(jaxslim.InputError, match=r"The learning rate is .*; it must be a number of at least 0"):
        jaxslim.l1_proximal(1e-4, rate, MASK)


def both_penalties(mask: Any) -> list[optax.GradientTransformation]:
    return [jaxslim.l1_subgradient(0.5, mask), jaxslim.l1_proximal(0.5, 0.1, mask)]


def test_penalties_need_the_parameters() -> None:
    params = scales(1.0)
    for tx in both_penalties(MASK):
        with pytest.raises(
            jaxslim.InputError, match=r"needs the parameters: call update\((gradients|updates), state, p"
        ):
            tx.update(params, tx.init(params))


def test_a_mask_of_another_structure_is_refused() -> None:
    for tx in both_penalties({"params": MASK}):
        with pytest.raises(jaxslim.InputError, match=r"another structure than the parameters; pass bn_scale_mask"):
            tx.init(scales(1.0))


class WithoutBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.GroupNorm(2, name="norm1")(nn.Dense(4, name="dense")(x))
        return nn.LayerNorm(name="norm2")(x)


def test_a_mask_that_is_true_for_nothing_is_refused_with_the_scales_that_there_are() -> None:
    tree = WithoutBatchNorm().init(jax.random.key(0), jnp.ones((2, 5)))
    mask = jaxslim.bn_scale_mask(tree)
    assert not any(jax.tree.leaves(mask))
    assert scale_values(tree).shape == (0,)
    params = tree["params"]
    message = (
        "The mask is true for no parameter, so L1 would pull on nothing. The parameters hold the scales norm1/scale, "
        "norm2/scale; pass a mask of your own, or train without L1."
    )
    for tx in both_penalties(mask):
        state = jaxslim.l1_subgradient(0.5, True).init(params)
        for act in (tx.init, jax.jit(tx.init), lambda params, tx=tx, state=state: tx.update(params, state, params)):
            with pytest.raises(jaxslim.InputError) as caught:
                act(params)
            assert str(caught.value) == message
    with pytest.raises(jaxslim.InputError, match="The parameters hold no scales; pass a mask of your own"):
        jaxslim.l1_subgradient(0.5, lambda _: False).init({"w": jnp.ones(2)})
    many = {f"norm{number}": {"scale": jnp.ones(1)} for number in range(6)}
    with pytest.raises(jaxslim.InputError, match="norm0/scale, norm1/scale, norm2/scale, norm3/scale and 2 more; pass"):
        jaxslim.l1_subgradient(0.5, False).init(many)


def test_a_mask_may_be_true_for_one_part_of_the_parameters() -> None:
    """optax.multi_transform hides the other parts from it."""
    params = scales(1.0)
    parts = {"scales": jaxslim.l1_subgradient(0.5, True), "rest": optax.set_to_zero()}
    tx = optax.multi_transform(parts, {"bn": {"scale": "scales", "bias": "rest"}, "w": "rest"})
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["bn"]["scale"].tolist() == [1.5]
