"""Networks of any code in a checkpoint: arrays by number, the exported program, and of cut ones the plan."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.compose import compose
from jaxslim.core.graph import ChannelGraph
from jaxslim.core.paths import leaf_paths
from jaxslim.core.plan import Plan
from jaxslim.errors import InputError
from jaxslim.models import module_class, registered
from jaxslim.slim.kinds import Network, beside, network
from jaxslim.slim.kinds.adapted import Adapted
from jaxslim.slim.kinds.equinox import Variables
from jaxslim.slim.kinds.linen import Narrow
from jaxslim.slim.prune import Pruned
from jaxslim.storage import metadata
from jaxslim.storage.integrity import DamageError
from jaxslim.storage.plans import PLAN_FILE, pack, plan_of_checkpoint
from jaxslim.storage.programs import Program, export, key_impl, plainly, raw, wrapped
from jaxslim.storage.trees import build, layout_of

PROGRAM_FILE = "program/program.bin"
SAME = 0.02
"""Share of the largest output by which a model may differ from its saved program, since both round in their own way."""


class Parts(NamedTuple):
    """What a checkpoint of a cut network is made of."""

    arrays: dict[str, Any]
    """Arrays of numbers by their number."""
    described: dict[str, Any]
    """JSON values: how arrays become variables, and what the program takes."""
    files: dict[str, bytes]
    """Further files by name."""


def parts(
    pruned: Any, variables: Any, graph: ChannelGraph | None, plan: Plan | None, inputs: Sequence[Any] | None, call: Any
) -> Parts:
    """Take a network apart: a `Pruned`, a cut model with its variables, graph and plan, or an uncut model.

    A module of jaxslim's own is described by its fields, so that no program is needed.
    """
    model, whole = pruned, not isinstance(pruned, Pruned | Narrow) and graph is None and plan is None
    if isinstance(pruned, Pruned):
        model, graph, plan = pruned.module, pruned.graph, pruned.plan
        variables = beside(pruned.variables) if variables is None else variables
        inputs, call = pruned.inputs if inputs is None else inputs, {**pruned.call, **call}
    ours = None
    if isinstance(model, Narrow):
        graph, plan = model.graph if graph is None else graph, model.plan if plan is None else plan
        if module_class(name_of(model.whole)):
            ours, inputs = model.whole, inputs or ()
            graph, plan = _at_once(model, graph, plan)
    needed = {"inputs": inputs} if whole else {"graph": graph, "plan": plan, "inputs": inputs}
    if missing := [name for name, value in needed.items() if value is None]:
        raise InputError(f"A {'' if whole else 'cut '}network is saved with its {missing[0]}; pass {missing[0]}=.")
    assert inputs is not None
    found = network(model, variables, inputs, call)
    own = found.variables
    if isinstance(own, Variables) and hasattr(own.arrays, "small"):
        own = own._replace(arrays=own.arrays.small)
    if graph is not None and plan is not None:
        _check_plan(graph, plan, own)

    plain, run, order = plainly(found.modes[0], found.variables, own)
    names = [path for path, _ in leaf_paths(own)]
    arrays, described = _described([names[number] for number in order], plain)
    if ours is not None:
        program, described["cut"]["program"] = None, {"reason": "jaxslim has its code"}
        described["module"] = metadata.parts_of(ours)
    else:
        program, described["cut"]["program"] = _exported(model, run, plain, inputs)
        full = getattr(model, "whole", getattr(model, "full", model))
        described["module"] = {"type": name_of(full), **getattr(full, "described", {})}
    files = {PROGRAM_FILE: program} if program else {}
    if graph is not None and plan is not None:
        files[PLAN_FILE] = pack(graph, plan)
    return Parts(arrays, described, files)


def _exported(model: Any, run: Any, plain: Any, inputs: Any) -> tuple[bytes | None, dict[str, Any]]:
    """`export`, once for all checkpoints of a training run, which differ in their values alone."""
    if not isinstance(getattr(model, "whole", model), Adapted):
        return export(run, plain, inputs)
    shapes = str(jax.tree.map(lambda leaf: (np.shape(leaf), leaf.dtype), (plain, inputs)))
    if _EXPORTED.get(model, ("",))[0] != shapes:
        _EXPORTED[model] = (shapes, *export(run, plain, inputs))
    _, program, described = _EXPORTED[model]
    return program, dict(described)


_EXPORTED: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()


def name_of(module: Any) -> str:
    """The dotted name of a module's class."""
    own = module.form.module if isinstance(module, Adapted) else module
    return f"{type(own).__module__}.{type(own).__qualname__}"


def _at_once(model: Narrow, graph: ChannelGraph, plan: Plan) -> tuple[ChannelGraph, Plan]:
    """The graph of the uncut module below several cuts, and the plan of all of them together."""
    while isinstance(model := model.full, Narrow):
        graph, plan = model.graph, compose(model.graph, model.plan, graph, plan)
    return graph, plan


