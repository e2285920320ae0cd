"""NNX modules as an `Adapted` runs them. Flax's NNX is imported for these alone."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxslim.slim.kinds.network import opposite, switches


class InNNX:
    """How an NNX module starts and runs."""

    def __init__(self, make: Callable[[Any], Any], module: nnx.Module) -> None:
        self._make, self.module = make, module
        self._graphdef, state = nnx.split(module)
        self._variables = nnx.to_flat_state(state)
        self._evaluation = switches(type(module).__call__, [module, None], {})

    def init(self, key: jax.Array, images: Any) -> Any:
        """See `Adapted.init`; the images decide nothing."""
        return _by_collection(nnx.to_flat_state(nnx.split(self._make(nnx.Rngs(key)))[1]))

    def apply(self, variables: Any, images: Any, train: bool, mutable: Any, rngs: dict[str, Any]) -> Any:
        """Outputs, and the collections `mutable` after the call. Random streams stay as they are."""
        held = []
        for number, (path, variable) in enumerate(self._variables):
            value = functools.reduce(lambda node, name: node[name], path, variables[_collection(variable)])
            if rngs and isinstance(variable, nnx.RngKey):
                value = _key_like(value, jax.random.fold_in(next(iter(rngs.values())), number))
            held.append((path, variable.replace(value)))
        module: Any = nnx.merge(self._graphdef, nnx.from_flat_state(held))
        if train:
            module.train()
        else:
            module.eval()
        out = module(images, **(opposite(self._evaluation) if train else self._evaluation))
        known = {path for path, _ in held}
        after = _by_collection([item for item in nnx.to_flat_state(nnx.state(module)) if item[0] in known])
        return out, {name: variables[name] if name == RANDOM else after[name] for name in mutable}


RANDOM = "rngs"
"""The collection of NNX's random streams."""


def _collection(variable: Any) -> str:
    kinds = {nnx.Param: "params", nnx.BatchStat: "batch_stats", nnx.RngState: RANDOM}
    return next((name for kind, name in kinds.items() if isinstance(variable, kind)), "state")


def _by_collection(variables: Any) -> dict[str, Any]:
    """Variables by path as nested dicts, one for each collection."""
    found: dict[str, Any] = {}
    for path, variable in variables:
        place = found.setdefault(_collection(variable), {})
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = variable[...]
    return found


def _key_like(old: Any, key: jax.Array) -> jax.Array:
    """A new key in the shape of the old ones."""
    return jax.random.split(key, old.shape) if old.shape else key
