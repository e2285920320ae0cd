"""Random programs: forms one after the other, each perhaps with a shortcut around it and a transform over it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from forms import FORMS, VECTORS, Scope, batch_norm, conv, dense, layer_norm
from hypothesis import strategies as st

Form = Callable[[Scope, Any], Any]


# Shortcuts: how a form takes part in the stream.


def residual(form: Form, s: Scope, x: Any) -> Any:
    y = form(s, x)
    if y.shape[:3] != x.shape[:3]:
        return y
    return y + (x if y.shape == x.shape else conv(s, x, y.shape[-1], size=1))


def normed_first(form: Form, s: Scope, x: Any) -> Any:
    """A pre-activation block; its shortcut reads the raw stream."""
    y = form(s.inside("inner"), jax.nn.relu(batch_norm(s, x)))
    return x + y if y.shape == x.shape else conv(s, x, 4, size=1) + conv(s, y, 4, size=1)


def prepared(form: Form, s: Scope, x: Any) -> Any:
    """A transformer's block."""
    y = form(s.inside("inner"), layer_norm(s, x, fast=True))
    return x + dense(s, y, x.shape[-1])


def joined(form: Form, s: Scope, x: Any) -> Any:
    return jnp.concatenate([x, form(s, x)], axis=-1)


def behind(form: Form, s: Scope, x: Any) -> Any:
    """The form sees some of the channels."""
    y = form(s, x[..., :4])
    return jnp.concatenate([y, x[..., 4:]], axis=-1)


def twice(form: Form, s: Scope, x: Any) -> Any:
    """Shared parameters: on what came out where that fits, else on the turned input."""
    y = form(s.inside("twice"), x)
    again = form(s.inside("twice"), y if y.shape == x.shape else x[:, ::-1])
    return again if y.shape == x.shape else y + again


def gated(form: Form, s: Scope, x: Any) -> Any:
    y = form(s, x)
    return y * jax.nn.sigmoid(dense(s, x, y.shape[-1], bias=True))


SHORTCUTS: dict[str, Callable[[Form, Scope, Any], Any]] = {
    "none": lambda form, s, x: form(s, x),
    "residual": residual,
    "normed first": normed_first,
    "prepared": prepared,
    "joined": joined,
    "behind": behind,
    "twice": twice,
    "gated": gated,
}


# Transforms: a function (variables, key, x) -> (y, new statistics) that a form is run by.


def backward_twice(run: Callable[..., Any]) -> Callable[..., Any]:
    """A derivative of its own: twice the true one."""
    wrapped = jax.custom_vjp(run)

    def double(leaf: Any) -> Any:
        return leaf if leaf.dtype == jax.dtypes.float0 else 2 * leaf

    wrapped.defvjp(lambda *args: jax.vjp(run, *args), lambda pull, g: jax.tree.map(double, pull(g)))
    return wrapped


def each_alone(run: Callable[..., Any]) -> Callable[..., Any]:
    """Under vmap over the batch."""

    def alone(variables: Any, key: Any, x: Any) -> Any:
        return jax.vmap(lambda one: run(variables, key, one[None])[0][0])(x), {}

    return alone


