"""What the rules work on: id vectors, and the record of what was tied, fixed and inexact.

Beside its ids, an axis carries what a channel holds once the vectors (scale, bias) of its unit are zero: 0 after a
BatchNorm, still 0 after a ReLU, 0.5 after a sigmoid, NaN where that is not known. Where a contraction meets something
other than 0, zeroing and cutting differ, and the units are recorded as inexact.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax import dtypes
from jax.extend import core
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FIXED = 0  # id of everything that cannot be cut
FREE = -1  # id of an axis made by broadcasting: it takes the length of whatever it meets


class Value(NamedTuple):
    """One traced array: per axis the ids and the values that dropped channels hold; `const` if it is one number."""

    ids: tuple[np.ndarray, ...]
    dead: tuple[np.ndarray, ...]
    const: float = math.nan
    leaf: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.ids)


Rule = Callable[..., list[Value]]

CALLS = ["jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "custom_lin", "remat2"]


class Walk:
    """One pass over a program: follows values through it by `rules` and records what they find."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self.rules = rules
        self.size = 1
        self.left: list[np.ndarray] = []
        self.right: list[np.ndarray] = []
        self.inexact: list[np.ndarray] = []
        self.merges: list[tuple[list[np.ndarray], np.ndarray]] = []
        self.opaque: dict[str, None] = {}
        self.reads: dict[int, None] = {}
        self.vectors: set[int] = set()

    def parameter(self, leaf: int, shape: tuple[int, ...]) -> Value:
        ids = tuple(self.fresh(n) for n in shape)
        return Value(ids, tuple(np.full(n, 0.0 if len(shape) == 1 else math.nan) for n in shape), leaf=leaf)

    def fresh(self, n: int) -> np.ndarray:
        self.size += n
        return np.arange(self.size - n, self.size)

    def fixed(self, shape: tuple[int, ...]) -> Value:
        return Value(tuple(np.full(n, FIXED) for n in shape), tuple(np.full(n, math.nan) for n in shape))

    def constant(self, value: Any) -> Value:
        fixed = self.fixed(np.shape(value))
        kind = np.result_type(value)
        number = not fixed.ids and (kind.kind in "biuf" or dtypes.issubdtype(kind, np.floating))  # bfloat16 is a "V"
        return fixed._replace(const=float(value)) if number else fixed

    def follow(self, jaxpr: Any, args: list[Value]) -> list[Value]:
        """Carry `args` through a jaxpr and return its outputs."""
        consts = jaxpr.consts if isinstance(jaxpr, core.ClosedJaxpr) else []
        jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
        env: dict[Any, Value] = {}
        env.update(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Value:
            return self.constant(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            self._note_reads(eqn, ins)
            rule = self.rules.get(eqn.primitive.name, opaque)
            env.update(zip(eqn.outvars, rule(self, eqn, *ins), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _note_reads(self, eqn: Any, values: list[Value]) -> None:
        if eqn.primitive.name in CALLS or eqn.primitive.name in ("scan", "while", "cond"):
            return
        for value in values:
            if value.leaf is not None:
                self.reads[value.leaf] = None
                if len(value.ids) == 1:
                    self.vectors.add(value.leaf)

    def unite(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Tie two axes of equal length, index by index; free indices take the other's id, and fixed ones stay fixed."""
        differ = (a != b) & (a != FREE) & (b != FREE)
        self.left.append(a[differ])
        self.right.append(b[differ])
        return np.where((a == FREE) | (b == FIXED), b, a)

    def fix(self, ids: np.ndarray) -> np.ndarray:
        self.unite(ids, np.full(len(ids), FIXED))
        return np.full(len(ids), FIXED)

    def tie(self, ids: np.ndarray, groups: int, across: int) -> np.ndarray:
        """Tie the (groups, n / groups) grid of an axis along `across`, so that whole rows or columns live or die."""
        grid = ids.reshape(groups, -1)
        first = grid[:1] if across == 0 else grid[:, :1]
        return self.unite(np.broadcast_to(first, grid.shape).reshape(-1), ids)

    def defer_merge(self, factors: list[np.ndarray]) -> np.ndarray:
        """New ids for the merger of several axes of which more than one may be live; `settle_merges` decides."""
        factors = [settle(axis) for axis in factors]
        merged = self.fresh(math.prod(map(len, factors)))
        self.merges.append((factors, merged))
        return merged

    def settle_merges(self) -> None:
        """Tie each deferred merger to the one factor that it moves with; fix all of it where there is no such one."""
        while self.merges:
            group = self.components()
            left = [merge for merge in self.merges if not self._settle_merge(group, *merge)]
            if len(left) == len(self.merges):
                for ids in (*left[0][0], left[0][1]):
                    self.fix(ids)
                self.opaque["reshape"] = None
                left = left[1:]
            self.merges = left

    def _settle_merge(self, group: np.ndarray, factors: list[np.ndarray], merged: np.ndarray) -> bool:
        alive = [k for k, axis in enumerate(factors) if np.any(group[axis] != group[FIXED])]
        grid = group[merged].reshape([len(axis) for axis in factors])
        if np.all(grid == group[FIXED]):
            alive = []
        if len(alive) > 1:
            alive = [k for k in alive if depends_on(grid, k)]
            if len(alive) != 1:
                return False
        for k, axis in enumerate(factors):
            if k not in alive:
                self.fix(axis)
        self.unite(merged, repeat_factor(factors, alive[0]) if alive else np.full(len(merged), FIXED))
        return True

    def components(self) -> np.ndarray:
        """Number of the connected component of each id."""
        left, right = (np.concatenate([*side, np.zeros(0, np.int64)]) for side in (self.left, self.right))
        edges = coo_array((np.ones(len(left), bool), (left, right)), shape=(self.size, self.size))
        return connected_components(edges, directed=False)[1]

    def contract(self, a: np.ndarray, dead_a: np.ndarray, b: np.ndarray, dead_b: np.ndarray) -> None:
        """Sum over a pair of axes: tied, and exact where one side is zero for dropped channels."""
        ids = self.unite(settle(a), settle(b))
        self.inexact.append(ids[(dead_a != 0) & (dead_b != 0)])


def settle(ids: np.ndarray) -> np.ndarray:
    """Free indices become fixed: here their length matters."""
    return np.where(ids == FREE, FIXED, ids)


def repeat_factor(factors: list[np.ndarray], k: int) -> np.ndarray:
    """Factor `k` of a merged axis, repeated along the others."""
    lengths = [len(axis) for axis in factors]
    return np.tile(np.repeat(factors[k], math.prod(lengths[k + 1 :])), math.prod(lengths[:k]))


def lines(grid: np.ndarray, k: int) -> np.ndarray:
    """All lines of a grid along axis `k`, as rows."""
    return np.moveaxis(grid, k, -1).reshape(-1, grid.shape[k])


def depends_on(grid: np.ndarray, k: int) -> bool:
    """Whether a grid changes along axis `k` alone."""
    rows = lines(grid, k)
    return bool(np.all(rows == rows[0]))


def live(ids: np.ndarray) -> bool:
    return bool(np.any(ids > FIXED))


def still_zero(dead: np.ndarray) -> np.ndarray:
    return np.where(dead == 0, 0.0, math.nan)


def unknown(n: int) -> np.ndarray:
    return np.full(n, math.nan)


def fix_axes(walk: Walk, name: str, value: Value, axes: Any) -> None:
    for axis in axes:
        if live(value.ids[axis]):
            walk.fix(settle(value.ids[axis]))
            walk.opaque[name] = None


def opaque(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    for value in ins:
        fix_axes(walk, eqn.primitive.name, value, range(len(value.ids)))
    return [walk.fixed(getattr(var.aval, "shape", ())) for var in eqn.outvars]
