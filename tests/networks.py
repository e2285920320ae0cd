"""Random networks: plain functions of `{"params": ..., "batch_stats": ...}` that take all widths from the parameters.

A `Network` is data: a list of parts with their options. The same code makes the parameters and, later, reads them,
so a cut tree runs through the very function that the full one ran through.
"""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 12):  # a third of the time to compile; later versions have no such option
    QUICK_TO_COMPILE["xla_cpu_use_fusion_emitters"] = False
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "hard_swish": jax.nn.hard_swish,
}
JOINS = {"sum": jnp.add, "product": jnp.multiply, "max": jnp.maximum}


class Scope:
    """Hands out layers in call order: reads them from `variables`, or first makes them where `rng` is given."""

    def __init__(self, variables: dict[str, Any], rng: np.random.Generator | None = None) -> None:
        self.variables = variables
        self.rng = rng
        self.calls: collections.Counter[str] = collections.Counter()

    def __call__(self, kind: str, **shapes: tuple[int, ...]) -> list[Any]:
        layer = f"{kind}{self.calls[kind]}"
        self.calls[kind] += 1
        found = []
        for name, shape in shapes.items():
            home = "batch_stats" if name in ("mean", "var") else "params"
            if self.rng is not None:
                leaves = self.variables.setdefault(home, {}).setdefault(layer, {})
                leaves[name] = draw(self.rng, name, shape)
            found.append(self.variables[home][layer][name])
        return found


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers as generic as those of a trained network."""
    if name == "var":
        return rng.uniform(0.5, 2.0, shape)
    if name == "scale":
        return rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
    return np.asarray(rng.normal(size=shape) * (0.4 if len(shape) < 2 else 1 / np.sqrt(np.prod(shape[:-1]))))


def spread(vector: Any, ndim: int) -> Any:
    """A vector along the last of `ndim` axes."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def compiled(apply: Any) -> Any:
    """`apply`, quick to compile and run in 64 bits, so that tolerances can be tight."""
    jitted = jax.jit(apply, compiler_options=QUICK_TO_COMPILE)

    def run(variables: Any, images: Any) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(jitted(variables, images))

    return run


# Layers: what parts are made of.


def convolve(x: Any, kernel: Any, *, stride: int = 1, groups: int = 1, padding: Any = "SAME") -> Any:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=NHWC, feature_group_count=groups
    )


