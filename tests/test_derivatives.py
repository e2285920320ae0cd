"""Functions with derivative rules of their own, and loops, in cut programs: values and gradients of the masked network.

The rules are wrong by a factor on purpose, to tell them from the derivative.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.ode import odeint

import jaxslim

TABLE = np.linspace(0.5, 2.0, 8, dtype=np.float32)[None]
ORDER = np.arange(8)[::-1].copy()


def _twice(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of an array and of others, whose derivative by the array is doubled."""
    wrapped = jax.custom_vjp(function)

    def backward(saved: Any, gradient: Any) -> Any:
        pull = jax.vjp(lambda h: function(h, *saved[1:]), saved[0])[1]
        return (2 * pull(gradient)[0], *(None for _ in saved[1:]))

    wrapped.defvjp(lambda *inputs: (function(*inputs), inputs), backward)
    return wrapped


def _inside_another(h: Any, x: Any) -> Any:
    sine = _twice(jnp.sin)
    outer = jax.custom_vjp(sine)
    outer.defvjp(lambda h: jax.vjp(sine, h), lambda pull, gradient: pull(3 * gradient))
    return outer(h)


def _of_a_function(h: Any, x: Any) -> Any:
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def apply(function: Any, h: Any) -> Any:
        return function(h)

    apply.defvjp(lambda f, h: (f(h), h), lambda f, h, gradient: jax.vjp(f, h)[1](gradient * 2))
    return apply(jnp.tanh, h)


def _forward(h: Any, x: Any) -> Any:
    @jax.custom_jvp
    def scaled(h: Any, k: Any) -> Any:
        return h * TABLE * k

    scaled.defjvp(lambda primals, tangents: (scaled(*primals), 3 * tangents[0] * TABLE))
    return scaled(h, jnp.argmax(x[0]))


FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "closes over a table": lambda h, x: _twice(lambda h: jnp.tanh(h) * TABLE)(h),
    "takes a computed integer": lambda h, x: _twice(lambda h, k: h * k)(h, jnp.argmax(x[0])),
    "permutes by a constant": lambda h, x: _twice(lambda h: h[:, ORDER])(h),
    "permutes by an argument": lambda h, x: _twice(lambda h, order: h[:, order])(h, ORDER),
    "inside another": _inside_another,
    "of a function": _of_a_function,
    "forward": _forward,
}


def compare(apply: Callable[..., Any], variables: Any, x: Any) -> None:
    """Half of the units that go with `scale` go; values and gradients stay those of the masked network."""
    graph = jaxslim.trace(apply, variables, x)
    plan = jaxslim.plan(graph, {"scale": (np.arange(8) % 3 + 0.1 * np.arange(8))[None]}, 0.5)
    assert graph.exact[~plan.keep].all()
    assert (~plan.keep).sum() == 4
    masked, small = jaxslim.mask(graph, variables, plan), jaxslim.cut(graph, variables, plan)
    narrow = jaxslim.narrow(apply, graph, plan)
    np.testing.assert_allclose(narrow(small, x), apply(masked, x), rtol=1e-5, atol=1e-5)
    expected = jaxslim.cut(graph, jax.grad(lambda v: jnp.sin(apply(v, x)).sum())(masked), plan)

    def loss(v: Any) -> Any:
        return jnp.sin(narrow(v, x)).sum()

    for gradient in (jax.grad(loss), jax.jit(jax.grad(loss)), jax.grad(jax.checkpoint(loss))):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradient(small), expected)


def random_variables() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"first": (4, 8), "last": (8, 4)}
    return {name: rng.normal(size=shape).astype(np.float32) * 0.5 for name, shape in shapes.items()} | {
        "scale": np.ones((1, 8), np.float32)
    }


def images() -> Any:
    return np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_derivative_rules_stay_those_of_the_user(form: Callable[..., Any]) -> None:
    compare(lambda v, x: form(x @ v["first"] * v["scale"], x) @ v["last"], random_variables(), images())


@pytest.mark.parametrize("stream", [8, 6])
def test_a_rule_reads_a_stream_that_keeps_more_channels(stream: int) -> None:
    """Channel selection: `jaxslim.ops.BatchNorm` has its own gradient, and the stream in front keeps all channels."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(8)(x)
            y = nn.relu(jaxslim.ops.BatchNorm(use_running_average=False, name="norm")(x))
            return nn.Dense(3)(y) + nn.Dense(3)(x)

    x = np.random.default_rng(1).normal(size=(3, 2, 2, 4)).astype(np.float32)
    variables = Net().init(jax.random.key(0), x)

    def apply(params: Any, x: Any) -> Any:
        return Net().apply(variables | {"params": params}, x, mutable=["batch_stats"])[0]

    graph = jaxslim.trace(apply, variables["params"], x)
    scores = {"norm": {"scale": np.arange(8.0) % 3}, "Dense_0": {"bias": 1.0 * (np.arange(8) >= 8 - stream)}}
    plan = jaxslim.plan(graph, scores, threshold=0)
    masked, small = (change(graph, variables["params"], plan) for change in (jaxslim.mask, jaxslim.cut))
    assert small["Dense_0"]["kernel"].shape == (4, stream)
    assert small["norm"]["scale"].shape == (5 - (stream == 6),)

    def gradient(apply: Callable[..., Any], params: Any) -> Any:
        return jax.jit(jax.grad(lambda params: jnp.sin(apply(params, x)).sum()))(params)

    expected = jaxslim.cut(graph, gradient(apply, masked), plan)
    found = gradient(jaxslim.narrow(apply, graph, plan), small)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_a_neural_differential_equation_has_its_gradient() -> None:
    """`odeint` solves a second equation for the gradient, of all arrays as one vector (Chen et al., NeurIPS 2018)."""

    def apply(v: Any, x: Any) -> Any:
        def change(y: Any, t: Any, first: Any, scale: Any) -> Any:
            return jnp.tanh(y @ first * scale) @ v["last"]

        return odeint(change, x, jnp.array([0.0, 1.0]), v["first"], v["scale"])[-1]

    compare(apply, random_variables(), images())


def test_a_loop_ends_for_each_row_by_itself() -> None:
    """`vmap` makes one loop of many, with a condition for each row."""

    def one(v: Any, x: Any) -> Any:
        def body(state: Any) -> Any:
            h, steps, key = state
            key, own = jax.random.split(key)
            return jnp.tanh(h * 0.9), steps + 1 + jax.random.bernoulli(own), key

        h = x @ v["first"] * v["scale"][0]
        h, steps, _ = jax.lax.while_loop(lambda s: (s[0][0] ** 2 < 0.5) & (s[1] < 9), body, (h, 0, jax.random.key(0)))
        return h @ v["last"], steps

    def batched(v: Any, x: Any) -> Any:
        return jax.vmap(one, (None, 0))(v, x)

    variables, x = random_variables(), images()
    graph = jaxslim.trace(one, variables, x[0])
    plan = jaxslim.plan(graph, {"scale": np.arange(8.0)[None, ::-1]}, 0.5)
    masked, small = jaxslim.mask(graph, variables, plan), jaxslim.cut(graph, variables, plan)
    expected = batched(masked, x)
    assert len(np.unique(expected[1])) > 1
    for run in (jaxslim.narrow(batched, graph, plan), jax.vmap(jaxslim.narrow(one, graph, plan), (None, 0))):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), run(small, x), expected)
