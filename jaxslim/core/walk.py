"""One pass over a traced program that records which ids share their fate.

Cutting a channel equals zeroing its vectors if every contraction (a sum over channels) then meets a 0 for it. Otherwise
the channel is recorded as inexact.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jax.extend import core
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxslim.core.value import FIXED, FREE, Axis, Value, constant, fix_free, fixed_axes, index_along, lines

Rule = Callable[..., list[Value]]
T = TypeVar("T")

# Primitives that run one program once, with their inputs as they are.
CALLS = ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "custom_lin", "remat2")
# Primitives that only pass their inputs on to other programs.
CONTROL_FLOW = (*CALLS, "cond", "scan", "while")


class Walk:
    """Follows values through a program by the `rules` of its primitives, and records what the rules find."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.rules = rules
        self.num_ids = 1  # FIXED is the first
        # Pairs of equally long id vectors that are tied, index by index.
        self.united: list[tuple[np.ndarray, np.ndarray]] = []
        # Ids of channels that a sum ran over although they may hold something other than 0.
        self.inexact: list[np.ndarray] = []
        # For each merge that waits for `resolve_merges`: the ids of the old axes and those of the merged one.
        self.merges: list[tuple[list[np.ndarray], np.ndarray]] = []
        self.opaque: dict[str, None] = {}  # names of the primitives that fixed a channel, in order
        self.reads: dict[int, None] = {}  # numbers of the leaves that the program reads, in order
        self.vectors: set[int] = set()  # numbers of the leaves that it reads as vectors

    def parameter(self, leaf: int, shape: tuple[int, ...]) -> Value:
        """A leaf of the variables, with new ids. Vectors hold 0, since they are what `zero` sets to zero."""
        zeroed = 0.0 if len(shape) == 1 else math.nan
        return Value(tuple(Axis(self.new_ids(n), np.full(n, zeroed)) for n in shape), leaf=leaf)

    def new_ids(self, n: int) -> np.ndarray:
        self.num_ids += n
        return np.arange(self.num_ids - n, self.num_ids)

    def follow(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """Carry `args` through a jaxpr and return its outputs."""
        return interpret(jaxpr, args, constant, self._equation)

    def _equation(self, eqn: Any, ins: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        for value in ins:
            if value.leaf is not None and name not in CONTROL_FLOW:
                self.reads[value.leaf] = None
                if len(value.axes) == 1:
                    self.vectors.add(value.leaf)
        return self.rules.get(name, opaque)(self, eqn, *ins)

    def unite(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Tie two axes, index by index, and return the ids of both: free ones take the other's, fixed ones stay."""
        differ = (one != other) & (one != FREE) & (other != FREE)
        self.united.append((one[differ], other[differ]))
        return np.where((one == FREE) | (other == FIXED), other, one)

    def fix(self, ids: np.ndarray) -> None:
        self.unite(ids, np.full(len(ids), FIXED))

    def fix_named(self, primitive: str, ids: np.ndarray) -> None:
        """Fix `ids`, and name the primitive as the reason if any of them could be cut before."""
        if np.any(ids > FIXED):
            self.fix(ids)
            self.opaque[primitive] = None

    def tie(self, ids: np.ndarray, groups: int, across: int) -> np.ndarray:
        """Tie the (groups, n / groups) grid of an axis along `across`: whole columns (0) or rows (1) share a fate."""
        grid = ids.reshape(groups, -1)
        first = grid[:1] if across == 0 else grid[:, :1]
        return self.unite(np.broadcast_to(first, grid.shape).reshape(-1), ids)

    def contract(self, one: Axis, other: Axis) -> None:
        """Sum over a pair of axes: tie them; the sum is exact where either holds 0."""
        ids = self.unite(fix_free(one.ids), fix_free(other.ids))
        self.inexact.append(ids[(one.zeroed != 0) & (other.zeroed != 0)])

    def merge(self, factors: list[np.ndarray]) -> np.ndarray:
        """New ids for an axis that merges several that can be cut; `resolve_merges` ties them later."""
        merged = self.new_ids(math.prod(map(len, factors)))
        self.merges.append(([fix_free(ids) for ids in factors], merged))
        return merged

    def resolve_merges(self) -> None:
        """Tie each merged axis to the one factor that can still be cut at the end of the program.

        Where several can, choose the only one along which the ids vary. Without such a factor, fix the whole axis.
        """
        while self.merges:
            group = self.components()
            left = [merge for merge in self.merges if not self._resolve_merge(group, *merge)]
            if len(left) == len(self.merges):
                (factors, merged), *left = left
                for ids in (*factors, merged):
                    self.fix_named("reshape", ids)
            self.merges = left

    def _resolve_merge(self, group: np.ndarray, factors: list[np.ndarray], merged: np.ndarray) -> bool:
        """Tie `merged` to one of its factors; false if the choice is not clear yet."""
        grid = group[merged].reshape([len(ids) for ids in factors])
        can_go = np.any(grid != group[FIXED])
        candidates = [k for k, ids in enumerate(factors) if can_go and np.any(group[ids] != group[FIXED])]
        if len(candidates) > 1:
            rows = {k: lines(grid, k) for k in candidates}
            candidates = [k for k in candidates if np.all(rows[k] == rows[k][0])]
            if len(candidates) != 1:
                return False
        for k, ids in enumerate(factors):
            if k in candidates:
                self.unite(merged, ids[index_along(grid.shape, k)])
            else:
                self.fix(ids)
        if not candidates:
            self.fix(merged)
        return True

    def components(self) -> np.ndarray:
        """Number of the connected component of each id."""
        rows, columns = np.concatenate([np.zeros((2, 0), np.int64), *map(np.stack, self.united)], axis=1)
        edges = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(self.num_ids, self.num_ids))
        return connected_components(edges, directed=False)[1]


def interpret(jaxpr: Any, args: Sequence[T], constant: Callable[[Any], T], equation: Callable[..., list[T]]) -> list[T]:
    """Evaluate a jaxpr over values of any kind: `constant(array)` and `equation(eqn, inputs)` make them."""
    closed = jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, [])
    env = dict(zip(closed.jaxpr.constvars, map(constant, closed.consts), strict=True))
    env |= zip(closed.jaxpr.invars, args, strict=True)

    def read(atom: Any) -> T:
        return constant(atom.val) if isinstance(atom, core.Literal) else env[atom]

    for eqn in closed.jaxpr.eqns:
        env |= zip(eqn.outvars, equation(eqn, [read(atom) for atom in eqn.invars]), strict=True)
    return [read(atom) for atom in closed.jaxpr.outvars]


def opaque(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    """The rule of primitives that have no rule: fix everything."""
    for value in ins:
        fix_axes(walk, eqn, value, range(len(value.axes)))
    return [Value(fixed_axes(getattr(var.aval, "shape", ()))) for var in eqn.outvars]


def fix_axes(walk: Walk, eqn: Any, value: Value, axes: Any) -> None:
    """Fix these axes of an input, and name the primitive."""
    for axis in axes:
        walk.fix_named(eqn.primitive.name, value.axes[axis].ids)
