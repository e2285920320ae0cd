"""Random programs of single operations, for the rules of ONNX: each takes a stream (n, ...) and gives another one."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

Operation = Callable[[Any, np.random.Generator], Any]


def _axis(x: Any, rng: np.random.Generator, first: int = 1) -> int:
    return int(rng.integers(first, x.ndim))


def _array(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _vector(x: Any, axis: int, rng: np.random.Generator) -> np.ndarray:
    """A constant along one axis."""
    return _array(rng, *(n if k == axis else 1 for k, n in enumerate(x.shape[1:], 1))).reshape(
        1, *(n if k == axis else 1 for k, n in enumerate(x.shape[1:], 1))
    )


def _totals(x: Any, axis: int | None = None) -> Any:
    """A number for each index of an axis of one row, or one for all: weighted, so that rounding hardly makes ties."""
    row = x[0]
    weights = np.random.default_rng(row.size).normal(size=row.shape).astype(np.float32)
    return (row * weights).sum(tuple(k for k in range(row.ndim) if axis is None or k + 1 != axis))


def transpose(x: Any, rng: np.random.Generator) -> Any:
    return jnp.transpose(x, (0, *(1 + rng.permutation(x.ndim - 1))))


def split_axis(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    n = x.shape[axis]
    by = [d for d in range(1, n + 1) if n % d == 0][int(rng.integers(0, 2)) if n > 1 else 0]
    return x.reshape(*x.shape[:axis], n // by, by, *x.shape[axis + 1 :]) if x.ndim < 5 else x


def merge_axes(x: Any, rng: np.random.Generator) -> Any:
    if x.ndim < 4:
        return x
    axis = _axis(x, rng, 2)
    return x.reshape(*x.shape[: axis - 1], x.shape[axis - 1] * x.shape[axis], *x.shape[axis + 1 :])


def unit_axis(x: Any, rng: np.random.Generator) -> Any:
    return jnp.expand_dims(x, _axis(x, rng)) if x.ndim < 5 else x


def squeeze(x: Any, rng: np.random.Generator) -> Any:
    ones = [k for k in range(1, x.ndim) if x.shape[k] == 1]
    return jnp.squeeze(x, ones[0]) if ones and x.ndim > 3 else x


def convolve(x: Any, rng: np.random.Generator) -> Any:
    """Over the two last of four axes, or those in the middle."""
    if x.ndim != 4:
        return x
    last = bool(rng.integers(2))
    channels = x.shape[3 if last else 1]
    groups = [g for g in (1, channels) if channels % g == 0][int(rng.integers(2))]
    shape = (3, 3, channels // groups, groups * int(rng.integers(1, 3)))
    numbers = ("NHWC" if last else "NCHW", "HWIO", "NHWC" if last else "NCHW")
    grown = bool(rng.integers(4) == 0)
    return lax.conv_general_dilated(
        x,
        _array(rng, *shape) / math.sqrt(9 * shape[2]),
        (1, 1) if grown else tuple(int(n) for n in rng.integers(1, 3, 2)),
        [tuple(int(n) for n in rng.integers(0, 3, 2)) for _ in range(2)],
        lhs_dilation=(2, 2) if grown else (1, 1),
        rhs_dilation=(1, int(rng.integers(1, 3))),
        dimension_numbers=numbers,
        feature_group_count=groups,
    )


def pool(x: Any, rng: np.random.Generator) -> Any:
    axis, kind = _axis(x, rng), int(rng.integers(4))
    if x.shape[axis] < 2:
        return x
    window = tuple(2 if k == axis else 1 for k in range(x.ndim))
    pads = tuple((1, 0) if k == axis and kind > 1 else (0, 0) for k in range(x.ndim))
    if kind % 2:
        return lax.reduce_window(x, -np.inf, lax.max, window, window, pads)
    total = lax.reduce_window(x, 0.0, lax.add, window, window, pads)
    counts = lax.reduce_window(np.ones((1, *x.shape[1:]), np.float32), 0.0, lax.add, window, window, pads)
    return total / (counts if rng.integers(2) else 2)


def pool_further(x: Any, rng: np.random.Generator) -> Any:
    """Windows that begin outside or leave elements out, on gaps, over axes that lie apart, and from a number on."""
    axis, first = _axis(x, rng), _axis(x, rng)
    window = tuple(2 if k in (axis, first) else 1 for k in range(x.ndim))
    pads = tuple(tuple(int(n) for n in rng.integers(0, 4, 2)) if k == axis else (0, 0) for k in range(x.ndim))
    pads = tuple((-1, 1) if k == first and x.shape[k] > 2 else pad for k, pad in enumerate(pads))
    gaps = tuple(int(rng.integers(1, 3)) if k == axis else 1 for k in range(x.ndim))
    start, reduction = [(0.3, lax.max), (0.0, lax.add), (-0.2, lax.min), (0.1, lax.add)][int(rng.integers(4))]
    if any(n + sum(pad) < size for n, pad, size in zip(x.shape, pads, window, strict=True)):
        return x
    return lax.reduce_window(x, start, reduction, window, window, pads, gaps)


def larger_of_pairs(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    even = x.shape[axis] // 2 * 2
    if not even:
        return x
    parts = [lax.slice_in_dim(x, start, even, stride=2, axis=axis) for start in (0, 1)]
    return jnp.maximum(*parts)


def dense(x: Any, rng: np.random.Generator) -> Any:
    axis, width = _axis(x, rng), int(rng.integers(1, 5))
    y = jnp.tensordot(x, _array(rng, x.shape[axis], width), (axis, 0))
    y = y + _array(rng, width).reshape((1,) * (y.ndim - 1) + (width,))
    return jnp.moveaxis(y, -1, axis) if rng.integers(2) else y


def attend(x: Any, rng: np.random.Generator) -> Any:
    """Products of the stream with itself."""
    if x.ndim < 3:
        return x
    flat = x.reshape(-1, *x.shape[1:]) if x.ndim == 3 else x.reshape(x.shape[0], -1, x.shape[-1])
    weights = jax.nn.softmax(jnp.einsum("nac,nbc->nab", flat, flat), axis=int(rng.integers(1, 3)))
    return jnp.einsum("nab,nbc->nac", weights, flat)


def affine(x: Any, rng: np.random.Generator) -> Any:
    for _ in range(int(rng.integers(1, 4))):
        vector = _vector(x, _axis(x, rng), rng)
        x = [x + vector, x - vector, x * vector, vector - x, x / (2 + abs(vector)), -x][int(rng.integers(6))]
    return x


def normalise(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    return (x - x.mean(axis, keepdims=True)) * lax.rsqrt(x.var(axis, keepdims=True) + 0.1)


def gate(x: Any, rng: np.random.Generator) -> Any:
    """Multiply by what is known of some axes alone."""
    axes = tuple(range(1, x.ndim))[: int(rng.integers(1, x.ndim))]
    return x * jax.nn.sigmoid(x.mean(axes, keepdims=True)) + jnp.broadcast_to(x.max(axes, keepdims=True), x.shape)


def reduce(x: Any, rng: np.random.Generator) -> Any:
    if x.ndim < 4:
        return x
    return [jnp.sum, jnp.max, jnp.mean, jnp.min, jnp.prod][int(rng.integers(5))](x, _axis(x, rng))


def pad(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    least = -1 if x.shape[axis] > 3 else 0
    low, high, gap = (int(rng.integers(least, 3)), int(rng.integers(least, 3)), int(rng.integers(2)))
    return lax.pad(x, np.float32(0.5), [(low, high, gap) if k == axis else (0, 0, 0) for k in range(x.ndim)])


def cut(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    n = x.shape[axis]
    index = [slice(None)] * x.ndim
    index[axis] = [slice(n // 3, n, 1 + n // 4), slice(None, None, -1), slice(0, max(n - 1, 1))][int(rng.integers(3))]
    return x[tuple(index)]


def choose(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    return jnp.take(x, rng.integers(-x.shape[axis], x.shape[axis], 4), axis)


def choose_computed(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    order = jnp.argsort(_totals(x, axis))
    return jnp.take(x, order[: 1 + x.shape[axis] // 2], axis, mode=("clip", "fill")[int(rng.integers(2))])


def choose_along(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    return jnp.take_along_axis(x, jnp.argmax(x, axis, keepdims=True), axis)


def fill(x: Any, rng: np.random.Generator) -> Any:
    """A number where the index is outside."""
    axis = _axis(x, rng)
    return jnp.take(x, jnp.argsort(_totals(x, axis)) + 1, axis, mode="fill", fill_value=0.5)


def sort(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    if rng.integers(2):
        return jnp.sort(x, axis)
    return lax.sort((jnp.round(x), jnp.round(2 * x) > 0, x), dimension=axis, num_keys=2)[2]


def search(x: Any, rng: np.random.Generator) -> Any:
    edges = np.linspace(-1, 1, 7, dtype=np.float32)
    return x + jnp.searchsorted(edges, x, side=("left", "right")[int(rng.integers(2))])


def empty(x: Any, rng: np.random.Generator) -> Any:
    """Without elements in between, as where one of several sides is padded."""
    axis = _axis(x, rng)
    none = jnp.repeat(lax.slice_in_dim(x, 0, 1, axis=axis), 0, axis)
    return jnp.concatenate([none, x, none], axis) + none.sum(axis, keepdims=True)


def run_along(x: Any, rng: np.random.Generator) -> Any:
    kind, axis = [lax.cumsum, lax.cummax, lax.cumprod, lax.cumlogsumexp][int(rng.integers(4))], _axis(x, rng)
    return kind(x, axis, bool(rng.integers(2)))


def join(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    return jnp.concatenate([x, jnp.flip(x, axis), jnp.broadcast_to(x.mean(axis, keepdims=True), x.shape)], axis)


def roll(x: Any, rng: np.random.Generator) -> Any:
    return jnp.roll(x, int(rng.integers(1, 4)), _axis(x, rng))


def stack(x: Any, rng: np.random.Generator) -> Any:
    return jnp.stack([x, -x], _axis(x, rng)) if x.ndim < 5 else x


def slide(x: Any, rng: np.random.Generator) -> Any:
    axis = _axis(x, rng)
    start = jnp.argmax(_totals(x, axis))
    part = lax.dynamic_slice_in_dim(x, start, 1 + x.shape[axis] // 2, axis)
    return lax.dynamic_update_slice_in_dim(x, 2 * part, start - 1, axis)


def scatter(x: Any, rng: np.random.Generator) -> Any:
    """Along one axis; an index outside is dropped."""
    axis, kind = _axis(x, rng), int(rng.integers(3))
    moved = jnp.moveaxis(x, axis, 0)
    rows = jnp.argsort(_totals(x, axis)) + int(rng.integers(2))
    at = moved.at[rows]
    return jnp.moveaxis((at.set, at.add, at.max)[kind](0.5 * moved, mode="drop"), 0, axis)


def loop(x: Any, rng: np.random.Generator) -> Any:
    """Over the positions of an axis, forward or backward."""
    axis = _axis(x, rng)
    rows = jnp.moveaxis(x, axis, 0)

    def step(state: Any, row: Any) -> Any:
        state = 0.5 * state + jnp.tanh(row)
        return state, state + row

    last, found = lax.scan(step, jnp.zeros_like(rows[0]), rows, reverse=bool(rng.integers(2)))
    return jnp.moveaxis(found + last[None], 0, axis)


def halve(x: Any, rng: np.random.Generator) -> Any:
    """As often as the values say."""
    return lax.while_loop(lambda y: jnp.abs(y).max() > 1, lambda y: y * 0.5, x)


def branch(x: Any, rng: np.random.Generator) -> Any:
    vector = _vector(x, _axis(x, rng), rng)
    which = jnp.argmax(jnp.stack([_totals(x), _totals(x * x), jnp.float32(0.1)]))
    return lax.switch(which, [lambda y: y + vector, lambda y: y * 2, lambda y: -y], x)


def curve(x: Any, rng: np.random.Generator) -> Any:
    curves: list[Callable[[Any], Any]] = [
        jnp.tanh, jax.nn.gelu, jax.nn.silu, jax.nn.softplus, jax.nn.relu6, jax.nn.hard_swish, jax.nn.elu, jnp.abs,
        jnp.square, jnp.sign, jnp.floor, jnp.ceil, jnp.round, jnp.exp, lambda y: jnp.log1p(abs(y)), jnp.cbrt, jnp.sin,
        lambda y: y % 0.7, lambda y: jnp.arctan2(y, y - 0.3), lambda y: jnp.clip(y, -0.5, 0.5), jax.nn.mish, jnp.expm1,
        lambda y: jnp.where(y > 0, y, 0.1), lambda y: jnp.exp2(-abs(y)), lambda y: lax.integer_pow(1 + abs(y), -2),
        lambda y: jnp.isfinite(y) * y, lambda y: (y > 0.2).astype(jnp.float32) - ((y < 0) & (y > -1)), lax.erfc,
        lambda y: ((y * 9).astype(jnp.int32) << 2 >> 3) + ((y * 9).astype(jnp.int32).astype(jnp.uint8) >> 5) * y,
        lambda y: lax.cummax((y * 9).astype(jnp.int32), 1) + y,
        lambda y: jnp.where((y.astype(jnp.int32) ^ 3) % 2 == 1, y, -y), lambda y: y ** 3, jnp.reciprocal,
        lambda y: jnp.hypot(y, 1.0), jnp.sinh, jnp.arcsinh, lambda y: jax.nn.one_hot(y.argmax(-1), y.shape[-1]) + y,
    ]  # fmt: skip
    return jnp.nan_to_num(curves[int(rng.integers(len(curves)))](jnp.clip(x, -3, 3)), posinf=3, neginf=-3)


OPERATIONS: dict[str, Operation] = {
    one.__name__: one
    for one in (
        transpose, split_axis, merge_axes, unit_axis, squeeze, convolve, pool, pool_further, larger_of_pairs, dense,
        attend, affine, normalise, gate, reduce, pad, cut, choose, choose_computed, choose_along, fill, sort, search,
        empty, run_along, join, roll, stack, slide, scatter, loop, halve, branch, curve,
    )
}  # fmt: skip
MOST = 2000
"""Numbers of one example that a stream may have."""


def run(steps: tuple[tuple[str, int], ...], x: Any) -> Any:
    """Take a stream through some operations; each draws its options from its seed."""
    for name, seed in steps:
        y = OPERATIONS[name](x, np.random.default_rng(seed))
        x = y if 0 < math.prod(y.shape[1:]) <= MOST else x
    return x


def program(steps: tuple[tuple[str, int], ...]) -> Callable[[Any, Any], Any]:
    """A network without variables."""
    return functools.partial(lambda steps, variables, x: run(steps, x), steps)


def steps(most: int = 5) -> st.SearchStrategy[tuple[tuple[str, int], ...]]:
    one = st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 999))
    return st.lists(one, min_size=1, max_size=most).map(tuple)
