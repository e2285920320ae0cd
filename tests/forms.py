"""Forms in which networks are written: each takes a stream (b, h, w, c) and gives another one.

Widths are numbers in the code here, as in most networks; `networks.py` reads them off the parameters.
"""

import collections
import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from networks import NHWC, attend, draw

VECTORS = ("(c,)", "(1, c)", "(1, 1, c)", "(c, 1)")


class Scope:
    """Hands out layers in call order: reads them from `variables`, or first makes them where `rng` is given."""

    def __init__(
        self,
        variables: dict[str, Any],
        key: Any,
        tokens: Any,
        *,
        train: bool = False,
        vectors: str = "(c,)",
        prefix: str = "",
        rng: np.random.Generator | None = None,
    ) -> None:
        self.variables, self.key, self.tokens = variables, key, tokens
        self.train, self.vectors, self.prefix, self.rng = train, vectors, prefix, rng
        self.calls: collections.Counter[str] = collections.Counter()
        self.stats: dict[str, Any] = {}
        """New statistics of each layer that was trained."""

    def inside(self, prefix: str, **changes: Any) -> "Scope":
        """A scope for one part; the same prefix means the same parameters."""
        scope = copy.copy(self)
        scope.prefix, scope.calls = f"{self.prefix}{prefix}_", collections.Counter()
        vars(scope).update(changes)
        return scope

    def __call__(self, kind: str, **shapes: tuple[int, ...]) -> list[Any]:
        self.layer = f"{self.prefix}{kind}{self.calls[kind]}"
        self.calls[kind] += 1
        found = []
        for name, shape in shapes.items():
            home = "batch_stats" if name in ("mean", "var") else "params"
            if self.rng is not None:
                leaves = self.variables.setdefault(home, {}).setdefault(self.layer, {})
                if name not in leaves:
                    leaves[name] = draw(self.rng, name, shape)
            found.append(jnp.asarray(self.variables[home][self.layer][name]))
        return found

    def vector(self, width: int, ndim: int) -> tuple[int, ...]:
        """Shape of a parameter along the last of `ndim` axes."""
        if self.vectors == "(c,)":
            return (width,)
        if self.vectors == "(1, c)":
            return (1, width)
        ones = (1,) * (ndim - 2)
        return (width, *ones) if self.vectors == "(c, 1)" else (1, *ones, width)

    def meet(self, op: Callable[[Any, Any], Any], x: Any, vector: Any) -> Any:
        """`op` of a stream and a vector of that shape."""
        if self.vectors == "(c, 1)":
            return jnp.moveaxis(op(jnp.moveaxis(x, -1, 1), vector[None]), 1, -1)
        return op(x, vector.reshape((1,) * (x.ndim - 1) + (-1,)))

    def random(self) -> Any:
        """A new key."""
        self.calls["key"] += 1
        return jax.random.fold_in(self.key, self.calls["key"])


# Layers: what forms are made of.


def conv(s: Scope, x: Any, width: int, size: int = 3, stride: int = 1, groups: int = 1) -> Any:
    (kernel,) = s("conv", kernel=(size, size, x.shape[-1] // groups, width))
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=NHWC, feature_group_count=groups
    )


def dense(s: Scope, x: Any, width: int, bias: bool = False) -> Any:
    (kernel,) = s("dense", kernel=(x.shape[-1], width))
    y = x @ kernel
    return add_bias(s, y) if bias else y


def add_bias(s: Scope, x: Any) -> Any:
    (bias,) = s("bias", bias=s.vector(x.shape[-1], x.ndim))
    return s.meet(jnp.add, x, bias)


def affine(s: Scope, x: Any) -> Any:
    shape = s.vector(x.shape[-1], x.ndim)
    scale, bias = s("affine", scale=shape, bias=shape)
    return s.meet(jnp.add, s.meet(jnp.multiply, x, scale), bias)


def batch_norm(s: Scope, x: Any, fast: bool = False) -> Any:
    shape = s.vector(x.shape[-1], x.ndim)
    scale, bias, mean, var = s("bn", scale=shape, bias=shape, mean=shape, var=shape)
    if s.train:
        axes = tuple(range(x.ndim - 1))
        now = [x.mean(axes), (x * x).mean(axes) - jnp.square(x.mean(axes)) if fast else x.var(axes)]
        now = [value.reshape(shape) for value in now]
        s.stats[s.layer] = {"mean": 0.9 * mean + 0.1 * now[0], "var": 0.9 * var + 0.1 * now[1]}
        mean, var = now
    return s.meet(jnp.add, s.meet(jnp.multiply, s.meet(jnp.subtract, x, mean), lax.rsqrt(var + 1e-5) * scale), bias)


def layer_norm(s: Scope, x: Any, fast: bool = False) -> Any:
    mean = x.mean(-1, keepdims=True)
    var = (x * x).mean(-1, keepdims=True) - mean * mean if fast else x.var(-1, keepdims=True)
    return affine(s, (x - mean) * lax.rsqrt(var + 1e-5))


def rms_norm(s: Scope, x: Any) -> Any:
    (scale,) = s("rms", scale=s.vector(x.shape[-1], x.ndim))
    return s.meet(jnp.multiply, x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5), scale)


def l2_norm(_: Scope, x: Any) -> Any:
    return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-3)


NORMS: dict[str, Callable[[Scope, Any], Any]] = {
    "batch": batch_norm,
    "batch, fast": functools.partial(batch_norm, fast=True),
    "layer": layer_norm,
    "layer, fast": functools.partial(layer_norm, fast=True),
    "rms": rms_norm,
    "affine": affine,
    "l2": l2_norm,
}
AFTER: dict[str, Callable[[Scope, Any], Any]] = {
    "nothing": lambda _, x: x,
    "bias": add_bias,
    "batch norm": batch_norm,
    "batch norm, relu": lambda s, x: jax.nn.relu(batch_norm(s, x)),
    "relu": lambda _, x: jax.nn.relu(x),
}


def largest(x: Any, axis: int | tuple[int, ...]) -> Any:
    """The maximum. Its own derivative is 0 / 0 where XLA computes `x` again, a bit off, to look for the maximum."""
    equal = x >= lax.stop_gradient(x.max(axis, keepdims=True)) - 1e-12
    return jnp.where(equal, x, 0).sum(axis) / equal.sum(axis)


def project(s: Scope, x: Any, width: int, after: str) -> Any:
    return AFTER[after](s, dense(s, x, width))


def divisible(s: Scope, x: Any, factor: int, each: int, after: str, direct: bool) -> Any:
    """A stream of which `factor` divides the channels: the stream itself where it can be, else a projection."""
    return x if direct and x.shape[-1] % factor == 0 else project(s, x, factor * each, after)


# Channels split and merged by reshapes.


HEADS_OUTER = ("(h, d)", "(h, -1)", "(-1, d)")
SPLITS = (*HEADS_OUTER, "(d, h)", "(d, -1)", "(-1, h)")


