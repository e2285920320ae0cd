"""Equinox modules, which are pytrees of their own arrays; statistics may lie beside them in an `eqx.nn.State`."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.narrow import narrow
from jaxslim.core.plan import Plan
from jaxslim.errors import InputError
from jaxslim.slim.kinds.network import Mode, Network, opposite, switches

_STATE = object()
"""Stands in arguments where the state goes, which travels with the variables."""


class Variables(NamedTuple):
    """What is cut of a module and of its state."""

    arrays: Any
    """The module, with None in place of all that is no array."""
    state: Any = None


class Cut:
    """How a cut module runs: as the program of the full module, on the small arrays."""

    def __init__(self, graph: ChannelGraph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.run = narrow(_full, graph, plan)


@functools.cache
def narrow_class() -> Any:
    """The class of what stands for an Equinox module after a cut."""
    import equinox as eqx

    class Narrow(eqx.Module):
        """Holds the small arrays of a module, and is called as the module is.

        Methods and fields of the module are there too; fields that hold widths still hold the full ones.
        """

        small: Any
        """The full module with the small arrays in it."""
        cut: Cut = eqx.field(static=True)

        def __call__(self, *inputs: Any, **arguments: Any) -> Any:
            return _call(self, "__call__", inputs, arguments)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") or name in ("small", "cut"):
                raise AttributeError(name)
            fields = {field.name for field in dataclasses.fields(self.small)}
            if name not in fields and inspect.isroutine(inspect.getattr_static(type(self.small), name, None)):
                return lambda *inputs, **arguments: _call(self, name, inputs, arguments)
            return getattr(self.small, name)

    return Narrow


def _call(narrow: Any, method: str, inputs: Any, arguments: Any) -> Any:
    """Run a method of the full module on the arrays of `narrow`."""
    import equinox as eqx

    arrays, rest = eqx.partition(narrow.small, eqx.is_array)
    found, structure = jax.tree.flatten((inputs, arguments), is_leaf=lambda leaf: isinstance(leaf, eqx.nn.State))
    states = [leaf for leaf in found if isinstance(leaf, eqx.nn.State)]
    placed = [_STATE if isinstance(leaf, eqx.nn.State) else leaf for leaf in found]
    return narrow.cut.run(Variables(arrays, *states), rest, method, *jax.tree.unflatten(structure, placed))


def _full(variables: Any, rest: Any, method: str, inputs: Any, arguments: Any) -> Any:
    """Run a method of the full module, whose parts that are no arrays are `rest`."""
    import equinox as eqx

    given = jax.tree.map(lambda leaf: variables.state if leaf is _STATE else leaf, (inputs, arguments))
    return getattr(eqx.combine(variables.arrays, rest), method)(*given[0], **given[1])


def network(
    module: Any, state: Any, inputs: Sequence[Any], call: Mapping[str, Any], modes: Sequence[Mode] | None
) -> Network:
    """Describe an Equinox module and its state, None if it has none."""
    import equinox as eqx

    arrays, rest = eqx.partition(module, eqx.is_array)
    own = module
    while isinstance(own, narrow_class()):
        own = own.small
    parameters = inspect.signature(type(own).__call__).parameters
    found = switches(type(own).__call__, [own, *inputs], call)
    flags = {
        name: value for name, value in found.items() if parameters[name].default is not None
    }  # None: a field decides
    needs_key = "key" in parameters and parameters["key"].default is inspect.Parameter.empty

    def run(model: Any, state: Any, inputs: Any, flags: Mapping[str, bool], keyed: bool) -> Any:
        named = dict(flags) | ({"key": jax.random.PRNGKey(0)} if keyed and "key" in parameters else {})
        if state is not None and "state" in parameters:
            named["state"] = state
        elif state is not None:
            inputs = (*inputs, state)
        return model(*inputs, **named, **call)

    def evaluation(variables: Any, *inputs: Any) -> Any:
        model = eqx.nn.inference_mode(eqx.combine(variables.arrays, rest))
        out = run(model, variables.state, inputs, flags, needs_key)
        return out if state is None else out[0]

    def training(variables: Any, *inputs: Any) -> Any:
        """On a batch of two equal examples, along the axes over which norms average."""
        model = eqx.nn.inference_mode(eqx.combine(variables.arrays, rest), value=False)

        def one(*inputs: Any) -> Any:
            return run(model, variables.state, inputs, opposite(flags), keyed=True)

        for axis in _axis_names(module):
            one = jax.vmap(one, out_axes=0 if state is None else (0, None), axis_name=axis)
            inputs = jax.tree.map(lambda x: jnp.stack([x, x]), inputs)
        return one(*inputs) if state is None else Variables(*one(*inputs))

    def given(mode: Mode) -> Mode:
        def run(variables: Any, *inputs: Any) -> Any:
            held = () if state is None else (variables.state,)
            return mode(eqx.combine(variables.arrays, rest), *held, *inputs)

        return run

    return Network(
        variables=Variables(arrays, state),
        modes=tuple(map(given, modes)) if modes else (evaluation, training),
        narrowed=lambda graph, plan, small: narrow_class()(eqx.combine(small.arrays, rest), Cut(graph, plan)),
        trained=lambda variables: Variables(eqx.filter(variables.arrays, eqx.is_inexact_array)),
        held=lambda given: _held(given, state is not None),
        holding=lambda variables: eqx.combine(variables.arrays, rest),
        batched=False,
    )


def _held(given: Any, with_state: bool) -> Any:
    """The variables of a module, full or cut, or of a module and its state; None of all else."""
    import equinox as eqx

    model, state = given if type(given) is tuple and len(given) == 2 else (given, None)
    if not isinstance(model, eqx.Module):
        return None
    if with_state and state is None:
        raise InputError("This Equinox module has a state beside it; pass the pair (module, state).")
    return Variables(eqx.filter(model.small if isinstance(model, narrow_class()) else model, eqx.is_array), state)


def _axis_names(module: Any) -> list[str]:
    """The axes over which layers of a module average, for example those of `eqx.nn.BatchNorm`."""
    nodes = jax.tree.leaves(module, is_leaf=lambda node: hasattr(node, "axis_name"))
    names = (node.axis_name for node in nodes if hasattr(node, "axis_name"))
    return list(dict.fromkeys(axis for name in names for axis in ([name] if isinstance(name, str) else name)))
