"""Haiku's transformed functions: `apply(params, rng, *inputs)`, or with state `apply(params, state, rng, *inputs)`."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.narrow import narrow
from jaxslim.core.plan import Plan
from jaxslim.errors import InputError
from jaxslim.slim.kinds.network import Mode, Network, opposite, switches


def network(
    functions: Any, variables: Any, inputs: Sequence[Any], call: Mapping[str, Any], modes: Sequence[Mode] | None
) -> Network:
    """Describe transformed functions; the variables are the parameters, or the pair of parameters and state."""
    import haiku as hk

    stateful = isinstance(functions, hk.TransformedWithState)
    wanted = "the pair (params, state)" if stateful else "the params"
    if stateful != (isinstance(variables, tuple) and len(variables) == 2):
        raise InputError(f"The variables are not {wanted} that init returned; pass these.")
    takes_key = "rng" in inspect.signature(functions.apply).parameters  # not behind hk.without_apply_rng
    key = (jax.random.PRNGKey(0),) if takes_key else ()

    def apply(variables: Any, *arguments: Any, **call: Any) -> Any:
        return functions.apply(*(variables if stateful else (variables,)), *arguments, **call)

    leading = [*(variables if stateful else (variables,)), *key]
    flags = switches(functions.apply, [*leading, *inputs], call)

    def evaluation(variables: Any, *inputs: Any) -> Any:
        out = apply(variables, *key, *inputs, **flags, **call)
        return out[0] if stateful else out

    def training(variables: Any, *inputs: Any) -> Any:
        return apply(variables, *key, *inputs, **opposite(flags), **call)

    def narrowed(graph: ChannelGraph, plan: Plan, small: Any) -> Any:
        run = narrow(apply, graph, plan)
        if not stateful:
            return hk.Transformed(_init, functools.wraps(functions.apply)(run))

        @functools.wraps(functions.apply)
        def run_with_state(params: Any, state: Any, *arguments: Any, **call: Any) -> Any:
            return run((params, state), *arguments, **call)

        return hk.TransformedWithState(_init, run_with_state)

    return Network(
        variables=variables,
        modes=tuple(modes or [evaluation, *([training] if flags else [])]),
        narrowed=narrowed,
        trained=lambda variables: (variables[0], None) if stateful else variables,
    )


def _init(*_: Any, **__: Any) -> Any:
    raise InputError("A cut network cannot be initialised: its variables are those that the cut left.")
