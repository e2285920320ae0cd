"""Flax Linen modules: `module.apply(variables, *inputs, ...)`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.narrow import narrow
from jaxslim.core.plan import Plan
from jaxslim.errors import InputError
from jaxslim.slim.kinds.adapted import Adapted
from jaxslim.slim.kinds.network import Mode, Network, Plain, opposite, params, switches


class Narrow:
    """Stands for a Linen module after a cut: `apply` takes all that the module's takes, and the small variables."""

    def __init__(self, module: Any, graph: ChannelGraph, plan: Plan) -> None:
        self.full, self.graph, self.plan = module, graph, plan
        self._apply = narrow(module.apply, graph, plan)

    def apply(self, variables: Any, *inputs: Any, **arguments: Any) -> Any:
        """As `apply` of the full module, with `rngs`, `mutable`, `method` and the arguments of the module's call."""
        return self._apply(variables, *inputs, **arguments)

    @property
    def whole(self) -> Any:
        """The uncut module, below this and all earlier cuts."""
        return self.full.whole if isinstance(self.full, Narrow) else self.full

    def clone(self, **fields: Any) -> "Narrow":
        """The cut of a module with other `fields`, for example another dtype."""
        return Narrow(self.full.clone(**fields), self.graph, self.plan)

    def __repr__(self) -> str:
        return f"Narrow({type(self.full).__name__}, {self.plan!r})"


def network(
    module: Any, variables: Any, inputs: Sequence[Any], call: Mapping[str, Any], modes: Sequence[Mode] | None
) -> Network:
    """Describe a Linen module; its variables are what `init` returned, all collections together."""
    if variables is None:
        raise InputError(f"The variables of {type(module).__name__} are missing; pass all that its init returned.")
    own = module.whole if isinstance(module, Narrow) else module
    if isinstance(own, Adapted):
        found = switches(own.apply, [variables, *inputs], call)
    else:
        method = call.get("method") or "__call__"
        called = getattr(type(own), method, None) if isinstance(method, str) else method
        found = switches(called, [own, *inputs], call)
    flags = {name: value for name, value in found.items() if getattr(own, name, None) is None}  # else a field decides
    statistics = [collection for collection in variables if collection != "params"]

    def evaluation(module: Any) -> Mode:
        return lambda variables, *inputs: module.apply(variables, *inputs, **flags, **call)

    def training(variables: Any, *inputs: Any) -> Any:
        keys = {"params": jax.random.key(0)}  # Flax draws from these whatever has no keys of its own
        how: dict[str, Any] = {"rngs": keys, "mutable": statistics} | dict(call)
        return module.apply(variables, *inputs, **opposite(flags), **how)

    def rebuilt(small: Any) -> Plain | None:
        try:
            plain = module.resized(small)
            jax.eval_shape(evaluation(plain), small, *inputs)
        except Exception:  # there is no resized, or whatever it, Flax and JAX find wrong
            return None
        return Plain(plain, evaluation(plain))

    return Network(
        variables=variables,
        modes=tuple(modes or [evaluation(module), *([training] if flags else [])]),
        narrowed=lambda graph, plan, small: Narrow(module, graph, plan),
        trained=params,
        rebuilt=rebuilt,
    )