def conv(s: Scope, x: Any, width: int, size: int = 3, bias: bool = False, groups: int = 1, **how: Any) -> Any:
    shapes = {"kernel": (size, size, x.shape[-1] // groups, width)} | ({"bias": (width,)} if bias else {})
    kernel, *rest = s("conv", **shapes)
    y = convolve(x, kernel, groups=groups, **how)
    return y + spread(rest[0], 4) if rest else y


def dense(s: Scope, x: Any, width: int, bias: bool = True) -> Any:
    kernel, *rest = s("dense", kernel=(x.shape[-1], width), **({"bias": (width,)} if bias else {}))
    return x @ kernel + spread(rest[0], x.ndim) if rest else x @ kernel


def batch_norm(s: Scope, x: Any) -> Any:
    """As Flax computes it at inference, over the last axis."""
    shape = (x.shape[-1],)
    return normalise(x, *s("bn", scale=shape, bias=shape, mean=shape, var=shape))


def normalise(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
    factor = lax.rsqrt(spread(var, x.ndim) + 1e-5) * spread(scale, x.ndim)
    return (x - spread(mean, x.ndim)) * factor + spread(bias, x.ndim)


def norm_of(kernel: tuple[int, ...], *layers: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a kernel with the norm after it, perhaps stacked."""
    return {"kernel": (*layers, *kernel)} | dict.fromkeys(("scale", "bias", "mean", "var"), (*layers, kernel[-1]))


def conv_norm(s: Scope, x: Any, width: int, act: str = "leaky_relu", **how: Any) -> Any:
    return ACTIVATIONS[act](batch_norm(s, conv(s, x, width, **how)))


# Parts: (b, h, w, c) -> (b, h', w', c').


def activation(s: Scope, x: Any, act: str) -> Any:
    return ACTIVATIONS[act](batch_norm(s, x))


def residual(s: Scope, x: Any, project: bool, norm: bool, act: str) -> Any:
    width = x.shape[-1]
    y = batch_norm(s, conv(s, conv_norm(s, x, 4, act=act), width))
    if project:
        x = conv(s, x, width, size=1)
        x = batch_norm(s, x) if norm else x
    return ACTIVATIONS[act](x + y)


def pre_activation(s: Scope, x: Any, inner: int, act: str) -> Any:
    y = conv_norm(s, activation(s, x, act), inner)
    return x + conv(s, y, x.shape[-1])


def zero_padded_residual(s: Scope, x: Any, more: int) -> Any:
    """The parameter-free shortcut of CIFAR residual networks."""
    y = batch_norm(s, conv(s, x, x.shape[-1] + more))
    extra = y.shape[-1] - x.shape[-1]
    return jax.nn.leaky_relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2))))


def dense_block(s: Scope, x: Any, growth: int, layers: int) -> Any:
    for _ in range(layers):
        x = jnp.concatenate([x, conv(s, activation(s, x, "leaky_relu"), growth)], axis=-1)
    return activation(s, x, "leaky_relu")


def depthwise(s: Scope, x: Any, multiplier: int) -> Any:
    channels = x.shape[-1]
    (kernel,) = s("depthwise", kernel=(3, 3, 1, channels * multiplier))
    return jax.nn.leaky_relu(batch_norm(s, convolve(x, kernel, groups=channels)))


def grouped(s: Scope, x: Any, groups: int, each: int, out: int) -> Any:
    x = conv_norm(s, x, groups * each, size=1)
    return conv_norm(s, x, groups * out, groups=groups)


def multi_branch(s: Scope, x: Any, width: int, join: str) -> Any:
    """Convolutions of one input side by side, as in Inception; of equal ones, a stack can be summed too."""
    pooled = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    deep = conv_norm(s, x, 3, size=1)
    ways = [conv_norm(s, x, width, size=1), conv_norm(s, deep, width), conv_norm(s, pooled, width, size=1)]
    if join == "stack":
        return jnp.stack(ways, axis=1).sum(1)
    return jnp.concatenate(ways, axis=-1) if join == "concatenate" else functools.reduce(JOINS[join], ways)


def gated(s: Scope, x: Any, width: int, how: str) -> Any:
    y = batch_norm(s, conv(s, x, 2 * width))
    half = y.shape[-1] // 2
    if how == "split":
        value, gate = jnp.split(y, 2, axis=-1)
    elif how == "slices":
        value, gate = y[..., :half], y[..., half:]
    elif how == "strides":
        value, gate = y[..., ::2], y[..., 1::2]
    else:
        return jax.nn.glu(y)
    return value * jax.nn.sigmoid(gate)


def halved(s: Scope, x: Any, each: int, how: str) -> Any:
    """One half of the channels goes through a layer, the other one around it, as in ShuffleNet V2."""
    y = conv_norm(s, x, 2 * each)
    half = y.shape[-1] // 2
    if how == "split":
        around, through = jnp.split(y, 2, axis=-1)
    elif how == "slices":
        around, through = y[..., :half], y[..., half:]
    else:
        around, through = y[..., ::2], y[..., 1::2]
    return jnp.concatenate([around, conv_norm(s, through, 3)], axis=-1)


def squeeze_excite(s: Scope, x: Any, hidden: int) -> Any:
    gate = jax.nn.relu(dense(s, x.mean((1, 2)), hidden))
    gate = jax.nn.sigmoid(dense(s, gate, x.shape[-1]))
    return x * gate[:, None, None]


def attention(s: Scope, x: Any, heads: int, each: int, norm: bool) -> Any:
    """Over spatial positions; heads by reshaping."""
    b, h, w, _ = x.shape
    tokens = x.reshape(b, h * w, -1)

    def project() -> Any:
        y = dense(s, tokens, heads * each, bias=not norm)
        return (batch_norm(s, y) if norm else y).reshape(b, h * w, heads, -1)

    mixed = attend(project(), project(), project())
    return dense(s, mixed.reshape(b, h * w, -1), 4).reshape(b, h, w, -1)


def attend(q: Any, k: Any, v: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def head_attention(s: Scope, x: Any, heads: int, each: int) -> Any:
    """Over spatial positions, on top of the input; heads are an axis of the parameters."""
    b, h, w, c = x.shape
    tokens = x.reshape(b, h * w, c)
    q, k, v = (jnp.einsum("bnc,chd->bnhd", tokens, *s("project", kernel=(c, heads, each))) for _ in range(3))
    (out,) = s("out", kernel=(heads, each, c))
    return x + jnp.einsum("bnhd,hdc->bnc", attend(q, k, v), out).reshape(x.shape)


def packed_attention(s: Scope, x: Any, each: int) -> Any:
    """One head over spatial positions, on top of the input; query, key and value are one parameter, taken apart."""
    b, h, w, c = x.shape
    packed = jnp.einsum("bnc,ctd->bntd", x.reshape(b, h * w, c), *s("packed", kernel=(c, 3, each)))
    q, k, v = (part[:, :, None] for part in jnp.unstack(packed, axis=2))
    (out,) = s("out", kernel=(each, c))
    return x + (attend(q, k, v)[:, :, 0] @ out).reshape(x.shape)


def token_mixing(s: Scope, x: Any, hidden: int) -> Any:
    b, h, w, c = x.shape
    tokens = x.reshape(b, h * w, c).swapaxes(1, 2)
    mixed = dense(s, jax.nn.gelu(dense(s, tokens, hidden)), h * w)
    return x + mixed.swapaxes(1, 2).reshape(b, h, w, c)


def positions(s: Scope, x: Any, first: bool) -> Any:
    (table,) = s("positions", table=(1, *x.shape[1:]))
    return table + x if first else x + table


def pool(s: Scope, x: Any, how: str) -> Any:
    if x.shape[1] < 2:
        return x
    if how == "strides":
        h, w = (n // 2 * 2 for n in x.shape[1:3])
        return functools.reduce(jnp.maximum, [x[:, i:h:2, j:w:2] for i in range(2) for j in range(2)])
    window = ((1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    if how == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, *window)
    return lax.reduce_window(x, 0.0, lax.add, *window) / 4


def im2col(s: Scope, x: Any, width: int, how: str) -> Any:
    channels, h, w = x.shape[-1], *x.shape[1:3]
    (kernel,) = s("im2col", kernel=(3, 3, channels, width))
    if how == "shifts":
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = jnp.concatenate([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1)
        return activation(s, patches @ kernel.reshape(9 * channels, -1), "leaky_relu")
    patches = lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME", dimension_numbers=NHWC)
    return activation(s, patches @ kernel.transpose(2, 0, 1, 3).reshape(9 * channels, -1), "leaky_relu")


def shuffle(s: Scope, x: Any, groups: int, each: int) -> Any:
    x = conv_norm(s, x, groups * each)
    b, h, w, c = x.shape
    return x.reshape(b, h, w, groups, c // groups).swapaxes(3, 4).reshape(x.shape)


def channels_first(s: Scope, x: Any, width: int) -> Any:
    (kernel,) = s("conv", kernel=(width, x.shape[-1], 3, 3))
    y = lax.conv_general_dilated(x.transpose(0, 3, 1, 2), kernel, (1, 1), "SAME")
    return activation(s, y.transpose(0, 2, 3, 1), "leaky_relu")


def mirrored(s: Scope, x: Any, width: int) -> Any:
    y = batch_norm(s, conv(s, x, width))
    return jax.nn.leaky_relu(y + y[..., ::-1])


def repeated(s: Scope, x: Any, times: int, how: str) -> Any:
    """Each channel `times` times, next to one another and then twice one after the other.

    The convolution makes channels that can be cut. Repeats of fixed channels would make `times` count as a width.
    """
    x = conv_norm(s, x, 3)
    x = jnp.repeat(x, times, axis=-1)
    return jnp.tile(x, (1, 1, 1, 2)) if how == "tile" else jnp.concatenate([x, x], axis=-1)


def shared(s: Scope, x: Any, norm: bool) -> Any:
    """One convolution applied twice."""
    (kernel,) = s("conv", kernel=(3, 3, x.shape[-1], x.shape[-1]))
    y = convolve(x, kernel)
    return activation(s, convolve(activation(s, y, "leaky_relu") if norm else y, kernel), "leaky_relu")


def shared_layer(s: Scope, x: Any, width: int, how: str, act: str) -> Any:
    """One convolution with its norm, or one norm alone, applied twice."""
    c = x.shape[-1]
    kernel, *norm = s("shared", **norm_of((3, 3, c, c if how == "stacked" else width)))

    def layer(x: Any, kernel: Any = kernel) -> Any:
        return ACTIVATIONS[act](normalise(convolve(x, kernel), *norm))

    if how == "stacked":
        return layer(layer(x))
    if how == "joined":
        return jnp.concatenate([layer(x), layer(x[:, ::-1])], axis=-1)
    if how == "siamese":
        return layer(x) + layer(conv_norm(s, x, c))
    return layer(x) + layer(x, *s("shared", kernel=(3, 3, c, width)))


def tied(s: Scope, x: Any, width: int) -> Any:
    """One kernel there and, its axes swapped, back again."""
    kernel, *norm = s("tied", **norm_of((1, 1, x.shape[-1], width)))
    return x + convolve(jax.nn.relu(normalise(convolve(x, kernel), *norm)), kernel.swapaxes(2, 3))


def recurrent(s: Scope, x: Any, rounds: int) -> Any:
    """One convolution with its norm in every round of a scan."""
    kernel, *norm = s("recurrent", **norm_of((3, 3, x.shape[-1], x.shape[-1])))

    def step(h: Any, _: None) -> tuple[Any, None]:
        return jnp.tanh(x + normalise(convolve(h, kernel), *norm)), None

    return lax.scan(step, x, length=rounds)[0]


def scanned(s: Scope, x: Any, layers: int, act: str) -> Any:
    c = x.shape[-1]
    stacked = s("scan", **norm_of((3, 3, c, c), layers))

    def layer(x: Any, own: Any) -> tuple[Any, None]:
        kernel, *norm = own
        return x + convolve(ACTIVATIONS[act](normalise(x, *norm)), kernel), None

    return lax.scan(layer, x, stacked)[0]


def scanned_blocks(s: Scope, x: Any, layers: int, inner: int, remat: bool, reverse: bool, out: str) -> Any:
    """Residual blocks under `lax.scan`, perhaps each a remat layer; `out` is the last one's, or made of all layers'."""
    c = x.shape[-1]
    blocks = [s("scan", **norm_of(shape, layers)) for shape in ((3, 3, c, inner), (1, 1, inner, c))]

    def block(x: Any, own: Any) -> tuple[Any, Any]:
        y = x
        for kernel, *norm in own:
            y = jax.nn.leaky_relu(normalise(convolve(y, kernel), *norm))
        return x + y, y

    last, every = lax.scan(jax.checkpoint(block) if remat else block, x, blocks, reverse=reverse)
    if out == "joined":
        return jnp.moveaxis(every, 0, 3).reshape(*x.shape[:3], -1)
    return last if out == "last" else every.sum(0)


def scanned_last(s: Scope, x: Any, layers: int) -> Any:
    """As `nn.scan` with `variable_axes` of -1: layers are the last axis of the parameters."""
    c = x.shape[-1]
    stacked = s("scan", kernel=(3, 3, c, c, layers), **dict.fromkeys(("scale", "bias", "mean", "var"), (c, layers)))

    def layer(x: Any, own: Any) -> tuple[Any, None]:
        kernel, *norm = own
        return x + jax.nn.relu(normalise(convolve(x, kernel), *norm)), None

    return lax.scan(layer, x, [jnp.moveaxis(leaf, -1, 0) for leaf in stacked])[0]


def branches(s: Scope, x: Any, width: int) -> Any:
    (choice,) = s("branch", choice=())
    return lax.cond(choice > 0, lambda x: conv_norm(s, x, width), lambda x: conv_norm(s, x, width, act="tanh"), x)


def looped(s: Scope, x: Any, rounds: int) -> Any:
    (more,) = s("loop", more=())
    bound = rounds + (more > 0).astype(jnp.int32)
    return lax.fori_loop(0, bound, lambda _, x: jnp.tanh(2 * x), x)


def layer_norm(s: Scope, x: Any, fast: bool) -> Any:
    """`fast`: as Flax computes the variance, in one pass."""
    shape = (x.shape[-1],)
    scale, bias = s("ln", scale=shape, bias=shape)
    mean = x.mean(-1, keepdims=True)
    var = (x * x).mean(-1, keepdims=True) - mean * mean if fast else x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-5) * spread(scale, 4) + spread(bias, 4)


def channel_softmax(s: Scope, x: Any) -> Any:
    return jax.nn.softmax(batch_norm(s, x), axis=-1)


def ones_padded(s: Scope, x: Any, value: float) -> Any:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)
    return conv_norm(s, padded, 3, padding="VALID")


def sorted_channels(s: Scope, x: Any) -> Any:
    return jnp.sort(x, axis=-1)


def weighted_by_index(s: Scope, x: Any) -> Any:
    return x * spread(jnp.arange(x.shape[-1], dtype=x.dtype), 4)


_width, _act, _flag = st.integers(2, 5), st.sampled_from(sorted(ACTIVATIONS)), st.booleans()
_few = st.integers(2, 3)
PARTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "conv_norm": (conv_norm, {"width": _width, "act": _act, "bias": _flag, "stride": st.integers(1, 2)}),
    "conv": (conv, {"width": _width, "bias": _flag}),
    "activation": (activation, {"act": _act}),
    "residual": (residual, {"project": _flag, "norm": _flag, "act": _act}),
    "pre_activation": (pre_activation, {"inner": _width, "act": _act}),
    "zero_padded_residual": (zero_padded_residual, {"more": st.integers(0, 3)}),
    "dense_block": (dense_block, {"growth": _few, "layers": _few}),
    "depthwise": (depthwise, {"multiplier": st.integers(1, 2)}),
    "grouped": (grouped, {"groups": _few, "each": _few, "out": st.integers(1, 3)}),
    "multi_branch": (
        multi_branch,
        {"width": _width, "join": st.sampled_from(["concatenate", "stack", *sorted(JOINS)])},
    ),
    "gated": (gated, {"width": _width, "how": st.sampled_from(["split", "slices", "strides", "glu"])}),
    "halved": (halved, {"each": _width, "how": st.sampled_from(["split", "slices", "strides"])}),
    "squeeze_excite": (squeeze_excite, {"hidden": _width}),
    "attention": (attention, {"heads": st.integers(1, 3), "each": _few, "norm": _flag}),
    "head_attention": (head_attention, {"heads": _few, "each": _few}),
    "packed_attention": (packed_attention, {"each": _few}),
    "token_mixing": (token_mixing, {"hidden": _width}),
    "positions": (positions, {"first": _flag}),
    "pool": (pool, {"how": st.sampled_from(["strides", "max", "mean"])}),
    "im2col": (im2col, {"width": _width, "how": st.sampled_from(["shifts", "patches"])}),
    "shuffle": (shuffle, {"groups": _few, "each": _few}),
    "channels_first": (channels_first, {"width": _width}),
    "mirrored": (mirrored, {"width": _width}),
    "repeated": (repeated, {"times": _few, "how": st.sampled_from(["tile", "concatenate"])}),
    "shared": (shared, {"norm": _flag}),
    "shared_layer": (
        shared_layer,
        {"width": _width, "how": st.sampled_from(["stacked", "joined", "siamese", "norm"]), "act": _act},
    ),
    "tied": (tied, {"width": _width}),
    "recurrent": (recurrent, {"rounds": _few}),
    "scanned": (scanned, {"layers": _few, "act": _act}),
    "scanned_blocks": (
        scanned_blocks,
        {
            "layers": _few,
            "inner": _width,
            "remat": _flag,
            "reverse": _flag,
            "out": st.sampled_from(["last", "sum", "joined"]),
        },
    ),
    "scanned_last": (scanned_last, {"layers": _few}),
    "branches": (branches, {"width": _width}),
    "looped": (looped, {"rounds": _few}),
    "layer_norm": (layer_norm, {"fast": _flag}),
    "channel_softmax": (channel_softmax, {}),
    "ones_padded": (ones_padded, {"value": st.sampled_from([0.0, 1.0])}),
    "sorted_channels": (sorted_channels, {}),
    "weighted_by_index": (weighted_by_index, {}),
}
WRAPS = {"plain": lambda f: f, "jit": jax.jit, "remat": jax.checkpoint}
Part = tuple[str, dict[str, Any], str]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A stem, some parts, and a head: pooled or flattened, perhaps one hidden layer, three logits."""

    parts: tuple[Part, ...]
    flat: bool = False
    hidden: int = 0
    seed: int = 0
    size: int = 4

    def init(self) -> dict[str, Any]:
        """Random variables, with statistics and scales as generic as trained ones."""
        made: dict[str, Any] = {}
        rng = np.random.default_rng(self.seed)
        jax.eval_shape(lambda x: self._forward(Scope(made, rng), x), self.images(1).astype(np.float32))
        return made

    def images(self, batch: int = 2) -> np.ndarray:
        return np.random.default_rng(self.seed + 1).normal(size=(batch, self.size, self.size, 3))

    def __call__(self, variables: dict[str, Any], images: Any) -> Any:
        return self._forward(Scope(variables), images)

    def _forward(self, s: Scope, x: Any) -> Any:
        x = conv_norm(s, x, 4)
        for name, options, wrap in self.parts:
            part = functools.partial(PARTS[name][0], s, **options)
            x = WRAPS[wrap](part)(x)
        x = activation(s, x, "leaky_relu")
        x = x.reshape(len(x), -1) if self.flat else x.mean((1, 2))
        if self.hidden:
            x = jax.nn.leaky_relu(batch_norm(s, dense(s, x, self.hidden)))
        return dense(s, x, 3)


def parts() -> st.SearchStrategy[Part]:
    wraps = st.sampled_from([*["plain"] * 4, "jit", "remat"])
    return st.one_of(
        [st.tuples(st.just(name), st.fixed_dictionaries(options), wraps) for name, (_, options) in PARTS.items()]
    )


def networks() -> st.SearchStrategy[Network]:
    return st.builds(
        Network,
        st.lists(parts(), min_size=1, max_size=4).map(tuple),
        st.booleans(),
        st.sampled_from([0, 3]),
        st.integers(0, 999),
        st.sampled_from([4, 5]),
    )
