"""Flax NNX modules, which hold their variables."""

import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.narrow import narrow
from jaxslim.core.plan import Plan
from jaxslim.errors import InputError
from jaxslim.slim.kinds.network import Mode, Network, opposite, switches

_HOW = "_jaxslim"
"""The attribute of a cut module that says how its methods run."""


class Cut:
    """How the methods of a cut module run: as the program of the full module, on the small variables."""

    def __init__(self, module: Any, graph: ChannelGraph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.kind, self.before = type(module), vars(module).get(_HOW)  # `before`: of a module cut for the second time
        self.run = narrow(self.full, graph, plan)

    def __deepcopy__(self, memo: Any) -> "Cut":
        return self  # it holds no variables

    def full(self, state: Any, graphdef: Any, method: str, inputs: Any, arguments: Any) -> Any:
        """Run a method of the full module: its outputs, and the variables changed in the module and in arguments."""
        module = nnx.merge(graphdef, state)
        object.__setattr__(module, "__class__", self.kind)
        object.__setattr__(module, _HOW, self.before)
        return _run([module, *_nodes(inputs, arguments)], lambda: getattr(module, method)(*inputs, **arguments))

    def __call__(self, module: Any, method: str, inputs: Any, arguments: Any) -> Any:
        graphdef, state = nnx.split(module)
        out, changed = self.run(state, graphdef, method, inputs, arguments)
        for node, own in zip([module, *_nodes(inputs, arguments)], changed, strict=True):
            nnx.update(node, own)
        return out


def network(
    module: Any, variables: Any, inputs: Sequence[Any], call: Mapping[str, Any], modes: Sequence[Mode] | None
) -> Network:
    """Describe an NNX module; the variables are its state."""
    if variables is not None:
        raise InputError(f"{type(module).__name__} is an NNX module, which holds its variables; pass None for them.")
    graphdef, state = nnx.split(module)
    flags = switches(type(module).__call__, [module, *inputs], call)

    def evaluation(state: Any, *inputs: Any) -> Any:
        module = nnx.merge(graphdef, state)
        module.eval()
        return module(*inputs, **flags, **call)

    def training(state: Any, *inputs: Any) -> Any:
        module = nnx.merge(graphdef, state)
        module.train()
        return _run([module], lambda: module(*inputs, **opposite(flags), **call), only_held=True)

    def given(mode: Mode) -> Mode:
        def run(state: Any, *inputs: Any) -> Any:
            module = nnx.merge(graphdef, state)
            return _run([module], lambda: mode(module, *inputs), only_held=True)

        return run

    def narrowed(graph: ChannelGraph, plan: Plan, small: Any) -> Any:
        cut = nnx.merge(graphdef, _copy(small))
        kind: Any = type(module)
        object.__setattr__(cut, "__class__", _cut_class(kind))
        setattr(cut, _HOW, Cut(module, graph, plan))
        return cut

    return Network(
        variables=_copy(state),
        modes=tuple(map(given, modes)) if modes else (evaluation, training),
        narrowed=narrowed,
        trained=lambda state: nnx.filter_state(state, nnx.Param),
        held=lambda model: nnx.split(model)[1] if isinstance(model, nnx.Module) else None,
        holding=lambda state: nnx.merge(graphdef, _copy(state)),
    )


def _copy(state: Any) -> Any:
    """The same arrays in variables of their own, which training of the model does not change."""
    return jax.tree.map(lambda leaf: leaf, state)


def _nodes(*arguments: Any) -> list[Any]:
    """The NNX objects among arguments, for example `nnx.Rngs`."""
    leaves = jax.tree.leaves(arguments, is_leaf=lambda leaf: isinstance(leaf, nnx.Pytree))
    return [leaf for leaf in leaves if isinstance(leaf, nnx.Pytree)]


def _run(nodes: Sequence[Any], function: Callable[[], Any], only_held: bool = False) -> tuple[Any, list[Any]]:
    """What `function()` returns, and for each node the variables that it changed or, unless `only_held`, made."""
    before = [{path: jax.tree.leaves(own) for path, own in nnx.to_flat_state(nnx.state(node))} for node in nodes]
    out, every = function(), []
    for node, held in zip(nodes, before, strict=True):
        changed = {}
        for path, variable in nnx.to_flat_state(nnx.state(node)):
            old, new = held.get(path, None if only_held else []), jax.tree.leaves(variable)
            if old is not None and (len(old) != len(new) or any(map(operator.is_not, old, new))):
                changed[path] = variable
        every.append(nnx.from_flat_state(changed))
    return out, every


@functools.cache
def _cut_class(kind: Any) -> Any:
    """The class of a cut module: a subclass of the full one's whose methods run the full module's program."""

    def method(name: str) -> Any:
        @functools.wraps(getattr(kind, name))
        def run(self: Any, *inputs: Any, **arguments: Any) -> Any:
            return vars(self)[_HOW](self, name, inputs, arguments)

        return run

    body = {name: method(name) for name in _methods(kind)} | {"__module__": kind.__module__}
    how = {"pytree": getattr(kind, "_pytree__is_pytree", True)}
    return types.new_class(f"Cut{kind.__name__}", (kind,), how, lambda namespace: namespace.update(body))


def _methods(kind: type) -> Iterator[str]:
    """Names of `__call__` and of the public methods that are not Flax's own."""
    yield "__call__"
    own = [parent for parent in kind.__mro__ if parent is not object and parent.__module__.partition(".")[0] != "flax"]
    for name in {name for parent in own for name in vars(parent) if not name.startswith("_")}:
        found = inspect.getattr_static(kind, name)
        if (
            callable(found)
            and not isinstance(found, staticmethod | classmethod | type)
            and not hasattr(nnx.Module, name)
        ):
            yield name
