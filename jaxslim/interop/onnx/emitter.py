"""Programs as ONNX nodes.

A value of the program is a tensor whose axes lie in an order of their own: a convolution gives (image, channel, row,
column) whatever the program says, and a transposition costs nothing until somebody needs the program's order. Axes of
length 1, and axes along which a value was broadcast, need not be there at all.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from onnx import numpy_helper

from jaxslim.core.flat import Flat, Node
from jaxslim.core.folding import fold
from jaxslim.core.sources import scope, source_line
from jaxslim.errors import InputError
from jaxslim.interop.onnx.graph import Graph, onnx_type, stored_dtype


class Tensor(NamedTuple):
    """A value that the runtime computes."""

    name: str
    axes: tuple[int, ...]
    """For each axis of the tensor, which axis of the program's value it is."""
    thin: frozenset[int] = frozenset()
    """Axes of the tensor, by their number in the program, that are 1 long though the program's are longer: the value
    is the same along them. So it is along axes that the tensor lacks."""


Held = Any  # a Tensor, or an array that is known
Rule = Callable[["Emitter", Node], "Sequence[Held]"]


class Emitter:
    """Writes one program, or the body of a loop or branch, into a graph."""

    def __init__(self, graph: Graph, rules: Mapping[str, Rule], flat: Flat, nodes: Sequence[Node]) -> None:
        self.graph, self.rules, self.flat = graph, rules, flat
        self.values: dict[int, Held] = {}
        self.names: dict[int, str] = {}
        """What stored arrays are called."""
        self.maker = {out: node for node in nodes for out in node.outs}
        self.uses = Counter(number for node in nodes for number in node.reads) + Counter(flat.outputs)
        self.pools: dict[int, tuple[int, tuple[int, ...]]] = {}
        """For a value that is a pooling by pairs: what is pooled, and the window along each axis."""
        self._laid: dict[Any, str] = {}

    def shape(self, number: int) -> tuple[Any, ...]:
        return tuple(self.flat.avals[number].shape)

    def dtype(self, number: int) -> Any:
        return stored_dtype(self.flat.avals[number].dtype)

    def known(self, number: int) -> np.ndarray | None:
        """The array that a value is; None if the runtime computes the value."""
        value = self.values.get(number)
        return value if isinstance(value, np.ndarray) else None

    def scalar(self, number: int) -> Any:
        """The number that all elements of a known value are; None otherwise."""
        array = self.known(number)
        return array.flat[0] if array is not None and array.size and (array == array.flat[0]).all() else None

    def sole(self, number: int, *kinds: str) -> Node | None:
        """The equation of one of these primitives that makes a value which nothing else reads."""
        node = self.maker.get(number)
        return node if node and node.eqn.primitive.name in kinds and self.uses[number] == 1 else None

    def present(self, number: int) -> tuple[int, ...]:
        """The axes that a value has, in its own order; a stored array lacks those of length 1."""
        value = self.values[number]
        return value.axes if isinstance(value, Tensor) else tuple(k for k, n in enumerate(value.shape) if n != 1)

    def tensor(self, number: int, order: Sequence[int] | None = None, *, thin: bool = False) -> str:
        """The name of a value with exactly the axes `order`, by default all in the program's order.

        Axes that are left out must be of length 1. With `thin`, those along which the value is the same may be 1 long.
        """
        order = tuple(range(len(self.shape(number)))) if order is None else tuple(order)
        key = (number, order, thin)
        if key not in self._laid:
            value = self.values[number]
            if not isinstance(value, Tensor | np.ndarray):
                raise unsupported("random numbers", self.graph.place)
            if isinstance(value, np.ndarray):
                self._laid[key] = self.graph.constant(laid(value, order), self.names.get(number))
            else:
                self._laid[key] = self._in_order(number, value, order, thin)
        return self._laid[key]

    def add(self, value: Held, aval: Any) -> int:
        """A number for a value that the program has none for."""
        number = max(self.flat.avals) + 1
        self.flat.avals[number], self.values[number] = aval, value
        return number

    def once(self, key: Any, make: Callable[[], str]) -> str:
        """A form of a value that several equations ask for, made at the first time."""
        if key not in self._laid:
            self._laid[key] = make()
        return self._laid[key]

    def _in_order(self, number: int, value: Tensor, order: tuple[int, ...], thin: bool) -> str:
        graph, name = self.graph, value.name
        extra = [position for position, axis in enumerate(value.axes) if axis not in order]
        if extra:
            name = graph.one("Squeeze", name, graph.integers(extra))
        axes = [axis for axis in value.axes if axis in order]
        target = [axis for axis in order if axis in axes]
        if target != axes:
            name = graph.one("Transpose", name, perm=[axes.index(axis) for axis in target])
        if missing := [position for position, axis in enumerate(order) if axis not in axes]:
            name = graph.one("Unsqueeze", name, graph.integers(missing))
        shape = self.shape(number)
        short = [axis for axis in order if (axis not in axes and shape[axis] != 1) or axis in value.thin]
        if short and not thin:
            name = graph.one("Expand", name, graph.shape([shape[axis] for axis in order]))
        return name

    def _empty(self, number: int) -> Tensor:
        """A value without elements, whatever it was made of: runtimes spread and reshape none."""
        shape, nothing = self.shape(number), numpy_helper.from_array(np.zeros(1, self.dtype(number)))
        name = self.graph.one("ConstantOfShape", self.graph.shape(shape), value=nothing)
        return Tensor(name, tuple(range(len(shape))))

    def together(
        self, numbers: Sequence[int], shape: Sequence[Any]
    ) -> tuple[list[str], tuple[int, ...], frozenset[int]]:
        """Names of values in one order, for an elementwise operation; the order; and what stays thin in the result."""
        whole = [number for number in numbers if len(self.shape(number)) == len(shape)]
        tensors = [self.values[number] for number in whole]
        axes = [value.axes for value in tensors if isinstance(value, Tensor)]
        longest = [one for one in axes if len(one) == max(map(len, axes))] or [()]
        lead = next((one for one in longest if tuple(sorted(one)) == one), longest[0])  # the program's own, if there
        needed = {axis for number in whole for axis in self.present(number)} - {*lead}
        order = tuple(sorted({*lead, *needed})) if tuple(sorted(lead)) == lead else (*lead, *sorted(needed))
        names = [self.tensor(number, order if number in whole else (), thin=True) for number in numbers]
        wide = {axis for number in whole for axis in self._wide(number)}
        return names, order, frozenset(axis for axis in order if axis not in wide and shape[axis] != 1)

    def _wide(self, number: int) -> set[int]:
        """The axes along which a value has more than one element."""
        value = self.values[number]
        if isinstance(value, np.ndarray):
            return {k for k, n in enumerate(value.shape) if n != 1}
        return {axis for axis in value.axes if axis not in value.thin and self.shape(number)[axis] != 1}

    def emit(self, node: Node) -> None:
        """Write one equation."""
        name = node.eqn.primitive.name
        self.graph.place = place = scope(node.source)
        rule = self.rules.get(name)
        if rule is None:
            raise unsupported(name, place or source_line(node.source))
        empty = [out for out in node.outs if 0 in self.shape(out)]
        if len(empty) < len(node.outs):
            self.values |= zip(node.outs, rule(self, node), strict=True)
        for out in empty:
            self.values[out] = self._empty(out)
        if node.bias is not None and name not in ("conv_general_dilated", "dot_general"):
            raise AssertionError(name)


