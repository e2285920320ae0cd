"""Bias absorption: what a channel with a scale of zero still passes on, relu(bias), moves into the layers behind it.

Cutting such a channel takes a constant away from everything that reads it. The constant can be given back wherever a
bias is added or a running mean subtracted on the way, and the traced program tells where that is.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxslim.core.cut import check_size
from jaxslim.core.graph import ChannelGraph, leaf_paths, program
from jaxslim.core.plan import Plan
from jaxslim.core.rules.control import inner_program
from jaxslim.errors import InputError
from jaxslim.slim.criteria import bn_scale_mask

_RESHAPING = ("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze")


def absorb(apply: Callable[..., Any], variables: Any, graph: ChannelGraph, plan: Plan, images: Any) -> Any:
    """Change biases and running means so that cutting by `plan` loses no constants; cut what this returns.

    A BatchNorm channel with scale 0 and bias b passes relu(b) on, and the convolution behind it gives by the sum of its
    kernel's window times relu(b) more than it will without the channel. So much is taken off the running mean of the
    BatchNorm behind, or added to a bias there. A channel whose scale is not quite 0 is treated as if it were.

    The program is evaluated in two forms side by side, whole and without the channels that go, and each bias or mean
    takes up the difference that reaches it, averaged over images and positions. Which parameters that are is read off
    the program: vectors that it adds or subtracts once, as they are, outside loops and branches. Where only
    convolutions, norms, ReLU and pooling lie between, the images do not matter, and the result is exact but for the
    pixels at the border, which zero padding makes different from the others. What no such vector takes up stays lost.

    Args:
      apply: `apply(variables, images)` -> logits, as traced.
      variables: `params` and `batch_stats` of a Linen module.
      graph: of the network.
      plan: which units survive.
      images: (n, ...) normalised images; a few that stand for the others, where what is lost depends on them.

    Returns:
      Variables in the full shapes, of which only biases and running means differ; the old ones are untouched.

    Raises:
      InputError: the plan or the graph is for another network, or the variables have no `params`.
    """
    return absorber(apply, variables, graph, images)(plan)


def absorber(apply: Callable[..., Any], variables: Any, graph: ChannelGraph, images: Any) -> Callable[[Plan], Any]:
    """Build `absorb` for several plans of one network; it compiles once."""
    if not isinstance(graph, ChannelGraph):
        raise InputError(f"The graph is of type {type(graph).__name__}; pass what jaxslim.trace gave.")
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
    closed = program(lambda leaves, x: apply(jax.tree.unflatten(structure, leaves), x), leaves, images)

    def shifts(whole: list[Any], cut: list[Any], kept: list[Any]) -> dict[int, jax.Array]:
        values = [
            _Pair(*pair, leaf=number if np.ndim(pair[0]) == 1 else None, axis=0)
            for number, pair in enumerate(zip(whole, cut, strict=True))
        ]
        values.append(_Pair(images, images))
        look = _Run(kept, frozenset())
        look.follow(closed, values)  # only to see who reads each vector; XLA leaves the rest out
        shift = _Run(kept, frozenset(leaf for leaf, reads in look.reads.items() if reads == [True]))
        shift.follow(closed, values)
        return shift.shifts

    compiled = jax.jit(shifts)

    def run(plan: Plan) -> Any:
        if not isinstance(plan, Plan):
            raise InputError(f"The plan is of type {type(plan).__name__}; pass what jaxslim.plan gave.")
        check_size(graph, plan)
        if plan.keep.all():
            return variables
        keep = [[plan.keep[axis] for axis in axes] for axes in units]
        kept = [axes[-1] if axes else np.ones(1, bool) for axes in keep]
        whole = [
            leaf * own.astype(leaf.dtype) if path in scales else leaf
            for path, leaf, own in zip(paths, leaves, kept, strict=True)
        ]
        cut = [
            leaf * functools.reduce(np.logical_and.outer, axes).astype(leaf.dtype) if axes else leaf
            for leaf, axes in zip(leaves, keep, strict=True)
        ]
        new = list(leaves)
        for number, shift in compiled(whole, cut, kept).items():
            new[number] = (leaves[number] + shift).astype(leaves[number].dtype)
        return jax.tree.unflatten(structure, new)

    return run


class _Pair(NamedTuple):
    """A value of the whole network and of the cut one in the same shape; `leaf` if it is that vector along `axis`."""

    whole: Any
    cut: Any
    leaf: int | None = None
    axis: int = 0


class _Run:
    """One evaluation of both networks, in which the vectors `into` take up what is missing where they are added."""

    def __init__(self, kept: list[Any], into: frozenset[int]) -> None:
        self.reads: dict[int, list[bool]] = defaultdict(list)
        """For each vector and each use of it, whether that adds it to a larger array or takes it off one."""
        self.shifts: dict[int, jax.Array] = {}
        self._kept, self._into = kept, into

    def follow(self, jaxpr: Any, args: list[_Pair]) -> list[_Pair]:
        consts = jaxpr.consts if isinstance(jaxpr, core.ClosedJaxpr) else []
        jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
        env = {var: _Pair(const, const) for var, const in zip(jaxpr.constvars, consts, strict=True)}
        env |= zip(jaxpr.invars, args, strict=True)

        def read(atom: Any) -> _Pair:
            return _Pair(atom.val, atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            inner = inner_program(eqn)
            outs = self._equation(eqn, ins) if inner is None else self.follow(inner, ins)
            env |= zip(eqn.outvars, outs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: list[_Pair]) -> list[_Pair]:
        name, shape = eqn.primitive.name, getattr(eqn.outvars[0].aval, "shape", ())
        if name in _RESHAPING and ins[0].leaf is not None:
            axis = _moved(eqn, ins[0], shape)
            if axis is not None:
                return [one._replace(leaf=ins[0].leaf, axis=axis) for one in _evaluate(eqn, ins)]
        added = name in ("add", "sub") and len(shape) > 1
        for place, vector in enumerate(ins):
            if vector.leaf is None:
                continue
            other = ins[1 - place] if added and (name, place) != ("sub", 0) else vector
            kept = self._kept[vector.leaf]
            fits = len(kept) == 1 or shape[vector.axis : vector.axis + 1] == kept.shape
            takes = other.leaf is None and np.shape(other.whole) == shape and fits
            self.reads[vector.leaf].append(takes)
            if takes and vector.leaf in self._into:
                along = None if len(kept) == 1 else vector.axis  # one channel lies along any axis of that length
                missing = (other.whole - other.cut).mean([axis for axis in range(len(shape)) if axis != along])
                self.shifts[vector.leaf] = jnp.where(kept, missing if name == "add" else -missing, 0)
                alike = jnp.reshape(kept, [-1 if axis == vector.axis else 1 for axis in range(len(shape))])
                ins[1 - place] = other._replace(cut=jnp.where(alike, other.whole, other.cut))
        return _evaluate(eqn, ins)


def _moved(eqn: Any, vector: _Pair, shape: tuple[int, ...]) -> int | None:
    """The axis that a vector lies along after a reshape or broadcast to `shape`; None if it is spread over several."""
    length = np.shape(vector.whole)[vector.axis]
    if eqn.primitive.name == "broadcast_in_dim":
        return eqn.params["broadcast_dimensions"][vector.axis]
    if eqn.primitive.name in ("reshape", "squeeze"):
        return shape.index(length) if length in shape and np.size(vector.whole) == length else None
    return vector.axis


def _evaluate(eqn: Any, ins: list[_Pair]) -> list[_Pair]:
    def bind(values: list[Any]) -> list[Any]:
        outs = eqn.primitive.bind(*values, **eqn.params)
        return outs if eqn.primitive.multiple_results else [outs]

    whole = bind([one.whole for one in ins])
    same = all(one.whole is one.cut for one in ins)
    return list(map(_Pair, whole, whole if same else bind([one.cut for one in ins])))
