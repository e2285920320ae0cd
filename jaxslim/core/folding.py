"""What of a program can be computed before its inputs are known, and which norms vanish into the layer before them.

A convolution or product of a known kernel, then a chain of additions, subtractions, multiplications and divisions by
known vectors along the axes that come from the kernel: that is one convolution or product with another kernel and a
bias. So BatchNorm in evaluation costs nothing. A chain elsewhere becomes one multiplication and one addition.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from jaxslim.core.affine import Made, evaluated
from jaxslim.core.chains import Chains
from jaxslim.core.flat import Flat, Node
from jaxslim.core.paths import Path
from jaxslim.core.replay import bind
from jaxslim.ops import conv


@dataclasses.dataclass(frozen=True)
class Folding:
    """A program in two parts."""

    known: tuple[Node, ...]
    """Equations that need no input, in order."""
    made: dict[int, Made]
    """Values made from known ones, by number."""
    live: tuple[Node, ...]
    """The equations that remain."""
    flat: Flat
    variables: tuple[int, ...]
    """Numbers of the inputs that are known."""

    def boundary(self) -> list[int]:
        """Numbers of the known values that the remaining equations and the outputs read, in order."""
        given = {*self.flat.inputs} - {*self.variables} | {out for node in self.live for out in node.outs}
        read = [number for node in self.live for number in node.reads]
        return list(dict.fromkeys(number for number in (*read, *self.flat.outputs) if number not in given))

    def origins(self) -> dict[int, frozenset[int]]:
        """For each known value, the variables that it is computed from."""
        found = {number: frozenset({number}) for number in self.variables} | dict.fromkeys(
            self.flat.constants, frozenset()
        )
        for node in self.known:
            found |= dict.fromkeys(node.outs, frozenset[int]().union(*(found[number] for number in node.ins)))
        for number, made in self.made.items():
            found[number] = frozenset[int]().union(*(found[source] for source in made.sources))
        return found

    def names(self, paths: Sequence[Path]) -> dict[int, Path]:
        """A path for each value of the boundary that stems from variables: that of the largest of these, the last of
        several.

        A bias stands beside its kernel.

        Args:
          paths: of the variables.
        """
        origins, path_of = self.origins(), dict(zip(self.variables, paths, strict=True))
        beside = {node.bias: node.ins for node in self.live if node.bias is not None}
        found: dict[int, Path] = {}
        for number in self.boundary():
            if own := origins[number].union(*(origins.get(other, ()) for other in beside.get(number, ()))):
                path = path_of[max(own, key=lambda one: (math.prod(self.flat.avals[one].shape), one))]
                if number in self.made and self.made[number].kernel is None:
                    path = (*path[:-1], "bias" if self.made[number].is_shift else "scale")
                found[number] = _unused(path, found.values())
        return found

    def values(self, variables: Mapping[int, Any], wanted: Collection[int]) -> dict[int, Any]:
        """Compute known values from those of `variables`, by number; these need not be all."""
        values: dict[int, Any] = {**self.flat.constants, **variables}
        for node in self.known:
            if values.keys() >= set(node.ins):
                outs = bind(node.eqn, [values[number] for number in node.ins])
                values |= zip(node.outs, outs, strict=True)
        made = {number: evaluated(self.made[number], values) for number in wanted if number in self.made}
        return {number: made[number] if number in made else values[number] for number in wanted}

    def computed(self, variables: Mapping[int, Any], wanted: Collection[int]) -> dict[int, Any]:
        """As `values`, compiled as one program: alone, each operation would be compiled for each shape."""
        constant = {number: self.flat.constants[number] for number in wanted if number in self.flat.constants}
        rest = [number for number in wanted if number not in constant]
        return constant | jax.jit(lambda variables: self.values(variables, rest))(dict(variables))

    def run(self, values: Mapping[int, Any]) -> list[Any]:
        """The outputs, from the boundary's values and the inputs."""
        env = dict(values)
        for node in self.live:
            outs = _evaluated(node.eqn, [env[number] for number in node.ins])
            if node.bias is not None:
                outs = [lax.add(outs[0], jnp.broadcast_to(env[node.bias], outs[0].shape))]
            env |= zip(node.outs, outs, strict=True)
        return [env[number] for number in self.flat.outputs]


def fold(flat: Flat, variables: Collection[int]) -> Folding:
    """Divide a program in what depends on the inputs and what does not, and shorten the chains.

    Args:
      flat: the program.
      variables: numbers of the inputs that are known.
    """
    known, rest = _divide(flat, variables)
    chains = Chains(flat, rest, {*flat.constants, *variables, *(out for node in known for out in node.outs)})
    live = _used(chains.shortened(), flat.outputs)
    return Folding(tuple(known), chains.made, tuple(live), flat, tuple(variables))


def _evaluated(eqn: Any, arrays: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation; a convolution takes its fastest form for the platform."""
    if eqn.primitive.name != "conv_general_dilated":
        return bind(eqn, arrays)
    params = {name: value for name, value in eqn.params.items() if name != "out_sharding"}
    images, kernel = arrays
    return [conv(images, kernel, **params)]


def _unused(path: Path, taken: Collection[Path]) -> Path:
    """The path, with a number behind if it or a part of it is taken."""
    for number in itertools.count():
        own = path if not number else (*path[:-1], f"{path[-1]}_{number}")
        if not any(own[: len(other)] == other or other[: len(own)] == own for other in taken):
            return own
    raise AssertionError


def _divide(flat: Flat, variables: Collection[int]) -> tuple[list[Node], list[Node]]:
    """Equations of which all inputs are known, and the others; a broadcast stays with these, since it costs memory."""
    values, known, rest = {*flat.constants, *variables}, [], []
    for node in flat.nodes:
        grows = node.eqn.primitive.name == "broadcast_in_dim" and _grows(flat, node)
        open_size = any(is_symbolic_dim(n) for out in node.outs for n in getattr(flat.avals[out], "shape", ()))
        can = not (node.eqn.effects or grows or open_size) and node.eqn.primitive.name not in ("infeed", "dim_as_value")
        if can and values.issuperset(node.ins):
            known.append(node)
            values.update(node.outs)
        else:
            rest.append(node)
    return known, rest


def _grows(flat: Flat, node: Node) -> bool:
    before, after = (flat.avals[number].shape for number in (node.ins[0], node.outs[0]))
    return any(is_symbolic_dim(n) for n in after) or math.prod(after) > math.prod(before)


def _used(nodes: Sequence[Node], outputs: Collection[int]) -> list[Node]:
    needed, used = set(outputs), []
    for node in reversed(nodes):
        if node.eqn.effects or not needed.isdisjoint(node.outs):
            used.append(node)
            needed.update(node.reads)
    return used[::-1]
