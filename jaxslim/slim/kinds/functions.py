"""Plain functions: `apply(variables, *inputs)`."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxslim.core.narrow import narrow
from jaxslim.slim.kinds.network import Mode, Network, opposite, params, switches


def network(
    apply: Any, variables: Any, inputs: Sequence[Any], call: Mapping[str, Any], modes: Sequence[Mode] | None
) -> Network:
    """Describe a function; the cut model is the narrowed function."""
    flags = switches(apply, [variables, *inputs], call)

    def mode(flags: Mapping[str, bool]) -> Mode:
        return lambda variables, *inputs: apply(variables, *inputs, **flags, **call)

    return Network(
        variables=variables,
        modes=tuple(modes or [mode(flags), *([mode(opposite(flags))] if flags else [])]),
        narrowed=lambda graph, plan, small: narrow(apply, graph, plan),
        trained=params,
    )