def write(
    graph: Graph, rules: Mapping[str, Rule], flat: Flat, args: Sequence[Held], names: Sequence[Any] = ()
) -> tuple[Emitter, Sequence[int]]:
    """Write a program: what is known is computed, norms are folded, the rest becomes nodes.

    Args:
      graph: to write to.
      rules: for each primitive, what writes an equation.
      flat: the program.
      args: its inputs, tensors or arrays.
      names: paths of the inputs that are arrays, which name what is stored.
    """
    known = {number: arg for number, arg in zip(flat.inputs, args, strict=True) if not isinstance(arg, Tensor)}
    folding = fold(flat, list(known))
    emitter = Emitter(graph, rules, flat, folding.live)
    emitter.values |= zip(flat.inputs, args, strict=True)
    for number, array in folding.computed(known, folding.boundary()).items():
        is_key = jnp.issubdtype(flat.avals[number].dtype, jax.dtypes.prng_key)
        emitter.values[number] = array if is_key else np.asarray(array, emitter.dtype(number))
    if names:
        emitter.names = {number: "/".join(path) for number, path in folding.names(names).items()}
    for node in folding.live:
        emitter.emit(node)
    return emitter, flat.outputs


def laid(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """An array with its axes in this order; those that are left out are 1 long."""
    rest = [axis for axis in range(array.ndim) if axis not in order]
    return array.transpose(*order, *rest).reshape([array.shape[axis] for axis in order])


def unsupported(what: str, where: str) -> InputError:
    """The error for what has no form in ONNX."""
    place = f" ({where})" if where else ""
    return InputError(
        f'ONNX export has no rule for {what}{place}; export with format="stablehlo" (--format stablehlo), which takes '
        "every program."
    )


def relabelled(value: Tensor, places: Mapping[int, int], thin: Sequence[int] = ()) -> Tensor:
    """The same tensor with other numbers for its axes; `thin` are further axes that are 1 long."""
    axes = tuple(places[axis] for axis in value.axes)
    return Tensor(value.name, axes, frozenset([*(places[axis] for axis in value.thin), *thin]))


def is_open(sizes: Sequence[Any]) -> bool:
    """Whether a size is known at run time only."""
    return any(is_symbolic_dim(n) for n in sizes)


def reduced(emitter: Emitter, number: int, kind: str, axes: Sequence[int], dtype: Any = None) -> Tensor:
    """A value after a reduction over some axes, by the operator `kind`, perhaps as another dtype."""
    shape, value, present = emitter.shape(number), emitter.values[number], emitter.present(number)
    thin = value.thin if isinstance(value, Tensor) else frozenset[int]()
    missing = [axis for axis in axes if axis not in present and shape[axis] != 1]
    if missing or not thin.isdisjoint(axes):
        order, thin = (*present, *missing), frozenset[int]()
        name = emitter.tensor(number, order)
    else:
        order, name = present, emitter.tensor(number, present, thin=True)
    if dtype is not None:
        name = emitter.graph.one("Cast", name, to=onnx_type(dtype))
    over = [position for position, axis in enumerate(order) if axis in axes]
    name = emitter.graph.reduce(kind, name, over) if over else name
    places = {axis: place for place, axis in enumerate(axis for axis in range(len(shape)) if axis not in axes)}
    return relabelled(Tensor(name, tuple(axis for axis in order if axis in places), thin), places)