def split_heads(x: Any, heads: int, each: int, split: str) -> Any:
    """(..., heads * each) -> (..., heads, each), in the order that `split` names."""
    sizes = {"h": heads, "d": each, "-1": -1}
    outer, inner = split.strip("()").split(", ")
    x = x.reshape(*x.shape[:-1], sizes[outer], sizes[inner])
    return x if split in HEADS_OUTER else x.swapaxes(-1, -2)


def merge_heads(x: Any, split: str, constant: bool) -> Any:
    heads, each = x.shape[-2:]
    x = x if split in HEADS_OUTER else x.swapaxes(-1, -2)
    return x.reshape(*x.shape[:-2], heads * each if constant else -1)


FUSED = ("apart", "thirds", "(3, h, d)", "(h, 3, d)", "(h, d, 3)", "parameter")


def queries_keys_values(s: Scope, x: Any, heads: int, each: int, fused: str, split: str, after: str) -> list[Any]:
    """Three of (b, n, heads, each)."""
    if fused == "apart":
        return [split_heads(project(s, x, heads * each, after), heads, each, split) for _ in range(3)]
    if fused == "parameter":
        (kernel,) = s("fused", kernel=(x.shape[-1], 3, heads, each))
        return list(jnp.moveaxis(jnp.einsum("bnc,cthd->bnthd", x, kernel), 2, 0))
    y = project(s, x, 3 * heads * each, after)
    if fused == "thirds":
        return [split_heads(part, heads, each, split) for part in jnp.split(y, 3, axis=-1)]
    sizes = {"3": 3, "h": heads, "d": each}
    names = fused.strip("()").split(", ")
    y = y.reshape(*x.shape[:2], *(sizes[name] for name in names))
    return [y.take(i, axis=2 + names.index("3")) for i in range(3)]


