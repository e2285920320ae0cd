"""An ONNX graph under construction: nodes, stored arrays and sizes that are known at run time only."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from jax.export import is_symbolic_dim
from onnx import helper, numpy_helper

from jaxslim.core.symbols import evaluate_size
from jaxslim.errors import InputError

LEAST_OPSET = 13


class Graph:
    """Nodes in order. A graph inside another one, of a loop or branch, reads the values of the outer graph."""

    def __init__(self, opset: int, outer: "Graph | None" = None) -> None:
        self.opset, self.outer = opset, outer
        self.nodes: list[Any] = []
        self.place = ""
        """Where the equation stands that is being written, for names and messages."""
        self.sizes: dict[str, str] = outer.sizes if outer else {}
        """Names of the values (scalar int64) of symbolic sizes."""
        self._arrays: dict[str, Any] = outer._arrays if outer else {}
        self._known: dict[Any, str] = outer._known if outer else {}
        self._taken: dict[str, int] = outer._taken if outer else {}
        self._made: dict[Any, str] = {}

    def unique(self, hint: str) -> str:
        """A name that nothing has yet."""
        number = self._taken.get(hint, 0)
        self._taken[hint] = number + 1
        return hint if not number else self.unique(f"{hint}_{number}")

    def op(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        self._check(kind)
        name = self.unique(f"{self.place}/{kind}" if self.place else kind)
        outs = [self.unique(name if outputs == 1 else f"{name}:{number}") for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name=name, **attributes))
        return outs

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.op(kind, inputs, **attributes)[0]

    def constant(self, array: Any, name: str | None = None) -> str:
        """The name of a stored array; equal small arrays are stored once."""
        array = np.asarray(array, stored_dtype(np.asarray(array).dtype), order="C")
        key = (array.dtype.name, array.shape, array.tobytes()) if array.size <= 64 and name is None else None
        if key is None or key not in self._known:
            found = self.unique(name or "constant")
            self._arrays[found] = numpy_helper.from_array(array, found)
            if key is None:
                return found
            self._known[key] = found
        return self._known[key]

    def integers(self, values: Sequence[int]) -> str:
        """The name of a stored vector of int64."""
        return self.constant(np.asarray(values, np.int64).reshape(len(values)))

    def size(self, size: Any) -> str:
        """The name of a scalar int64 with a size, which is computed if it is symbolic."""
        if not is_symbolic_dim(size):
            return self.constant(np.int64(size))
        return self.once(("size", str(size)), lambda: evaluate_size(size, _Sizes(self)).name)

    def shape(self, sizes: Sequence[Any]) -> str:
        """The name of a vector of int64 with these sizes."""
        if not any(is_symbolic_dim(n) for n in sizes):
            return self.integers(sizes)

        def made() -> str:
            zero = self.integers([0])
            parts = [
                self.one("Unsqueeze", self.size(n), zero) if is_symbolic_dim(n) else self.integers([n]) for n in sizes
            ]
            return self.one("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

        return self.once(("shape", str(tuple(sizes))), made)

    def reshape(self, name: str, sizes: Sequence[Any]) -> str:
        """Add a reshape; one symbolic size is left to the runtime."""
        symbolic = [is_symbolic_dim(n) for n in sizes]
        if sum(symbolic) == 1 and 0 not in sizes:
            target = self.integers([-1 if one else n for n, one in zip(sizes, symbolic, strict=True)])
        else:
            target = self.shape(sizes)
        return self.one("Reshape", name, target, **({} if self.opset < 14 else {"allowzero": int(0 in sizes)}))

    def reduce(self, kind: str, name: str, axes: Sequence[int], keepdims: bool = False) -> str:
        """Add a reduction over axes; older opsets take these as an attribute."""
        if kind == "ReduceSum" or self.opset >= 18:
            return self.one(kind, name, self.integers(axes), keepdims=int(keepdims))
        return self.one(kind, name, axes=list(axes), keepdims=int(keepdims))

    def once(self, key: Any, make: Any) -> str:
        """A value that several equations ask for, made at the first time."""
        graph: Graph | None = self
        while graph is not None:
            if key in graph._made:
                return graph._made[key]
            graph = graph.outer
        self._made[key] = name = make()
        return name

    def stored(self) -> dict[str, Any]:
        """The stored arrays by name."""
        return self._arrays

    def _check(self, kind: str) -> None:
        try:
            onnx.defs.get_schema(kind, self.opset, "")
        except onnx.defs.SchemaError:
            since = min(one.since_version for one in onnx.defs.get_all_schemas_with_history() if one.name == kind)
            where = f" ({self.place})" if self.place else ""
            raise InputError(
                f"ONNX opset {self.opset} lacks the operator {kind}, which the network needs{where}; use opset {since} "
                "or newer."
            ) from None


def onnx_type(dtype: Any) -> int:
    """The number that ONNX has for a dtype."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(stored_dtype(dtype))))


def stored_dtype(dtype: Any) -> Any:
    """The dtype that a file has in place of a program's: runtimes on a CPU lack bfloat16, and float32 holds it all."""
    return np.float32 if dtype == jnp.bfloat16 else dtype


def used(nodes: Sequence[Any], wanted: Iterable[str]) -> list[Any]:
    """The nodes that some wanted values need, in order."""
    needed, found = set(wanted), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            found.append(node)
            needed |= reads(node)
    return found[::-1]


def reads(node: Any) -> set[str]:
    """Names that a node, or a graph inside it, reads."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found = found.union(*(reads(inner) for inner in attribute.g.node))
    return found


class _Size:
    """A size of the run time in an expression of sizes."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def _with(self, kind: str, other: Any, *, swap: bool = False) -> "_Size":
        own = other.name if isinstance(other, _Size) else self.graph.constant(np.int64(other))
        pair = (own, self.name) if swap else (self.name, own)
        return _Size(self.graph, self.graph.one(kind, *pair))

    def __add__(self, other: Any) -> "_Size":
        return self._with("Add", other)

    def __mul__(self, other: Any) -> "_Size":
        return self._with("Mul", other)

    def __sub__(self, other: Any) -> "_Size":
        return self._with("Sub", other)

    def __rsub__(self, other: Any) -> "_Size":
        return self._with("Sub", other, swap=True)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "_Size":
        return self._with("Mul", -1)

    def __pow__(self, power: int) -> "_Size":
        found = self
        for _ in range(power - 1):
            found = found * self
        return found

    def __floordiv__(self, other: Any) -> "_Size":
        return self._with("Div", other)  # both are positive

    def __mod__(self, other: Any) -> "_Size":
        return self._with("Mod", other)


class _Sizes(dict[str, Any]):
    """The symbols of a graph, for `evaluate_size`."""

    def __init__(self, graph: Graph) -> None:
        super().__init__({name: _Size(graph, value) for name, value in graph.sizes.items()})
        graph_size = graph

        def larger(a: Any, b: Any) -> _Size:
            return (a if isinstance(a, _Size) else _Size(graph_size, graph_size.size(a)))._with("Max", b)

        def smaller(a: Any, b: Any) -> _Size:
            return (a if isinstance(a, _Size) else _Size(graph_size, graph_size.size(a)))._with("Min", b)

        self |= {"max": larger, "min": smaller}
