"""Bias absorption: cutting a channel of scale 0 loses the constant relu(bias); the layers behind it take this up.

With scale 0 and bias b, a BatchNorm channel outputs the constant relu(b) after its ReLU. It adds relu(b) * sum(kernel)
to the next convolution. Subtract that from the next running mean, or add it to the next bias, and the cut loses
nothing.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.cut import mask
from jaxslim.core.graph import ChannelGraph, check_size
from jaxslim.core.paths import leaf_paths
from jaxslim.core.plan import Plan
from jaxslim.core.programs import program
from jaxslim.core.rules.control import inner_program
from jaxslim.core.walk import interpret
from jaxslim.errors import InputError
from jaxslim.slim.criteria.scales import bn_scale_mask

_RESHAPING = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze")


def absorb(apply: Callable[..., Any], variables: Any, graph: ChannelGraph, plan: Plan, images: Any) -> Any:
    """Change biases and running means so that a cut by `plan` loses no constants. Cut the variables that this returns.

    Two networks are evaluated side by side: the whole one, and one without the channels that `plan` cuts. Where the
    program adds a bias or subtracts a running mean, the two differ by some amount in each channel. The bias or mean
    takes up the average of this difference over images and positions. It must be a vector that the program adds or
    subtracts once, unchanged, outside loops and branches; a difference that meets no such vector stays.

    The scales of cut channels count as 0, even where they are not quite 0. If only convolutions, norms, ReLU and
    pooling lie between, the result does not depend on the images. It is then exact except at the border, where zero
    padding makes the difference another one.

    Args:
      apply: `apply(variables, images)` -> logits, as traced.
      variables: `params` and `batch_stats` of a Linen module.
      graph: of the network.
      plan: which units survive.
      images: (n, ...) normalised images; a few typical ones, for networks where the difference depends on them.

    Returns:
      Variables in the full shapes, where only biases and running means differ; the old ones are untouched.

    Raises:
      InputError: the plan or the graph is for another network, or the variables have no `params`.
    """
    return absorber(apply, variables, graph, images)(plan)


def absorber(apply: Callable[..., Any], variables: Any, graph: ChannelGraph, images: Any) -> Callable[[Plan], Any]:
    """Build `absorb` for several plans of one network; it compiles once."""
    leaves, structure = jax.tree.flatten(variables)
    paths = [path for path, _ in leaf_paths(variables)]
    units = []
    for path, leaf in zip(paths, leaves, strict=True):
        number = graph.find(path)
        if number is None or graph.shapes[number] != np.shape(leaf):
            raise InputError(f"{'/'.join(path)} {np.shape(leaf)} is none of the traced variables; trace these first.")
        units.append(graph.units[number])
    scales = [path for path, is_scale in leaf_paths({"params": bn_scale_mask(variables)}) if is_scale]
    if isinstance(images, jax.ShapeDtypeStruct) or not np.size(images):
        raise InputError("The images are a ShapeDtypeStruct or empty; absorbing evaluates the network: pass an array.")
    closed, _ = program(lambda leaves, x: apply(jax.tree.unflatten(structure, leaves), x), leaves, images)

    @jax.jit
    def shifts(whole: list[Any], cut: list[Any], kept: list[Any]) -> dict[int, jax.Array]:
        """For each vector that takes up a difference, what to add to it."""
        vectors = [number if np.ndim(leaf) == 1 else None for number, leaf in enumerate(whole)]
        inputs = [*map(_Pair, whole, cut, vectors), _Pair(images, images)]
        first = _SideBySide(kept, frozenset())
        first.run(closed, inputs)  # to see which vectors can take up a difference; XLA drops its values
        second = _SideBySide(kept, frozenset(vector for vector, uses in first.uses.items() if uses == [True]))
        second.run(closed, inputs)
        return second.shifts

    def absorbed(plan: Plan) -> Any:
        check_size(graph, plan.keep)
        survives = graph.survivors(plan.keep)
        if survives.all():
            return variables
        kept = [survives[axes[-1]] if axes else np.ones(1, bool) for axes in units]
        cut = jax.tree.leaves(mask(graph, variables, plan))
        whole = [less if path in scales else leaf for path, leaf, less in zip(paths, leaves, cut, strict=True)]
        new = list(leaves)
        for number, shift in shifts(whole, cut, kept).items():
            new[number] = (leaves[number] + shift).astype(leaves[number].dtype)
        return jax.tree.unflatten(structure, new)

    return absorbed


class _Pair(NamedTuple):
    """One value in the whole network and in the cut one, both in the full shape."""

    whole: Any
    cut: Any
    vector: int | None = None
    """Number of the parameter vector that this value is, laid along `axis`; None for all other values."""
    axis: int = 0


class _SideBySide:
    """One evaluation of the whole and the cut network, in which the vectors `absorbing` take up the differences."""

    def __init__(self, kept: list[Any], absorbing: frozenset[int]) -> None:
        self.kept, self.absorbing = kept, absorbing
        # For each vector and each use of it: whether this adds it to a larger array, or subtracts it from one.
        self.uses: dict[int, list[bool]] = defaultdict(list)
        self.shifts: dict[int, jax.Array] = {}  # for each absorbing vector, what has to be added to it

    def run(self, jaxpr: Any, args: list[_Pair]) -> list[_Pair]:
        return interpret(jaxpr, args, lambda array: _Pair(array, array), self._equation)

    def _equation(self, eqn: Any, ins: list[_Pair]) -> list[_Pair]:
        if (inner := inner_program(eqn)) is not None:
            return self.run(inner, ins)
        name, shape = eqn.primitive.name, getattr(eqn.outvars[0].aval, "shape", ())
        if name in _RESHAPING and ins[0].vector is not None and (axis := _axis_after(eqn, ins[0], shape)) is not None:
            return [out._replace(vector=ins[0].vector, axis=axis) for out in _evaluate(eqn, ins)]
        adds = name in ("add", "sub") and len(shape) > 1
        for position, operand in enumerate(ins):
            if operand.vector is None:
                continue
            other = ins[1 - position] if adds and (name, position) != ("sub", 0) else operand
            kept = self.kept[operand.vector]
            fits = len(kept) == 1 or shape[operand.axis : operand.axis + 1] == kept.shape
            absorbs = other.vector is None and np.shape(other.whole) == shape and fits
            self.uses[operand.vector].append(absorbs)
            if absorbs and operand.vector in self.absorbing:
                # A vector of one channel may lie along any axis of length 1, so its mean is over all axes.
                averaged = [axis for axis in range(len(shape)) if len(kept) == 1 or axis != operand.axis]
                lost = (other.whole - other.cut).mean(averaged)
                self.shifts[operand.vector] = jnp.where(kept, lost if name == "add" else -lost, 0)
                survives = jnp.reshape(kept, [-1 if axis == operand.axis else 1 for axis in range(len(shape))])
                ins[1 - position] = other._replace(cut=jnp.where(survives, other.whole, other.cut))
        return _evaluate(eqn, ins)


def _axis_after(eqn: Any, operand: _Pair, shape: tuple[int, ...]) -> int | None:
    """The axis that a vector lies along after a reshape or broadcast to `shape`; None if it covers several."""
    length = np.shape(operand.whole)[operand.axis]
    if eqn.primitive.name == "broadcast_in_dim":
        return eqn.params["broadcast_dimensions"][operand.axis]
    if eqn.primitive.name in ("reshape", "squeeze"):
        return shape.index(length) if length in shape and np.size(operand.whole) == length else None
    return operand.axis


def _evaluate(eqn: Any, ins: list[_Pair]) -> list[_Pair]:
    """Evaluate an equation for both networks, only once if its inputs are the same in both."""

    def bind(values: list[Any]) -> list[Any]:
        outs = eqn.primitive.bind(*values, **eqn.params)
        return outs if eqn.primitive.multiple_results else [outs]

    whole = bind([pair.whole for pair in ins])
    same = all(pair.whole is pair.cut for pair in ins)
    return list(map(_Pair, whole, whole if same else bind([pair.cut for pair in ins])))
