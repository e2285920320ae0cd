"""Keras models on the JAX backend: `model.stateless_call(trainable, non_trainable, *inputs, ...)`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.narrow import narrow
from jaxslim.core.plan import Plan
from jaxslim.errors import InputError
from jaxslim.slim.kinds.network import Mode, Network, opposite, switches


class Variables(list[Any]):
    """A list of arrays as Keras takes them, whose elements JAX finds under the names of the variables."""

    def __init__(self, values: Iterable[Any], names: Sequence[str]) -> None:
        super().__init__(values)
        self.names = tuple(names)


jax.tree_util.register_pytree_with_keys(
    Variables,
    lambda own: ([(jax.tree_util.DictKey(name), value) for name, value in zip(own.names, own, strict=True)], own.names),
    lambda names, values: Variables(values, names),
)


class Narrow:
    """Stands for a Keras model after a cut: `stateless_call` takes what the model's takes, on small variables."""

    def __init__(self, model: Any, graph: ChannelGraph, plan: Plan, names: Sequence[Sequence[str]]) -> None:
        self.full, self.graph, self.plan, self.names = model, graph, plan, names
        self._run = narrow(_caller(model), graph, plan)

    def stateless_call(self, trainable: Any, non_trainable: Any, *inputs: Any, **arguments: Any) -> Any:
        """As `stateless_call` of the full model: (outputs, new non-trainable variables), and losses if asked for."""
        return self._run(tuple(map(Variables, (trainable, non_trainable), self.names)), *inputs, **arguments)

    def __repr__(self) -> str:
        return f"Narrow({type(self.full).__name__}, {self.plan!r})"


def network(
    model: Any, variables: Any, inputs: Sequence[Any], call: Mapping[str, Any], modes: Sequence[Mode] | None
) -> Network:
    """Describe a Keras model, which holds its variables, or what stands for one, with its variables."""
    import keras

    if (backend := keras.backend.backend()) != "jax":
        raise InputError(f"Keras runs on {backend}; set KERAS_BACKEND=jax before Keras is imported.")
    if isinstance(model, Narrow) == (variables is None):
        advice = "pass the pair (trainable, non_trainable)" if variables is None else "pass None"
        raise InputError(f"The variables of {model!r} are {'missing' if variables is None else 'its own'}; {advice}.")
    own = model
    while isinstance(own, Narrow):
        own = own.full
    held = (own.trainable_variables, own.non_trainable_variables)
    names = [_distinct([variable.path for variable in part]) for part in held]
    values = variables or [[variable.value for variable in part] for part in held]
    flags = switches(own.call, inputs, call)
    run = _caller(model)

    return Network(
        variables=tuple(map(Variables, values, names)),
        modes=tuple(
            modes
            or [
                lambda variables, *inputs: run(variables, *inputs, **flags, **call)[0],
                *([lambda variables, *inputs: run(variables, *inputs, **opposite(flags), **call)] if flags else []),
            ]
        ),
        narrowed=lambda graph, plan, small: Narrow(model, graph, plan, names),
        trained=lambda variables: (variables[0], None),
        held=lambda model: _held(model, names),
    )


def _held(model: Any, names: Sequence[Sequence[str]]) -> Any:
    """The variables that a Keras model holds, or a pair of them, by name; None of what stands for a cut model."""
    import keras

    if isinstance(model, keras.Layer):
        model = [
            [variable.value for variable in part] for part in (model.trainable_variables, model.non_trainable_variables)
        ]
    return tuple(map(Variables, model, names)) if isinstance(model, tuple | list) else None


def _caller(model: Any) -> Any:
    """`call(variables, *inputs, ...)` -> what `stateless_call` returns, where JAX finds the new variables by name."""

    def call(variables: Any, *inputs: Any, **arguments: Any) -> Any:
        out, non_trainable, *losses = model.stateless_call(*variables, *inputs, **arguments)
        return (out, Variables(non_trainable, variables[1].names), *losses)

    return call


def _distinct(names: Sequence[str]) -> list[str]:
    """The same names, each numbered that was there before."""
    return [f"{name}#{seen}" if (seen := names[:place].count(name)) else name for place, name in enumerate(names)]