TRANSFORMS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "plain": lambda run: run,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "custom_vjp": backward_twice,
    "vmap": each_alone,
}
Part = tuple[str, dict[str, Any], str, str]
HEADS = ("pooled", "flat", "hidden", "tokens", "features", "normed")


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A stem, some parts, and a head."""

    parts: tuple[Part, ...]
    head: str = "pooled"
    vectors: str = "(c,)"
    typed: bool = True
    """Whether the key is a typed one or two numbers."""
    own_key: bool = False
    """Whether the variables hold a key, that takes the place of the input, and a leaf that no mode reads."""
    width: int = 6
    size: int = 4
    seed: int = 0

    def init(self) -> dict[str, Any]:
        """Random variables, with statistics and scales as generic as trained ones."""
        made: dict[str, Any] = {"params": {}, "batch_stats": {}}
        if self.own_key:
            made["state"] = {"key": jax.random.key(self.seed), "unread": np.ones((3, self.width))}
        rng = np.random.default_rng(self.seed)
        jax.eval_shape(lambda key, inputs: self._forward(made, key, inputs, False, rng)[0], self.key(), self.inputs(1))
        return made

    def inputs(self, batch: int = 2) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed + batch)
        image = rng.normal(size=(batch, self.size, self.size, 3))
        return {"image": image, "tokens": rng.integers(0, 7, (batch, 5))}

    def key(self) -> Any:
        return jax.random.key(self.seed) if self.typed else jax.random.PRNGKey(self.seed)

    def __call__(self, variables: Any, key: Any, inputs: Any, train: bool = False) -> Any:
        """Outputs, and in training the new statistics beside them."""
        out, stats = self._forward(variables, key, inputs, train)
        return (out, {"batch_stats": stats}) if train else out

    def _forward(
        self, variables: Any, key: Any, inputs: Any, train: bool, rng: np.random.Generator | None = None
    ) -> tuple[Any, dict[str, Any]]:
        key = variables["state"]["key"] if self.own_key else key
        s = Scope(variables, key, inputs["tokens"], train=train, vectors=self.vectors, rng=rng)
        x = jax.nn.relu(batch_norm(s, conv(s, inputs["image"], self.width)))
        for number, part in enumerate(self.parts):
            if x.shape[-1] > 16:
                x = dense(s, x, self.width)
            x, stats = self._part(s, number, part, x)
            s.stats.update(stats)
        return self._head(s, x), s.stats

    def _part(self, s: Scope, number: int, part: Part, x: Any) -> tuple[Any, dict[str, Any]]:
        name, options, shortcut, transform = part
        form = functools.partial(SHORTCUTS[shortcut], functools.partial(_run, name, options))
        train = s.train and transform != "vmap"  # statistics are those of the whole batch

        def run(variables: Any, key: Any, x: Any) -> tuple[Any, dict[str, Any]]:
            own = s.inside(f"{number}_{name}", variables=variables, key=key, train=train, stats={})
            return form(own, x), own.stats

        return (run if s.rng is not None else TRANSFORMS[transform](run))(s.variables, s.random(), x)

    def _head(self, s: Scope, x: Any) -> Any:
        b = x.shape[0]
        if self.head == "flat":
            return dense(s, x.reshape(b, -1), 3, bias=True)
        if self.head == "hidden":
            y = jax.nn.relu(batch_norm(s, dense(s, x.reshape(b, -1), 5)))
            return dense(s, y, 3, bias=True)
        if self.head == "tokens":
            (table,) = s("embedding", table=(7, x.shape[-1]))
            return x.reshape(b, -1, x.shape[-1]) @ table.T
        if self.head == "features":
            y = dense(s, x, 4)
            return {"logits": dense(s, y.mean((1, 2)), 3), "features": y}
        x = layer_norm(s, x) if self.head == "normed" else x
        return dense(s, x.mean((1, 2)), 3, bias=True)


def _run(name: str, options: dict[str, Any], s: Scope, x: Any) -> Any:
    return FORMS[name][0](s, x, **options)


def parts() -> st.SearchStrategy[Part]:
    shortcuts = st.sampled_from([*["none"] * 4, *SHORTCUTS])
    transforms = st.sampled_from([*["plain"] * 6, *TRANSFORMS])
    return st.one_of(
        [
            st.tuples(st.just(name), st.fixed_dictionaries(options), shortcuts, transforms)
            for name, (_, options) in FORMS.items()
        ]
    )


def programs(most: int = 4) -> st.SearchStrategy[Program]:
    return st.builds(
        Program,
        st.lists(parts(), min_size=1, max_size=most).map(tuple),
        st.sampled_from(HEADS),
        st.sampled_from(VECTORS),
        st.booleans(),
        st.booleans(),
        st.sampled_from([4, 6, 8]),
        st.sampled_from([2, 4]),
        st.integers(0, 999),
    )