def _described(names: Sequence[tuple[str, ...]], plain: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays by number, without empty ones, and how they become variables again."""
    leaves = [_array("/".join(name), leaf) for name, leaf in zip(names, jax.tree.leaves(plain), strict=True)]
    arrays = {str(number): raw(leaf) for number, leaf in enumerate(leaves)}
    shapes = {number: [list(array.shape), array.dtype.name] for number, array in arrays.items()}
    cut = {
        "layout": layout_of(plain),
        "paths": list(map(list, names)),
        "keys": list(map(key_impl, leaves)),
        "empty": {number: shapes[number] for number, array in arrays.items() if not array.size},
    }
    kept = {number: array for number, array in arrays.items() if array.size}
    return kept, {"variables": {number: shapes[number] for number in kept}, "cut": cut}


def _array(name: str, leaf: Any) -> Any:
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    if key_impl(leaf) is None and (read := jax.dtypes.canonicalize_dtype(leaf.dtype)) != leaf.dtype:
        raise InputError(f"JAX would read {name}, of {leaf.dtype}, as {read}; convert it, jax.numpy.asarray does.")
    return leaf


def _check_plan(graph: ChannelGraph, plan: Plan, variables: Any) -> None:
    """Refuse variables that are not what the plan leaves."""
    shapes = {path: np.shape(leaf) for path, leaf in leaf_paths(variables)}
    for path, wanted in zip(graph.paths, _small(graph, plan), strict=True):
        if shapes.get(path) != wanted:
            here = f"have shape {shapes[path]} there" if path in shapes else "lack it"
            raise InputError(
                f"The plan leaves {'/'.join(path)} of shape {wanted}, and the variables {here}; pass the cut "
                "variables, and the graph and plan that they were cut by."
            )


def _small(graph: ChannelGraph, plan: Plan) -> list[tuple[int, ...]]:
    alive = graph.survivors(plan.keep)
    return [tuple(int(alive[units].sum()) for units in axes) for axes in graph.units]


def opened(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, Any], model: Any, given: Any) -> tuple[Any, Any]:
    """The cut model and its variables; without `model`, that of jaxslim, or the program and plain containers."""
    try:
        cut = meta["cut"]
        empty = {number: jnp.zeros(shape, dtype) for number, (shape, dtype) in cut["empty"].items()}
        held = {**empty, **arrays}
        leaves = [wrapped(held[str(number)], impl) for number, impl in enumerate(cut["keys"])]
        plain = build(cut["layout"], leaves)
        stored = dict(zip(map(tuple, cut["paths"]), leaves, strict=True))
        described = cut["program"]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamageError(f"its meta describes no cut network ({error})") from None
    if model is None:
        model = metadata.build(meta) if "fields" in meta["module"] else registered(meta)
    if model is None:
        if "reason" in described:
            raise InputError(
                f"{path} holds no program, since the network could not be exported ({described['reason']}); pass the "
                "model: load(path, module=model)."
            )
        return Program(_content(path), described, cut["layout"], plain), plain
    if isinstance(model, Adapted):
        image = jax.ShapeDtypeStruct((1, *meta["image_shape"]), jnp.float32)
        given = jax.eval_shape(model.init, jax.random.key(0), image)
    found = _network(model, given, plain)
    renamed = _as_in(found.variables, stored)
    stored = {renamed(path): leaf for path, leaf in stored.items()}
    program = None if "reason" in described else Program(_content(path), described, cut["layout"], plain)
    if not (path / PLAN_FILE).exists():
        whole = _filled(path, {}, found.variables, stored)
        return _as_saved(path, program, found.holding(whole) or model, whole)
    graph, plan = plan_of_checkpoint(path)
    graph = dataclasses.replace(graph, paths=tuple(map(renamed, graph.paths)))
    small = _filled(path, dict(zip(graph.paths, graph.shapes, strict=True)), found.variables, stored)
    return _as_saved(path, program, found.narrowed(graph, plan, small), small)


def _content(path: Path) -> bytes:
    return (path / PROGRAM_FILE).read_bytes()


def _as_saved(path: Path, program: Program | None, model: Any, variables: Any) -> tuple[Any, Any]:
    """The model and its variables, if they compute what the saved program does, for code may have been edited since."""
    if program is None or (inputs := program.example()) is None:
        return model, variables
    try:
        expected = program(*inputs)
        found = jax.jit(network(model, variables, inputs).modes[0])(variables, *inputs)
        pairs = [
            (np.asarray(mine, np.float64), np.asarray(other, np.float64))
            for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        ]
        off = max(np.abs(mine - other).max() / np.abs(other).max() for mine, other in pairs)
    except Exception:  # it takes more than its inputs, for example a key, or is for another platform
        return model, variables
    if off > SAME:
        raise InputError(
            f"The code of the model computes something else than the network in {path} did: outputs differ by "
            f"{off:.1%} of the largest. Take the code as it was then, or train anew."
        )
    return model, variables


def _network(model: Any, given: Any, plain: Any) -> Network:
    """The user's full model: with what it holds itself, or else with the saved variables."""
    if given is not None:
        return network(model, given, ())
    try:
        found = network(model, None, ())
        if jax.tree.leaves(found.variables):
            return found
    except InputError:  # its variables are missing
        pass
    return network(model, plain, ())


def _as_in(template: Any, stored: Collection[Any]) -> Callable[[Any], Any]:
    """How `template` names the arrays `stored`. An NNX module has no collections, and an `Adapted` of the same has."""
    names = {path for path, _ in leaf_paths(template)}
    adapted = [(*path[1:], "value") for path in stored]
    return (lambda path: (*path[1:], "value")) if names == {*adapted} else lambda path: path


def _filled(path: Path, full: Mapping[Any, Any], template: Any, stored: Mapping[Any, Any]) -> Any:
    """The saved arrays in the structure of `template`, which holds arrays of their shapes or of the `full` ones."""
    shapes = {own: np.shape(leaf) for own, leaf in leaf_paths(template)}
    for name in [*shapes, *(name for name in stored if name not in shapes)]:
        fits = name in stored and shapes.get(name) in (np.shape(stored[name]), full.get(name))
        if not fits:
            here = f"shape {shapes[name]}" if name in shapes else "none"
            there = f"shape {full.get(name, np.shape(stored[name]))}" if name in stored else "none"
            raise InputError(
                f"{path} is of another network than the model: {'/'.join(name)} has {there} in the checkpoint and "
                f"{here} in the model; pass the model that was cut."
            )
    return jax.tree.unflatten(jax.tree.structure(template), [stored[name] for name in shapes])
