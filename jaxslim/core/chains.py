"""Finds chains of affine steps in a program, and puts one layer, or one factor and one shift, in place of each."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxslim.core.affine import Affine, Made, Operand, trimmed
from jaxslim.core.flat import Flat, Node
from jaxslim.core.symbols import Equation

_LAYOUTS = ("broadcast_in_dim", "reshape", "squeeze", "transpose")
_AFFINE = ("add", "add_any", "sub", "mul", "div", "neg")


class Chains:
    """Finds the chains of affine steps."""

    def __init__(self, flat: Flat, nodes: Sequence[Node], known: set[int]) -> None:
        self.flat, self.nodes, self.known = flat, nodes, known
        self.made: dict[int, Made] = {}
        self.number = max(flat.avals, default=-1) + 1
        self.maker = {out: node for node in nodes for out in node.outs}
        self.users: defaultdict[int, list[Node]] = defaultdict(list)
        for node in nodes:
            for number in dict.fromkeys(node.ins):
                self.users[number].append(node)
        self.outputs = set(flat.outputs)

    def shortened(self) -> list[Node]:
        """The equations, with one in place of each chain."""
        gone: set[int] = set()  # outputs of the steps that are part of a chain
        found: list[Node] = []
        for node in self.nodes:
            if gone.intersection(node.outs):
                continue
            kernel = self._kernel(node)
            if kernel is not None:
                chain, last, layouts = self._chain(node.outs[0], {out for out, _ in kernel[1]})
                if chain:
                    gone.update(self._between(node.outs[0], last))
                    found += _laid_out(self._linear(node, *kernel, chain), layouts, last)
                    continue
            elif (step := self._step(node, node.outs[0])) is not None:
                number, first = step
                chain, last, _ = self._chain(node.outs[0])
                if chain and _is_longer((first, *chain)):
                    gone.update(self._between(node.outs[0], last))
                    found += self._factor_and_shift(number, (first, *chain), last, node)
                    continue
            found.append(node)
        return found

    def _between(self, first: int, last: int) -> set[int]:
        """Outputs of the steps behind `first`, up to `last`."""
        outs = set()
        while first != last:
            (node,) = self.users[first]
            (first,) = node.outs
            outs.add(first)
        return outs

    def _kernel(self, node: Node) -> tuple[int, tuple[tuple[int, int], ...]] | None:
        """Position of a known kernel, and which axes of the result are which of the kernel's."""
        name, params = node.eqn.primitive.name, node.eqn.params
        if name == "conv_general_dilated" and params["batch_group_count"] == 1:
            numbers, position = params["dimension_numbers"], 1
            axes: tuple[tuple[int, int], ...] = ((numbers.out_spec[1], numbers.rhs_spec[0]),)
        elif name == "dot_general":
            position = next((k for k in (1, 0) if node.ins[k] in self.known), 1)
            contracted, batch = params["dimension_numbers"]
            ranks = [len(self._shape(number)) for number in node.ins]
            free = [[k for k in range(ranks[side]) if k not in (*contracted[side], *batch[side])] for side in (0, 1)]
            start = len(batch[0]) + (len(free[0]) if position else 0)
            axes = (*enumerate(batch[position]), *enumerate(free[position], start))
        else:
            return None
        kernel, other, out = node.ins[position], node.ins[1 - position], node.outs[0]
        dtype = self.flat.avals[out].dtype
        floats = jnp.issubdtype(dtype, jnp.floating) and self.flat.avals[kernel].dtype == dtype
        return (position, axes) if kernel in self.known and other not in self.known and floats else None

    def _chain(self, value: int, axes: set[int] | None = None) -> tuple[tuple[Affine, ...], int, tuple[Node, ...]]:
        """The steps behind a value that nothing else reads, in terms of its axes, and the number of their result.

        With `axes`, operands vary along these alone, and equations between the steps may lay the value out anew, as the
        squeeze of a batch of one does; these equations come third.
        """
        chain: list[Affine] = []
        layouts: list[Node] = []
        origin = {axis: axis for axis in range(len(self._shape(value)))}  # of the axes of what the chain has come to
        last, before = value, 0
        while value not in self.outputs and len(self.users[value]) == 1:
            (node,) = self.users[value]
            if axes is not None and (places := self._places(node)) is not None:
                origin = {new: origin[old] for old, new in places.items() if old in origin}
                layouts.append(node)
            else:
                allowed = None if axes is None else {axis for axis, first in origin.items() if first in axes}
                step = self._step(node, value, allowed)
                if step is None or step[0] != value:
                    break
                chain.append(_moved(step[1], origin))
                last, before = node.outs[0], len(layouts)
            (value,) = node.outs
        return tuple(chain), last, tuple(layouts[:before])

    def _places(self, node: Node) -> dict[int, int] | None:
        """Where the axes of a value lie after an equation that lays it out anew, if they are kept; None for others."""
        name, params = node.eqn.primitive.name, node.eqn.params
        if name not in _LAYOUTS or len(node.ins) != 1:
            return None
        before, after = self._shape(node.ins[0]), self._shape(node.outs[0])
        if name == "transpose":
            return {old: new for new, old in enumerate(params["permutation"])}
        if params.get("dimensions") is not None and name == "reshape":
            return None
        if str(math.prod(before)) != str(math.prod(after)):
            return None
        ends = {(str(math.prod(after[:new])), str(n)): new for new, n in enumerate(after) if n != 1}
        keys = ((old, (str(math.prod(before[:old])), str(n))) for old, n in enumerate(before) if n != 1)
        return {old: ends[key] for old, key in keys if key in ends}

    def _step(self, node: Node, like: int, axes: set[int] | None = None) -> tuple[int, Affine] | None:
        """An equation as an affine step of a value of the shape and dtype of `like`: this value, and the step."""
        name, aval = node.eqn.primitive.name, self.flat.avals[like]
        out = self.flat.avals[node.outs[0]]
        if name not in _AFFINE or out.shape != aval.shape or out.dtype != aval.dtype:
            return None
        if not jnp.issubdtype(aval.dtype, jnp.floating):
            return None
        if name == "neg":
            return node.ins[0], Affine("neg")
        for position in (1, 0):
            value, other = node.ins[1 - position], node.ins[position]
            if value in self.known or self.flat.avals[value].shape != aval.shape or (name == "div" and not position):
                continue
            operand = self._operand(other)
            if operand is not None and (axes is None or self._extends(operand) <= axes):
                return value, Affine("add" if name == "add_any" else name, operand, reverse=not position)
        return None

    def _operand(self, number: int) -> Operand | None:
        """A value as a known array, perhaps broadcast."""
        if number in self.known:
            return Operand(number, tuple(range(len(self._shape(number)))))
        node = self.maker.get(number)
        if node is None or node.eqn.primitive.name != "broadcast_in_dim":
            return None
        inner = self._operand(node.ins[0])
        places = node.eqn.params["broadcast_dimensions"]
        return None if inner is None else Operand(inner.number, tuple(places[k] for k in inner.axes))

    def _extends(self, operand: Operand) -> set[int]:
        """The axes along which an operand has more than one element."""
        return {axis for axis, n in zip(operand.axes, self._shape(operand.number), strict=True) if n != 1}

    def _shape(self, number: int) -> tuple[Any, ...]:
        return tuple(self.flat.avals[number].shape)

    def _linear(self, node: Node, position: int, axes: tuple[tuple[int, int], ...], chain: tuple[Affine, ...]) -> Node:
        """The convolution or product that includes the chain behind it."""
        rank, dtype = len(self._shape(node.outs[0])), self.flat.avals[node.outs[0]].dtype
        ins = list(node.ins)
        if any(step.name in ("mul", "div", "neg") or step.reverse for step in chain):
            ins[position] = self._new(Made(node.ins[position], chain, axes, rank, False, dtype))
        shifts = any(step.name in ("add", "sub") for step in chain)
        bias = self._new(Made(None, chain, axes, rank, True, dtype)) if shifts else None
        return node._replace(ins=tuple(ins), bias=bias)

    def _factor_and_shift(self, number: int, chain: tuple[Affine, ...], last: int, node: Node) -> list[Node]:
        rank, aval = len(self._shape(node.outs[0])), self.flat.avals[last]
        factor, shift = (self._new(Made(None, chain, (), rank, is_shift, aval.dtype)) for is_shift in (False, True))
        between = self.number
        self.flat.avals[between] = aval
        self.number += 1
        multiply, add = (_equation(operation, node.eqn.source_info) for operation in (lax.mul, lax.add))
        return [
            Node(multiply, (number, factor), (between,), node.source),
            Node(add, (between, shift), (last,), node.source),
        ]

    def _new(self, made: Made) -> int:
        number, self.number = self.number, self.number + 1
        self.made[number] = made
        lengths: dict[int, Any] = {}
        for operand in (step.operand for step in made.chain if step.operand is not None):
            lengths |= {axis: n for axis, n in zip(operand.axes, self._shape(operand.number), strict=True) if n != 1}
        shape = tuple(lengths.get(axis, 1) for axis in range(made.rank))
        if made.axes:
            shape = trimmed(shape) if made.kernel is None else self._shape(made.kernel)
        self.flat.avals[number] = jax.ShapeDtypeStruct(shape, made.dtype)
        return number