def turn(x: Any, how: str) -> Any:
    """Rotary position embedding of (b, n, heads, each)."""
    if how == "none":
        return x
    n, d = x.shape[1], x.shape[3]
    angle = jnp.arange(n)[:, None] / (10.0 ** (jnp.arange(0, d, 2) / d))[None]
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    if how == "halves":
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    if how == "turned halves":
        a, b = x[..., : d // 2], x[..., d // 2 :]
        sin, cos = (jnp.concatenate([table, table], axis=-1) for table in (sin, cos))
        return x * cos + jnp.concatenate([-b, a], axis=-1) * sin
    if how == "strides":
        a, b = x[..., ::2], x[..., 1::2]
    else:
        pairs = x.reshape(*x.shape[:-1], d // 2, 2)
        a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def attention(
    s: Scope, x: Any, heads: int, each: int, fused: str, split: str, rotary: str, mask: str, constant: bool, after: str
) -> Any:
    b, h, w, c = x.shape
    n = h * w
    q, k, v = queries_keys_values(s, x.reshape(b, n, c), heads, each, fused, split, after)
    q, k = turn(q, rotary), turn(k, rotary)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(each)
    if mask == "causal":
        scores = jnp.where(jnp.tril(jnp.ones((n, n), bool))[None, None], scores, -1e9)
    elif mask == "bias":
        (table,) = s("relative", bias=(heads, 2 * n - 1))
        scores = scores + table[None, :, jnp.arange(n)[:, None] - jnp.arange(n)[None] + n - 1]
    elif mask == "slopes":
        distance = jnp.abs(jnp.arange(n)[:, None] - jnp.arange(n)[None])
        slopes = 2.0 ** -jnp.arange(1, heads + 1)
        scores = scores - slopes[None, :, None, None] * distance[None, None]
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
    split = split if fused in ("apart", "thirds") else "(h, d)"
    return dense(s, merge_heads(y, split, constant), c).reshape(b, h, w, c)


def grouped_queries(s: Scope, x: Any, heads: int, repeats: int, each: int, how: str, cache: str, after: str) -> Any:
    """`repeats` query heads share one key head; the keys may lie in a longer cache."""
    b, h, w, c = x.shape
    n = h * w
    tokens = x.reshape(b, n, c)
    q = project(s, tokens, heads * repeats * each, after)
    k, v = (project(s, tokens, heads * each, after).reshape(b, n, heads, each) for _ in range(2))
    hidden = jnp.zeros((n,), bool)
    if cache != "none":
        room, start = jnp.zeros((b, n + 2, heads, each), k.dtype), 1
        if cache == "update":
            k, v = (lax.dynamic_update_slice(room, part, (0, start, 0, 0)) for part in (k, v))
        else:
            k, v = (room.at[:, start : start + n].set(part) for part in (k, v))
        place = jnp.arange(n + 2)
        hidden = (place < start) | (place >= start + n)
    if how == "reshape":
        q = q.reshape(b, n, heads, repeats, each)
        scores = jnp.where(hidden[None, None, None, None], -1e9, jnp.einsum("bqhrd,bkhd->bhrqk", q, k) / each**0.5)
        y = jnp.einsum("bhrqk,bkhd->bqhrd", jax.nn.softmax(scores, axis=-1), v)
        return dense(s, y.reshape(b, n, -1), c).reshape(x.shape)
    q = q.reshape(b, n, heads * repeats, each)
    if how == "repeat":
        k, v = (jnp.repeat(part, repeats, axis=2) for part in (k, v))
    elif how == "tile":
        k, v = (jnp.tile(part, (1, 1, repeats, 1)) for part in (k, v))
    else:
        shape = (b, k.shape[1], heads, repeats, each)
        k, v = (jnp.broadcast_to(part[:, :, :, None], shape).reshape(b, -1, heads * repeats, each) for part in (k, v))
    scores = jnp.where(hidden[None, None, None], -1e9, jnp.einsum("bqhd,bkhd->bhqk", q, k) / each**0.5)
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
    return dense(s, y.reshape(b, n, -1), c).reshape(x.shape)


def pixel_shuffle(s: Scope, x: Any, each: int, order: str, after: str, direct: bool) -> Any:
    """Channels to pixels, and every second pixel taken or pooled."""
    b, h, w, _ = x.shape
    y = divisible(s, x, 4, each, after, direct)
    c = y.shape[-1] // 4
    if order == "channels last":
        y = y.reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    else:
        y = y.reshape(b, h, w, c, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    y = conv(s, y.reshape(b, 2 * h, 2 * w, c), c)
    return largest(y.reshape(b, h, 2, w, 2, c), (2, 4))


def pixel_unshuffle(s: Scope, x: Any, width: int, order: str, after: str) -> Any:
    """Pixels to channels, a projection, and each pixel repeated."""
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        return project(s, x, width, after)
    blocks = x.reshape(b, h // 2, 2, w // 2, 2, c)
    turned = blocks.transpose(0, 1, 3, 2, 4, 5) if order == "channels last" else blocks.transpose(0, 1, 3, 5, 2, 4)
    if order == "slices":
        y = jnp.concatenate([x[:, i::2, j::2] for i in range(2) for j in range(2)], axis=-1)
    else:
        y = turned.reshape(b, h // 2, w // 2, 4 * c)
    y = project(s, y, width, after)
    return jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)


def shuffle_along(s: Scope, x: Any, each: int, after: str) -> Any:
    """Sub-pixels along one axis of tokens."""
    b, h, w, _ = x.shape
    y = project(s, x.reshape(b, h * w, -1), 2 * each, after).reshape(b, 2 * h * w, each)
    return add_bias(s, y).reshape(b, h * w, -1).reshape(b, h, w, 2 * each)


def maps_from_dense(s: Scope, x: Any, width: int, order: str, after: str) -> Any:
    b, h, w, _ = x.shape
    y = project(s, x.mean((1, 2)), h * w * width, after)
    maps = y.reshape(b, h, w, width) if order == "channels last" else y.reshape(b, width, h, w).transpose(0, 2, 3, 1)
    return jnp.concatenate([x, maps], axis=-1) if order == "channels last" else conv(s, maps, width)


def flattened(s: Scope, x: Any, width: int, order: str, after: str) -> Any:
    b, h, w, c = x.shape
    x = x if order == "channels last" else x.transpose(0, 3, 1, 2)
    y = project(s, x.reshape(b, h * w * c), width, after)
    return jnp.broadcast_to(y[:, None, None], (b, h, w, width))


def group_norm(s: Scope, x: Any, groups: int, each: int, how: str, after: str, direct: bool) -> Any:
    x = divisible(s, x, groups, each, after, direct)
    b, h, w, c = x.shape
    y = x.reshape(b, h, w, groups, c // groups)
    axes = (1, 2, 4)
    mean = y.mean(axes, keepdims=True)
    var = jnp.square(y).mean(axes, keepdims=True) - mean * mean if how == "fast" else y.var(axes, keepdims=True)
    y = (y - mean) * lax.rsqrt(var + 1e-5)
    if how == "grouped scale":
        (scale,) = s("group", scale=(c,))
        return add_bias(s, (y * scale.reshape(1, 1, 1, groups, -1)).reshape(x.shape))
    return affine(s, y.reshape(x.shape))


def channel_shuffle(s: Scope, x: Any, groups: int, each: int, how: str, after: str, direct: bool) -> Any:
    x = divisible(s, x, groups, each, after, direct)
    c = x.shape[-1]
    sizes = {"(g, c)": (groups, c // groups), "(g, -1)": (groups, -1), "(c, g)": (c // groups, groups)}[how]
    y = x.reshape(*x.shape[:3], *sizes).swapaxes(3, 4).reshape(x.shape)
    return conv(s, y, groups * 2, groups=groups) if how == "(g, -1)" else y


def pairs(s: Scope, x: Any, each: int, how: str, after: str, direct: bool) -> Any:
    """Maxouts, gates and products of pairs, next to one another or in halves."""
    x = divisible(s, x, 2, each, after, direct)
    lead = x.shape[:-1]
    if how == "maxout":
        return largest(x.reshape(*lead, -1, 2), -1)
    if how == "maxout of halves":
        return largest(x.reshape(*lead, 2, -1), -2)
    if how == "gate":
        y = x.reshape(*lead, 2, x.shape[-1] // 2)
        return y[..., 0, :] * jax.nn.sigmoid(y[..., 1, :])
    if how == "turned":
        y = x.reshape(*lead, x.shape[-1] // 2, 2)
        return jnp.stack([-y[..., 1], y[..., 0]], axis=-1).reshape(x.shape)
    if how == "normed":
        return l2_norm(s, x.reshape(*lead, -1, 2)).reshape(x.shape)
    other = project(s, x, x.shape[-1], after)
    if how == "interleaved":
        return jnp.stack([x, other], axis=-1).reshape(*lead, -1)
    return jnp.stack([x, other], axis=-2).reshape(*lead, -1)


def factorised(s: Scope, x: Any, how: str, after: str) -> Any:
    """Two factorisations of the same twelve channels."""
    x = project(s, x, 12, after)
    first, second = {"3 4, 4 3": ((3, 4), (4, 3)), "2 6, 6 2": ((2, 6), (6, 2)), "3 4, 2 6": ((3, 4), (2, 6))}[how]
    for sizes in (first, second):
        (scale,) = s("factor", scale=sizes[-1:])
        y = x.reshape(*x.shape[:-1], *sizes) * scale.reshape(1, 1, 1, 1, -1)
        x = y.reshape(x.shape)
    return x


def block_diagonal(s: Scope, x: Any, groups: int, each: int, how: str, after: str, direct: bool) -> Any:
    """A product per group; the kernel is one axis, two axes, or made two by a reshape."""
    x = divisible(s, x, groups, each, after, direct)
    n = x.shape[-1] // groups
    (kernel,) = s("block", kernel=(groups, n, 3) if how != "flat" else (groups * n, 3))
    y = x.reshape(*x.shape[:3], groups, n)
    if how == "loop":
        return jnp.concatenate([y[..., i, :] @ kernel[i] for i in range(groups)], axis=-1)
    if how == "vmap":
        y = jax.vmap(jnp.matmul, in_axes=(3, 0), out_axes=3)(y, kernel)
    else:
        y = jnp.einsum("bhwgi,gio->bhwgo", y, kernel.reshape(groups, n, 3))
    return y.reshape(*x.shape[:3], -1)


def windows(s: Scope, x: Any, shift: bool, after: str) -> Any:
    """Attention in windows of 2 x 2, perhaps shifted, as in Swin."""
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        return x
    x = jnp.roll(x, (-1, -1), axis=(1, 2)) if shift else x
    tokens = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    q, k, v = (project(s, tokens, 4, after)[:, :, None] for _ in range(3))
    y = dense(s, attend(q, k, v)[:, :, 0], c)
    y = y.reshape(b, h // 2, w // 2, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
    return jnp.roll(y, (1, 1), axis=(1, 2)) if shift else y


def rows_as_channels(s: Scope, x: Any, width: int, after: str) -> Any:
    """(w, c) is one axis for a while."""
    b, h, w, c = x.shape
    y = project(s, x.reshape(b, h, w * c), w * width, after)
    return y.reshape(b, h, w, width)


# Slices and constants.


def sliced(s: Scope, x: Any, how: str, after: str) -> Any:
    x = project(s, x, 6, after)
    if how == "first":
        return x[..., :4]
    if how == "last":
        return x[..., -4:]
    if how == "middle":
        return x[..., 1:5]
    if how == "stride":
        return x[..., ::2]
    if how == "odd stride":
        return x[..., 1::3]
    if how == "reversed":
        return x[..., ::-1]
    if how == "reversed, added":
        return x + x[..., ::-1]
    if how == "rolled":
        return jnp.roll(x, 2, axis=-1)
    if how == "split":
        a, b, c = jnp.split(x, [1, 4], axis=-1)
        return jnp.concatenate([c, dense(s, b, 3), a], axis=-1)
    if how == "empty part":
        a, b, c = jnp.split(x, [0, 4], axis=-1)
        return jnp.concatenate([a, jnp.tanh(b), c], axis=-1)
    if how == "some through":
        return jnp.concatenate([conv(s, x[..., :2], 2), x[..., 2:]], axis=-1)
    if how == "some shifted":
        return jnp.concatenate([jnp.roll(x[..., :2], 1, axis=1), x[..., 2:]], axis=-1)
    if how == "one":
        return x * x[..., 2][..., None]
    if how == "neighbours":
        return x[..., 1:] - x[..., :-1]
    if how == "padded":
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 2)))
    if how == "padded, added":
        narrow = project(s, x, 3, after)
        return x + jnp.pad(narrow, ((0, 0), (0, 0), (0, 0), (1, 2)))
    if how == "first added":
        narrow = project(s, x, 3, after)
        return x.at[..., :3].add(narrow)
    if how == "first set":
        return x.at[..., :2].set(0.0)
    if how == "permuted":
        return x[..., np.array([2, 0, 5, 1, 4, 3])]
    if how == "chosen":
        return x[..., np.array([4, 1, 2])]
    if how == "repeated":
        return x[..., np.array([0, 0, 3, 5, 5, 5])]
    if how == "taken":
        return jnp.take(x, jnp.array([5, 3, 1]), axis=-1)
    if how == "masked":
        return x[..., np.array([True, False, True, True, False, True])]
    raise ValueError(how)


SLICES = (
    *("first", "last", "middle", "stride", "odd stride", "reversed", "reversed, added", "rolled", "split"),
    *("empty part", "some through", "some shifted", "one", "neighbours", "padded", "padded, added"),
    *("first added", "first set", "permuted", "chosen", "repeated", "taken", "masked"),
)


def constants(s: Scope, x: Any, how: str, after: str) -> Any:
    """Numbers of the program that meet channels."""
    b, h, w, c = x.shape
    x = AFTER[after](s, x)
    numbers = np.random.default_rng(c).normal(size=c)
    row = functools.partial(jnp.reshape, shape=(1, 1, 1, -1))
    if how == "added":
        return x + numbers.reshape(1, 1, 1, -1)
    if how == "multiplied":
        return x * row(jnp.asarray(numbers))
    if how == "counted":
        return x * row(1 + jnp.arange(c) / c)
    if how == "iota":
        return x + lax.broadcasted_iota(x.dtype, (1, 1, 1, c), 3)
    if how == "waves":
        angle = jnp.arange(h * w)[:, None] / 10.0 ** (jnp.arange((c + 1) // 2) / c)[None]
        table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[:, :c]
        return (x.reshape(b, h * w, c) + table[None]).reshape(x.shape)
    if how == "interleaved waves":
        angle = jnp.arange(h * w)[:, None] / 10.0 ** (jnp.arange((c + 1) // 2) / c)[None]
        table = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(h * w, -1)[:, :c]
        return (x.reshape(b, h * w, c) + table[None]).reshape(x.shape)
    if how == "set waves":
        table = np.zeros((h * w, c))
        table[:, ::2] = np.sin(np.arange(h * w))[:, None]
        return x + table.reshape(1, h, w, c)
    if how == "where":
        return jnp.where((np.arange(c) % 3 == 0).reshape(1, 1, 1, -1), 0.0, x)
    if how == "where, other":
        return jnp.where(row(jnp.arange(c) < c // 2), x, jnp.tanh(2 * x))
    if how == "one-hot":
        return x + row(jax.nn.one_hot(1, c, dtype=x.dtype))
    if how == "matrix":
        return x @ np.random.default_rng(c).normal(size=(c, c)) / c
    if how == "identity":
        return x @ jnp.eye(c)
    if how == "cosines":
        basis = jnp.cos(jnp.pi * (jnp.arange(c)[:, None] + 0.5) * jnp.arange(c)[None] / c)
        return jnp.einsum("bhwc,cd->bhwd", x, basis) / c
    if how == "blur":
        taps = np.array([1.0, 2.0, 1.0])
        kernel = np.tile((taps[:, None] * taps / 16)[:, :, None, None], (1, 1, 1, c))
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=c)
    if how == "divided by width":
        return x / math.sqrt(c)
    if how == "means":
        return x * x.mean(-1, keepdims=True)
    if how == "sums":
        return x - jnp.sum(x, axis=-1, keepdims=True) / c
    if how == "ones":
        return jnp.concatenate([x, jnp.ones((b, h, w, 1), x.dtype)], axis=-1)
    if how == "places":
        return jnp.concatenate(
            [x, jnp.broadcast_to(jnp.linspace(-1, 1, h)[None, :, None, None], (b, h, w, 1))], axis=-1
        )
    raise ValueError(how)


CONSTANTS = (
    *("added", "multiplied", "counted", "iota", "waves", "interleaved waves", "set waves", "where", "where, other"),
    *("one-hot", "matrix", "identity", "cosines", "blur", "divided by width", "means", "sums", "ones", "places"),
)


def along_pixels(_: Scope, x: Any, how: str) -> Any:
    """What mixes pixels and leaves channels alone."""
    b, h, w, c = x.shape
    if how == "cumsum":
        return jnp.cumsum(x, axis=1) / h
    if how == "associative scan":
        return lax.associative_scan(jnp.add, x, axis=2) / w
    if how == "sort":
        return jnp.sort(x, axis=1)
    if how == "dynamic slice":
        start = (x[0, 0, 0, 0] > 0).astype(jnp.int32)
        part = lax.dynamic_slice_in_dim(jnp.concatenate([x, x], axis=1), start, h, axis=1)
        return part + x
    if how == "take":
        return jnp.take(x, jnp.arange(w)[::-1], axis=2)
    if how == "take along":
        index = np.random.default_rng(h).permuted(np.tile(np.arange(h)[:, None], (1, w)), axis=0)
        return jnp.take_along_axis(x, jnp.asarray(index).reshape(1, h, w, 1), axis=1)
    if how == "chosen pixels":
        rows = jnp.argsort(x.mean(-1), axis=1)
        return jnp.take_along_axis(x, rows[..., None], axis=1)
    if how == "fft":
        return jnp.fft.ifft2(jnp.fft.fft2(x, axes=(1, 2)) * (1 + 0.5j), axes=(1, 2)).real
    if how == "update":
        return lax.dynamic_update_slice(x, 2 * x[:, :1], (0, h - 1, 0, 0))
    if how == "resize":
        return jax.image.resize(jax.image.resize(x, (b, h, w + 1, c), "bilinear"), x.shape, "linear")
    if how == "max pool":
        return lax.reduce_window(jnp.tanh(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    if how == "mean pool":
        return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME") / 4
    if how == "shifts":
        return sum(jnp.pad(x, ((0, 0), (i, 1 - i), (0, 0), (0, 0)))[:, :h] for i in range(2))
    if how == "named":
        return lax.optimization_barrier(checkpoint_name(x, "stream"))
    if how == "stopped":
        return x + lax.stop_gradient(jnp.tanh(x))
    if how == "reduced":
        return jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape) + x
    if how == "bits":
        return x + lax.bitcast_convert_type(lax.bitcast_convert_type(lax.stop_gradient(x), jnp.int64), jnp.float64)
    if how == "named axis":
        return jax.vmap(lambda one: one - lax.pmean(one, "rows"), in_axes=1, out_axes=1, axis_name="rows")(x)
    if how == "shards":
        mesh, spec = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)), jax.P("batch")
        return jax.shard_map(lambda x: x - lax.pmean(x, "batch").mean(), mesh=mesh, in_specs=spec, out_specs=spec)(x)
    if how == "columns first":
        return jnp.stack(jnp.unstack(x, axis=2), axis=1).swapaxes(1, 2)
    raise ValueError(how)


PIXELS = (
    *("cumsum", "associative scan", "sort", "dynamic slice", "take", "take along", "chosen pixels", "fft", "update"),
    *("resize", "max pool", "mean pool", "shifts", "named", "stopped", "reduced", "bits", "named axis", "shards"),
    "columns first",
)


# Convolutions and normalised parameters.


def convolution(s: Scope, x: Any, width: int, how: str, after: str) -> Any:
    b, h, w, c = x.shape
    if how == "strided":
        y = conv(s, x, width, stride=2)
        return AFTER[after](s, jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)[:, :h, :w])
    if how == "depthwise":
        return AFTER[after](s, conv(s, x, c, groups=c))
    if how == "depthwise, two each":
        return AFTER[after](s, conv(s, x, 2 * c, groups=c))
    if how == "grouped":
        return AFTER[after](s, conv(s, project(s, x, 6, after), 2 * width, groups=2))
    if how == "transposed":
        (kernel,) = s("transposed", kernel=(2, 2, width, c))
        y = lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=NHWC, transpose_kernel=True)
        return AFTER[after](s, y[:, ::2, ::2] + y[:, 1::2, 1::2])
    if how == "dilated":
        (kernel,) = s("dilated", kernel=(2, 2, c, width))
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=NHWC)
        return AFTER[after](s, y)
    if how == "of tokens":
        (kernel,) = s("line", kernel=(3, c, width))
        y = lax.conv_general_dilated(
            x.reshape(b, h * w, c), kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return AFTER[after](s, y.reshape(b, h, w, width))
    if how == "channels first":
        (kernel,) = s("first", kernel=(width, c, 3, 3))
        y = lax.conv_general_dilated(jnp.moveaxis(x, -1, 1), kernel, (1, 1), "SAME")
        return AFTER[after](s, jnp.moveaxis(y, 1, -1))
    if how == "standardised":
        (kernel,) = s("standardised", kernel=(3, 3, c, width))
        mean, var = kernel.mean((0, 1, 2), keepdims=True), kernel.var((0, 1, 2), keepdims=True)
        kernel = (kernel - mean) * lax.rsqrt(var + 1e-4)
    elif how == "normalised":
        kernel, scale = s("normalised", kernel=(3, 3, c, width), scale=(width,))
        norm = jnp.sqrt(jnp.square(kernel).sum((0, 1, 2), keepdims=True) + 1e-6)
        kernel = kernel / norm * scale.reshape(1, 1, 1, -1)
    elif how == "spectral":
        kernel, left = s("spectral", kernel=(3, 3, c, width), left=(width,))
        flat = kernel.reshape(-1, width)
        right = l2_norm(s, flat @ l2_norm(s, left))
        kernel = kernel / (right @ flat @ l2_norm(s, left))
    elif how == "scaled":
        (kernel,) = s("scaled", kernel=(3, 3, c, width))
        kernel = kernel * math.sqrt(2 / (9 * c))
    elif how == "modulated":
        (kernel,) = s("modulated", kernel=(3, 3, c, width))
        style = 1 + dense(s, x.mean((1, 2)), c, bias=True)
        kernels = kernel[None] * style[:, None, None, :, None]
        kernels = kernels * lax.rsqrt(jnp.square(kernels).sum((1, 2, 3), keepdims=True) + 1e-8)
        flat = x.transpose(1, 2, 0, 3).reshape(1, h, w, b * c)
        packed = kernels.transpose(1, 2, 3, 0, 4).reshape(3, 3, c, b * width)
        y = lax.conv_general_dilated(flat, packed, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=b)
        return AFTER[after](s, y.reshape(h, w, b, width).transpose(2, 0, 1, 3))
    else:
        return AFTER[after](s, conv(s, x, width))
    return AFTER[after](s, lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC))


CONVOLUTIONS = (
    *("plain", "strided", "depthwise", "depthwise, two each", "grouped", "transposed", "dilated", "of tokens"),
    *("channels first", "standardised", "normalised", "spectral", "scaled", "modulated"),
)


def squeeze_excite(s: Scope, x: Any, hidden: int, bias: bool) -> Any:
    gate = jax.nn.relu(dense(s, x.mean((1, 2), keepdims=True), hidden, bias))
    return x * jax.nn.sigmoid(dense(s, gate, x.shape[-1], bias))


def feed_forward(s: Scope, x: Any, hidden: int, how: str, after: str) -> Any:
    c = x.shape[-1]
    if how == "gated":
        return dense(s, jax.nn.silu(project(s, x, hidden, after)) * project(s, x, hidden, after), c)
    if how == "joined gate":
        return dense(s, jax.nn.glu(project(s, x, 2 * hidden, after)), c)
    if how == "tied":
        (kernel,) = s("tied", kernel=(c, hidden))
        return jax.nn.relu(AFTER[after](s, x @ kernel)) @ kernel.T
    if how == "tokens":
        b, h, w, _ = x.shape
        tokens = x.reshape(b, h * w, c).swapaxes(1, 2)
        return dense(s, jax.nn.gelu(project(s, tokens, hidden, after)), h * w).swapaxes(1, 2).reshape(x.shape)
    if how == "layer scale":
        y = dense(s, jax.nn.gelu(project(s, x, hidden, after)), c)
        (scale,) = s("gamma", scale=s.vector(c, x.ndim))
        return x + s.meet(jnp.multiply, y, scale)
    return dense(s, jax.nn.gelu(project(s, x, hidden, after)), c, bias=True)


def normed(s: Scope, x: Any, norm: str, after: str) -> Any:
    return AFTER[after](s, NORMS[norm](s, x))


# Streams that several norms read.


def pre_activation(s: Scope, x: Any, inner: int, norm: str, shortcut: str) -> Any:
    """A residual block whose norm comes first; the shortcut reads the raw stream or what the norm gives."""
    c = x.shape[-1]
    active = jax.nn.relu(NORMS[norm](s, x))
    y = jax.nn.relu(NORMS[norm](s, conv(s, active, inner)))
    if shortcut == "identity":
        return x + conv(s, y, c)
    if shortcut == "wider":
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 2))) + conv(s, y, c + 2)
    return conv(s, x if shortcut == "raw" else active, c + 1, size=1) + conv(s, y, c + 1)


def dense_block(s: Scope, x: Any, growth: int, norm: str, last: bool) -> Any:
    for _ in range(2):
        x = jnp.concatenate([x, conv(s, jax.nn.relu(NORMS[norm](s, x)), growth)], axis=-1)
    return jax.nn.relu(NORMS[norm](s, x)) if last else x


def two_norms(s: Scope, x: Any, norm: str, other: str, how: str) -> Any:
    """Two norms read one stream."""
    a, b = NORMS[norm](s, x), NORMS[other](s, x)
    if how == "sum":
        return jax.nn.relu(a) + b
    if how == "convolutions":
        return conv(s, jax.nn.relu(a), 4) + conv(s, jnp.tanh(b), 4)
    if how == "joined":
        return jnp.concatenate([a, conv(s, b, 3)], axis=-1)
    return x + a


# Control flow and gathers.


def scanned_layers(s: Scope, x: Any, layers: int, hidden: int, norm: bool, remat: bool, out: str) -> Any:
    """Residual layers under a scan; the keys of their dropout are scanned too."""
    c = x.shape[-1]
    first, second, scale = s("scan", first=(layers, c, hidden), second=(layers, hidden, c), scale=(layers, c))
    keys = jax.random.split(s.random(), layers)

    def layer(x: Any, own: Any) -> tuple[Any, Any]:
        first, second, scale, key = own
        y = x * scale.reshape(1, 1, 1, -1) if norm else x
        y = jax.nn.gelu(y @ first)
        if s.train:
            y = jnp.where(jax.random.bernoulli(key, 0.8, y.shape), y / 0.8, 0)
        return x + y @ second, y

    last, inner = lax.scan(jax.checkpoint(layer) if remat else layer, x, (first, second, scale, keys))
    return last if out == "last" else jnp.concatenate([last, *inner], axis=-1)


def recurrent(s: Scope, x: Any, hidden: int, cell: str, gates: str) -> Any:
    """A scan over pixels as time."""
    b, h, w, c = x.shape
    number = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    (inward, around, bias) = s(
        "cell", inward=(c, number * hidden), around=(hidden, number * hidden), bias=(number * hidden,)
    )

    def parts(y: Any) -> Any:
        if gates == "split":
            return jnp.split(y, number, axis=-1)
        if gates == "outer":
            return jnp.unstack(y.reshape(b, number, hidden), axis=1)
        return jnp.unstack(y.reshape(b, hidden, number), axis=2)

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        old, memory = carry
        ins, outs = parts(x @ inward + bias[None]), parts(old @ around)
        if cell == "rnn":
            new = jnp.tanh(ins[0] + outs[0])
        elif cell == "gru":
            reset, update = jax.nn.sigmoid(ins[0] + outs[0]), jax.nn.sigmoid(ins[1] + outs[1])
            new = update * old + (1 - update) * jnp.tanh(ins[2] + reset * outs[2])
        else:
            i, f, g, o = (x + y for x, y in zip(ins, outs, strict=True))
            memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
            new = jax.nn.sigmoid(o) * jnp.tanh(memory)
        return (new, memory), new

    start = (jnp.zeros((b, hidden), x.dtype), jnp.zeros((b, hidden), x.dtype))
    _, y = lax.scan(step, start, x.reshape(b, h * w, c).swapaxes(0, 1))
    return y.swapaxes(0, 1).reshape(b, h, w, hidden)


def state_space(s: Scope, x: Any, inner: int, states: int, how: str) -> Any:
    """A selective state space layer, as in Mamba."""
    b, h, w, c = x.shape
    n = h * w
    y, gate = jnp.split(dense(s, x.reshape(b, n, c), 2 * inner), 2, axis=-1)
    (taps,) = s("taps", kernel=(3, 1, inner))
    how_conv = {"dimension_numbers": ("NWC", "WIO", "NWC"), "feature_group_count": inner}
    y = jax.nn.silu(lax.conv_general_dilated(y, taps, (1,), [(2, 0)], **how_conv))
    rates, skip = s("rates", rates=(inner, states), scale=(inner,))
    step = jax.nn.softplus(dense(s, dense(s, y, 2), inner, bias=True))
    into, out = jnp.split(dense(s, y, 2 * states), [states], axis=-1)
    decay = jnp.exp(-step[..., None] * jnp.exp(rates)[None, None])
    push = (step * y)[..., None] * into[:, :, None]
    if how == "scan":

        def advance(state: Any, now: Any) -> tuple[Any, Any]:
            state = now[0] * state + now[1]
            return state, (state * now[2][:, None]).sum(-1)

        turned = tuple(jnp.moveaxis(part, 1, 0) for part in (decay, push, out))
        _, z = lax.scan(advance, jnp.zeros((b, inner, states), x.dtype), turned)
        z = jnp.moveaxis(z, 0, 1)
    else:

        def combine(one: Any, two: Any) -> Any:
            return one[0] * two[0], two[0] * one[1] + two[1]

        _, state = lax.associative_scan(combine, (decay, push), axis=1)
        z = jnp.einsum("bnis,bns->bni", state, out)
    z = (z + y * skip[None, None]) * jax.nn.silu(gate)
    return dense(s, z, c).reshape(x.shape)


def loops(s: Scope, x: Any, how: str) -> Any:
    c = x.shape[-1]
    if how == "switch":
        kernels = [s("branch", kernel=(c, c))[0] for _ in range(3)]
        which = (x[0, 0, 0] > 0).sum().astype(jnp.int32) % 3
        return lax.switch(which, [lambda x, kernel=kernel: jnp.tanh(x @ kernel) for kernel in kernels], x)
    kernel, scale = s("loop", kernel=(c, c), scale=(c,))
    if how == "fori":
        return lax.fori_loop(0, 3, lambda i, y: jnp.tanh(x + y @ kernel / (i + 1)), x)
    if how == "rounds":
        rounds = lax.fori_loop(
            0,
            2,
            lambda i, all: lax.dynamic_update_index_in_dim(all, jnp.tanh(all[i] @ kernel), i + 1, 0),
            jnp.stack([x] * 3),
        )
        return rounds.sum(0)
    if how == "cond":
        return lax.cond(x.mean() > 0, lambda x: jnp.tanh(x @ kernel), lambda x: x * scale.reshape(1, 1, 1, -1), x)
    if how == "map":
        return lax.map(lambda row: jnp.tanh(row @ kernel), x)
    return lax.stop_gradient(lax.while_loop(lambda y: jnp.abs(y).max() > 1, lambda y: y / 2, x)) + x @ kernel


def experts(s: Scope, x: Any, number: int, hidden: int, how: str) -> Any:
    """A mixture of experts whose kernels are stacked."""
    b, h, w, c = x.shape
    tokens = x.reshape(b, h * w, c)
    first, second = s("experts", first=(number, c, hidden), second=(number, hidden, c))
    gates = jax.nn.softmax(dense(s, tokens, number), axis=-1)
    if how == "vmap":
        every = jax.vmap(lambda first, second: jax.nn.relu(tokens @ first) @ second)(first, second)
        return jnp.einsum("bne,ebnc->bnc", gates, every).reshape(x.shape)
    if how == "einsum":
        every = jnp.einsum("bneh,ehc->bnec", jax.nn.relu(jnp.einsum("bnc,ech->bneh", tokens, first)), second)
        return (gates[..., None] * every).sum(2).reshape(x.shape)
    best = gates.argmax(-1)
    if how == "one-hot":
        routed = jax.nn.one_hot(best, number, dtype=x.dtype) * gates
        inner = jax.nn.relu(jnp.einsum("bne,bnc,ech->bneh", routed, tokens, first))
        return jnp.einsum("bneh,ehc->bnc", inner, second).reshape(x.shape)
    if how == "gather":
        inner = jax.nn.relu(jnp.einsum("bnc,bnch->bnh", tokens, first[best]))
        return jnp.einsum("bnh,bnhc->bnc", inner, second[best]).reshape(x.shape)
    if how == "ragged" and b > 1:  # JAX cannot map it over a batch
        sizes = jnp.array([b * h * w - (number - 1), *[1] * (number - 1)], jnp.int32)
        inner = jax.nn.relu(lax.ragged_dot(tokens.reshape(-1, c), first, sizes))
        return lax.ragged_dot(inner, second, sizes).reshape(x.shape)
    total = jnp.zeros_like(tokens)
    for i in range(number):
        total = total + gates[..., i : i + 1] * (jax.nn.relu(tokens @ first[i]) @ second[i])
    return total.reshape(x.shape)


def graph_layer(s: Scope, x: Any, width: int, how: str) -> Any:
    """Messages along fixed edges between pixels."""
    b, h, w, c = x.shape
    n = h * w
    rng = np.random.default_rng(n)
    source, target = rng.integers(0, n, (2, 2 * n))
    nodes = x.reshape(b, n, c)
    messages = jax.nn.relu(dense(s, jnp.concatenate([nodes[:, source], nodes[:, target]], axis=-1), width))
    if how == "segment_sum":
        total = jax.vmap(lambda part: jax.ops.segment_sum(part, target, n))(messages)
    elif how == "segment_max":
        total = jnp.nan_to_num(jax.vmap(lambda part: jax.ops.segment_max(part, target, n))(messages), neginf=0.0)
    elif how == "at add":
        total = jnp.zeros((b, n, width), x.dtype).at[:, target].add(messages)
    else:
        total = jnp.einsum("ne,bec->bnc", jax.nn.one_hot(target, n, axis=0, dtype=x.dtype), messages)
    return jnp.concatenate([nodes, total], axis=-1).reshape(b, h, w, -1)


def embedding(s: Scope, x: Any, width: int, how: str) -> Any:
    """Tokens looked up, or a table that is there and back."""
    b, h, w, c = x.shape
    tokens = s.tokens[:b]
    (table,) = s("embedding", table=(7, width))
    if how == "gather":
        found = table[tokens]
    elif how == "take":
        found = jnp.take(table, tokens, axis=0, mode="clip") * math.sqrt(width)
    elif how == "one-hot":
        found = jax.nn.one_hot(tokens, 7, dtype=x.dtype) @ table
    elif how == "tied":
        logits = dense(s, x.reshape(b, h * w, c), width) @ table.T
        found = jax.nn.softmax(logits, axis=-1) @ table
    elif how == "nearest":
        y = dense(s, x.reshape(b, h * w, c), width)
        distance = jnp.square(y[:, :, None] - table[None, None]).sum(-1)
        found = y + lax.stop_gradient(table[distance.argmin(-1)] - y)
    else:
        (places,) = s("places", table=(8, width))
        found = table[tokens] + places[None, : tokens.shape[1]]
    pooled = found.mean(1)[:, None, None]
    if width == c:
        return x + pooled
    return jnp.concatenate([x, jnp.broadcast_to(pooled, (b, h, w, width))], axis=-1)


def class_token(s: Scope, x: Any, how: str) -> Any:
    b, h, w, c = x.shape
    (token,) = s("class", token=(1, 1, c))
    tokens = jnp.concatenate([jnp.broadcast_to(token, (b, 1, c)), x.reshape(b, h * w, c)], axis=1)
    (places,) = s("position", table=(1, h * w + 1, c))
    tokens = tokens + places
    mixed = tokens + jnp.tril(jnp.ones((h * w + 1,) * 2))[None] @ tokens / (h * w)
    return mixed[:, 1:].reshape(x.shape) if how == "rest" else x + mixed[:, :1, None]


def towers(s: Scope, x: Any, number: int, width: int, how: str) -> Any:
    """Stacked kernels side by side."""
    c = x.shape[-1]
    (kernel,) = s("towers", kernel=(number, c, width))
    every = jax.vmap(lambda kernel: jax.nn.relu(x @ kernel), out_axes=3)(kernel)
    if how == "mean":
        return every.mean(3)
    if how == "max":
        return largest(every, 3)
    return every.reshape(*x.shape[:3], -1) if how == "joined" else every.swapaxes(3, 4).reshape(*x.shape[:3], -1)


# Random numbers, and derivatives of their own.


def noise(s: Scope, x: Any, how: str) -> Any:
    """What training draws; evaluation passes."""
    if how == "variational":
        mean, log_var = jnp.split(dense(s, x, 8), 2, axis=-1)
        return mean + jnp.exp(0.1 * log_var) * jax.random.normal(s.random(), mean.shape, x.dtype) if s.train else mean
    b, h, w, c = x.shape
    strength = s("strength", scale=(c,))[0] if how == "of pixels" else None
    if not s.train:
        return x
    key = s.random()
    if how == "gaussian":
        return x + 0.1 * jax.random.normal(key, x.shape, x.dtype)
    if how == "of channels":
        return x * (1 + 0.1 * jax.random.normal(key, (1, 1, 1, c), x.dtype))
    if how == "of pixels":
        return x + strength.reshape(1, 1, 1, -1) * jax.random.normal(key, (b, h, w, 1), x.dtype)
    if how == "gumbel":
        return x + 0.1 * jax.random.gumbel(key, x.shape, x.dtype)
    shape = {"dropout": x.shape, "of maps": (b, 1, 1, c), "of paths": (b, 1, 1, 1)}[how]
    return jnp.where(jnp.broadcast_to(jax.random.bernoulli(key, 0.7, shape), x.shape), x / 0.7, 0)


@jax.custom_vjp
def straight_through(x: Any) -> Any:
    return jnp.round(2 * x) / 2


straight_through.defvjp(lambda x: (jnp.round(2 * x) / 2, x), lambda x, g: (g * (jnp.abs(x) < 2),))


@jax.custom_vjp
def scaled_product(x: Any, kernel: Any) -> Any:
    return x @ kernel


scaled_product.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda saved, g: (2 * g @ saved[1].T, jnp.einsum("bhwi,bhwo->io", saved[0], g)),
)


@jax.custom_jvp
def leaky(x: Any) -> Any:
    return jnp.where(x > 0, x, 0.1 * x)


leaky.defjvp(lambda primals, tangents: (leaky(*primals), tangents[0] * jax.nn.sigmoid(primals[0])))


def own_derivative(s: Scope, x: Any, how: str) -> Any:
    if how == "straight through":
        return x + straight_through(jnp.tanh(x) * 3.3)
    if how == "product":
        return scaled_product(x, *s("own", kernel=(x.shape[-1], 5)))
    return leaky(x)


def activation(_: Scope, x: Any, how: str) -> Any:
    return jax.nn.softmax(x, axis=-1) if how == "softmax" else getattr(jax.nn, how)(x)


_few, _flag = st.integers(2, 3), st.booleans()
_width, _after = st.integers(3, 5), st.sampled_from(sorted(AFTER))
_order, _norm = st.sampled_from(["channels last", "channels first"]), st.sampled_from(sorted(NORMS))
_direct = {"each": _few, "after": _after, "direct": _flag}
FORMS: dict[str, tuple[Callable[..., Any], dict[str, st.SearchStrategy[Any]]]] = {
    "attention": (
        attention,
        {
            "heads": _few,
            "each": st.sampled_from([2, 4]),
            "fused": st.sampled_from(FUSED),
            "split": st.sampled_from(SPLITS),
            "rotary": st.sampled_from(["none", "halves", "turned halves", "strides", "pairs"]),
            "mask": st.sampled_from(["none", "causal", "bias", "slopes"]),
            "constant": _flag,
            "after": _after,
        },
    ),
    "grouped_queries": (
        grouped_queries,
        {
            "heads": _few,
            "repeats": _few,
            "each": _few,
            "how": st.sampled_from(["repeat", "tile", "broadcast", "reshape"]),
            "cache": st.sampled_from(["none", "update", "set"]),
            "after": _after,
        },
    ),
    "pixel_shuffle": (pixel_shuffle, {"order": _order} | _direct),
    "pixel_unshuffle": (
        pixel_unshuffle,
        {"width": _width, "order": st.sampled_from(["channels last", "channels first", "slices"]), "after": _after},
    ),
    "shuffle_along": (shuffle_along, {"each": _few, "after": _after}),
    "maps_from_dense": (maps_from_dense, {"width": _few, "order": _order, "after": _after}),
    "flattened": (flattened, {"width": _width, "order": _order, "after": _after}),
    "group_norm": (
        group_norm,
        {"groups": _few, "how": st.sampled_from(["centred", "fast", "grouped scale"])} | _direct,
    ),
    "channel_shuffle": (
        channel_shuffle,
        {"groups": _few, "how": st.sampled_from(["(g, c)", "(g, -1)", "(c, g)"])} | _direct,
    ),
    "pairs": (
        pairs,
        {"how": st.sampled_from(["maxout", "maxout of halves", "gate", "turned", "normed", "interleaved", "stacked"])}
        | _direct,
    ),
    "factorised": (factorised, {"how": st.sampled_from(["3 4, 4 3", "2 6, 6 2", "3 4, 2 6"]), "after": _after}),
    "block_diagonal": (
        block_diagonal,
        {"groups": _few, "how": st.sampled_from(["einsum", "flat", "loop", "vmap"])} | _direct,
    ),
    "windows": (windows, {"shift": _flag, "after": _after}),
    "rows_as_channels": (rows_as_channels, {"width": _few, "after": _after}),
    "sliced": (sliced, {"how": st.sampled_from(SLICES), "after": _after}),
    "constants": (constants, {"how": st.sampled_from(CONSTANTS), "after": _after}),
    "along_pixels": (along_pixels, {"how": st.sampled_from(PIXELS)}),
    "convolution": (convolution, {"width": _width, "how": st.sampled_from(CONVOLUTIONS), "after": _after}),
    "squeeze_excite": (squeeze_excite, {"hidden": _few, "bias": _flag}),
    "feed_forward": (
        feed_forward,
        {
            "hidden": _width,
            "how": st.sampled_from(["plain", "gated", "joined gate", "tied", "tokens", "layer scale"]),
            "after": _after,
        },
    ),
    "normed": (normed, {"norm": _norm, "after": _after}),
    "pre_activation": (
        pre_activation,
        {"inner": _width, "norm": _norm, "shortcut": st.sampled_from(["identity", "wider", "raw", "active"])},
    ),
    "dense_block": (dense_block, {"growth": _few, "norm": _norm, "last": _flag}),
    "two_norms": (
        two_norms,
        {"norm": _norm, "other": _norm, "how": st.sampled_from(["sum", "convolutions", "joined", "on top"])},
    ),
    "scanned_layers": (
        scanned_layers,
        {
            "layers": _few,
            "hidden": _width,
            "norm": _flag,
            "remat": _flag,
            "out": st.sampled_from(["last", "all"]),
        },
    ),
    "recurrent": (
        recurrent,
        {
            "hidden": _width,
            "cell": st.sampled_from(["rnn", "gru", "lstm"]),
            "gates": st.sampled_from(["split", "outer", "inner"]),
        },
    ),
    "state_space": (
        state_space,
        {"inner": _width, "states": _few, "how": st.sampled_from(["scan", "associative scan"])},
    ),
    "loops": (loops, {"how": st.sampled_from(["switch", "fori", "rounds", "cond", "map", "while"])}),
    "experts": (
        experts,
        {
            "number": _few,
            "hidden": _width,
            "how": st.sampled_from(["vmap", "einsum", "one-hot", "gather", "ragged", "unrolled"]),
        },
    ),
    "graph_layer": (
        graph_layer,
        {"width": _width, "how": st.sampled_from(["segment_sum", "segment_max", "at add", "one-hot"])},
    ),
    "embedding": (
        embedding,
        {"width": _width, "how": st.sampled_from(["gather", "take", "one-hot", "tied", "nearest", "places"])},
    ),
    "class_token": (class_token, {"how": st.sampled_from(["rest", "alone"])}),
    "towers": (towers, {"number": _few, "width": _few, "how": st.sampled_from(["mean", "max", "joined", "turned"])}),
    "noise": (
        noise,
        {
            "how": st.sampled_from(
                ["dropout", "of maps", "of paths", "gaussian", "of channels", "of pixels", "gumbel", "variational"]
            )
        },
    ),
    "own_derivative": (own_derivative, {"how": st.sampled_from(["straight through", "product", "leaky"])}),
    "activation": (
        activation,
        {"how": st.sampled_from(["relu", "gelu", "silu", "tanh", "sigmoid", "elu", "softmax", "relu6"])},
    ),
}
