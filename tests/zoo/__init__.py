"""A zoo of small networks, one file a family, each written from its paper. Every file has a tuple `NETWORKS`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jaxslim


@dataclasses.dataclass(frozen=True)
class Network:
    """One network, and how it is called."""

    name: str
    model: Any
    """What a user passes to `jaxslim.prune`: a Linen or NNX module, or a function `apply(variables, *inputs)`."""
    variables: Any
    """Trained-looking random arrays, as `apply` takes them; for NNX a state."""
    inputs: tuple[Any, ...]
    apply: Callable[..., Any]
    """Evaluation: `apply(variables, *inputs)` -> outputs."""
    train: Callable[..., Any] | None = None
    """Training with dropout: `train(variables, key, *inputs)` -> (outputs, new statistics)."""
    call: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the model's evaluation, for example `{"train": False}`."""
    stops: tuple[str, ...] = ()
    """Primitives that hold channels in this network although cutting them would make sense."""

    @property
    def modes(self) -> list[Callable[..., Any]]:
        """Evaluation, and training where there is one, as functions of the variables and inputs."""
        trained = self.train
        if trained is None:
            return [self.apply]
        return [self.apply, lambda variables, *inputs: trained(variables, jax.random.key(0), *inputs)]


def random_plan(graph: jaxslim.ChannelGraph, share: float, *, exact: bool) -> jaxslim.Plan:
    """A plan without a share of random units, or of the exact ones alone: then inexact ones stay."""
    scores = np.random.default_rng(0).random(graph.num_units + 1)
    if not exact:
        return jaxslim.plan(graph, scores, share)
    threshold = float(np.quantile(scores[graph.exact & graph.choosable], share))
    chosen = jaxslim.plan(graph, np.where(graph.exact, scores, np.inf), None, threshold=threshold)
    return jaxslim.Plan(keep=graph.survivors(chosen.keep | ~graph.exact))


def fitted(wanted: Any, got: Any, graph: jaxslim.ChannelGraph, plan: jaxslim.Plan) -> Any:
    """Outputs of the full network, of which new statistics are cut like the old ones."""
    if jax.tree.map(np.shape, wanted) == jax.tree.map(np.shape, got):
        return wanted
    outputs, statistics = wanted
    return outputs, jaxslim.cut(graph, statistics, plan)


def difference(wanted: Any, got: Any) -> float:
    """Largest difference of two trees of one structure, relative to the largest entry of each array."""
    found = []
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
            found.append(np.abs(one - other).max(initial=0) / np.abs(one).max(initial=1e-6))
    return float(max(found, default=0.0))


def linen(
    name: str,
    module: nn.Module,
    *inputs: Any,
    call: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    mutable: Sequence[str] = ("batch_stats",),
    rngs: Sequence[str] = ("dropout",),
    stops: Sequence[str] = (),
) -> Network:
    """A Linen network; `call` and `train` are keyword arguments of evaluation and of training (None: not tried)."""
    call = call or {}
    options = {name: value for name, value in call.items() if name != "mutable"}
    shapes = jax.eval_shape(lambda: module.init({"params": jax.random.key(0)}, *inputs, **options))
    variables = filled(shapes)

    def trained(variables: Any, key: Any, *inputs: Any) -> Any:
        return module.apply(variables, *inputs, **(train or {}), rngs=dict.fromkeys(rngs, key), mutable=list(mutable))

    return Network(
        name=name,
        model=module,
        variables=variables,
        inputs=inputs,
        apply=lambda variables, *inputs: module.apply(variables, *inputs, **call),
        train=None if train is None else trained,
        call=call,
        stops=tuple(stops),
    )


def nnx_network(name: str, model: nnx.Module, *inputs: Any, train: bool = True, stops: Sequence[str] = ()) -> Network:
    """An NNX network, its arrays perhaps abstract; its variables are its state. `key` seeds what draws dropout."""
    graphdef, state = nnx.split(model)
    state = filled(state)
    nnx.update(model, state)

    def apply(state: Any, *inputs: Any) -> Any:
        model = nnx.merge(graphdef, state)
        model.eval()
        return model(*inputs)

    def trained(state: Any, key: Any, *inputs: Any) -> Any:
        model = nnx.merge(graphdef, state)
        model.train()
        nnx.reseed(model, default=key, dropout=key)
        return model(*inputs), nnx.state(model, nnx.BatchStat)

    return Network(
        name=name,
        model=model,
        variables=state,
        inputs=inputs,
        apply=apply,
        train=trained if train else None,
        stops=tuple(stops),
    )


def plain(
    name: str,
    apply: Callable[..., Any],
    shapes: Any,
    *inputs: Any,
    train: Callable[..., Any] | None = None,
    stops: Sequence[str] = (),
) -> Network:
    """A plain function `apply(variables, *inputs)`; `shapes` is the tree of its variables with a shape at each leaf."""
    described = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )
    return Network(
        name=name,
        model=apply,
        variables=filled(described),
        inputs=inputs,
        apply=apply,
        train=train,
        stops=tuple(stops),
    )


def normal(*shape: int, seed: int = 1) -> jax.Array:
    """Images or features to run a network on."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(vocabulary: int, *shape: int, seed: int = 1) -> jax.Array:
    """Random token numbers below `vocabulary`."""
    return jnp.asarray(np.random.default_rng(seed).integers(vocabulary, size=shape), jnp.int32)


def filled(shapes: Any, seed: int = 0) -> Any:
    """Random numbers as generic as those of a trained network, by the name of each leaf; keys and integers stay."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/").lower()
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            fresh = jax.random.key(0) if key else jnp.zeros(leaf.shape, leaf.dtype)
            return leaf if isinstance(leaf, jax.Array) else fresh
        if "var" in name.split("/")[-2:][0] or name.endswith("var"):
            values = rng.uniform(0.5, 2.0, leaf.shape)
        elif len([n for n in leaf.shape if n > 1]) > 1:
            values = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        elif "scale" in name or "gamma" in name:
            values = rng.uniform(0.5, 1.5, leaf.shape) * rng.choice([-1, 1], leaf.shape)
        else:
            values = 0.4 * rng.normal(size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)