def _moved(step: Affine, origin: Mapping[int, int]) -> Affine:
    """A step whose operand lies along the axes where those of its value come from; axes of length 1 may have none."""
    if step.operand is None:
        return step
    number, axes = step.operand
    return step._replace(operand=Operand(number, tuple(origin.get(axis, -1) for axis in axes)))


def _laid_out(linear: Node, layouts: Sequence[Node], last: int) -> list[Node]:
    """An equation, then layouts of its result, the last of which is the value `last`."""
    outs = [*(node.outs[0] for node in (linear, *layouts[:-1])), last][-len(layouts) - 1 :]
    found = [linear._replace(outs=(outs[0],))]
    return found + [
        node._replace(ins=(before,), outs=(out,)) for node, before, out in zip(layouts, outs, outs[1:], strict=False)
    ]


def _equation(operation: Callable[[Any, Any], Any], source: Any) -> Equation:
    """The equation of an operation on two arrays; its parameters are other ones in other versions of JAX."""
    (eqn,) = jax.make_jaxpr(operation)(0.0, 0.0).eqns
    return Equation(eqn.primitive, eqn.params, eqn.invars, eqn.outvars, source, ())


def _is_longer(chain: Sequence[Affine]) -> bool:
    """Whether a chain takes more than one multiplication and one addition."""
    scales = sum(step.name in ("mul", "div", "neg") or step.reverse for step in chain)
    return len(chain) > 2 or (len(chain) == 2 and scales in (0, 2))
