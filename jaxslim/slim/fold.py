"""Folding: a network in evaluation without the norms that a layer can take up."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxslim.core.flat import flatten
from jaxslim.core.folding import Folding
from jaxslim.core.folding import fold as fold_flat
from jaxslim.core.paths import leaf_paths
from jaxslim.core.programs import program
from jaxslim.errors import InputError
from jaxslim.slim.kinds import network


class Folded(NamedTuple):
    """A network in evaluation, as a function and its variables."""

    apply: Callable[..., Any]
    """`apply(variables, *inputs)`, for inputs of any batch size."""
    variables: dict[str, Any]
    """Nested dicts of arrays, at the paths that they had; a new bias stands beside its kernel."""


def fold(model: Any, variables: Any, *inputs: Any, **call: Any) -> Folded:
    """Fold all that evaluation computes of the variables alone: BatchNorm becomes part of the layer before it.

    A convolution or product by a known kernel takes up the additions and multiplications by known vectors that follow
    it (Jacob et al., CVPR 2018, section 3.2). Where a norm follows something else, as in a pre-activation ResNet, it
    becomes one multiplication and one addition. Statistics that depend on the inputs, as those of LayerNorm, stay, and
    so do norms inside loops.

    Args:
      model: any model that `prune` takes, cut or not.
      variables: as for `prune`.
      *inputs: what the model is called with: pytrees of arrays or `ShapeDtypeStruct`s.
      **call: keyword arguments of the model's call.

    Returns:
      `Folded(apply, variables)`, whose outputs are those of the model in evaluation, up to rounding. `apply` can be
      jitted, differentiated, traced and cut.

    Raises:
      InputError: the model is of no kind or does not run with the inputs.
    """
    found = network(model, variables, inputs, call)
    leaves, structure = jax.tree.flatten(found.variables)
    paths = [path for path, _ in leaf_paths(found.variables)]
    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), jax.typeof(leaf).dtype) for leaf in leaves]
    programs: dict[Any, _Built] = {}

    def run(flat: Sequence[Any], inputs: Sequence[Any]) -> Any:
        return found.modes[0](jax.tree.unflatten(structure, flat), *inputs)

    def built(inputs: Sequence[Any]) -> _Built:
        described, given = jax.tree.flatten(jax.eval_shape(lambda tree: tree, tuple(inputs)))
        key = (given, *((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in described))
        if key not in programs:
            closed, out = program(run, shapes, jax.tree.unflatten(given, described))
            flat = flatten(closed)
            folding = fold_flat(flat, flat.inputs[: len(leaves)])
            names = folding.names(paths)
            with jax.ensure_compile_time_eval():
                rest = folding.computed({}, [number for number in folding.boundary() if number not in names])
            programs[key] = _Built(folding, names, rest, jax.tree.structure(out))
        return programs[key]

    def apply(variables: Mapping[str, Any], *inputs: Any) -> Any:
        own, held = built(inputs), dict(leaf_paths(variables))
        if missing := [name for name in own.names.values() if name not in held]:
            raise InputError(f"The variables lack {'/'.join(missing[0])}; pass those that fold returned.")
        values = {number: held[name] for number, name in own.names.items()}
        given = zip(own.folding.flat.inputs[len(leaves) :], jax.tree.leaves(inputs), strict=True)
        return jax.tree.unflatten(own.out, own.folding.run(own.constants | values | dict(given)))

    own = built(inputs)
    values = own.folding.computed(dict(zip(own.folding.variables, leaves, strict=True)), own.names)
    return Folded(apply, _nested({name: values[number] for number, name in own.names.items()}))


class _Built(NamedTuple):
    """The program for inputs of one shape."""

    folding: Folding
    names: dict[int, tuple[str, ...]]
    constants: dict[int, Any]
    out: Any
    """Structure of the outputs."""


def _nested(arrays: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*parents, last), array in arrays.items():
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = array
    return tree
