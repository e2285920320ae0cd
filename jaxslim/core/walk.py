"""One pass over a traced program that records which ids share their fate.

Cutting a channel equals zeroing everything of it if every contraction (a sum over channels) then meets a 0 for it.
Otherwise the channel is recorded as inexact.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jax.extend import core

from jaxslim.core.symbols import with_numbers
from jaxslim.core.value import FREE, Axis, Value, constant, free_axes, unknown_axis

Rule = Callable[..., list[Value]]
T = TypeVar("T")

# Primitives that run one program once, with their inputs as they are.
CALLS = ("jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_lin", "remat2", "checkpoint")
# Primitives that only pass their inputs on to other programs.
CONTROL_FLOW = (*CALLS, "cond", "scan", "while", "shard_map")


class Reason(NamedTuple):
    """Why an index is fixed."""

    cause: str
    """The primitive, `input` or `output`, and what of it."""
    source: Any = None
    """Where the primitive stands in the user's code, as JAX's source infos: its own, then those of its callers."""
    expected: bool = False
    """Whether nobody would expect this axis to shrink, as the window of a kernel."""


class Product(NamedTuple):
    """An axis that is the grid of several others: an element survives if its index along each of them does."""

    grid: np.ndarray
    """int (n,): ids of the axis."""
    factors: tuple[np.ndarray, ...]
    """Ids of the others, whose lengths multiply to n."""
    reason: Any
    """The equation that needs this."""


class Step(NamedTuple):
    """One equation as the walk met it."""

    ins: list[Value]
    outs: list[Value]
    inner: "list[Record]"
    """The programs inside, in the order they were followed; of a loop only the last round counts."""


class Record(NamedTuple):
    """One program as the walk met it."""

    ins: list[Value]
    steps: list[Step]
    outs: list[Value]


class Walk:
    """Follows values through a program by the `rules` of its primitives, and records what the rules find."""

    def __init__(self, rules: Mapping[str, Rule], numbers: dict[str, int] | None = None) -> None:
        self.rules = rules
        self.numbers = numbers or {}  # what stands in for symbolic sizes
        self.num_ids = 0
        # Pairs of equally long id vectors that are tied, index by index.
        self.united: list[tuple[np.ndarray, np.ndarray]] = []
        # Pairs of id vectors, (below, above): an index below goes if the one above goes, and can go alone.
        self.below: list[tuple[np.ndarray, np.ndarray]] = []
        # For the first id of an axis behind a norm: the ids of the axis, and those of the stream in front.
        self.taken: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.products: list[Product] = []
        # Ids of channels that a sum met although they may hold something other than 0: once everything above is zero
        # too, and while nothing above is.
        self.inexact: list[np.ndarray] = []
        self.inexact_alone: list[np.ndarray] = []
        self.summed: list[np.ndarray] = []  # ids of channels that a contraction reads
        self.reduced: list[np.ndarray] = []  # ids of channels that a reduction or a reshape reads
        self.reasons: list[Reason] = []
        self.callers: list[Any] = []  # source infos of the equations whose inner programs the walk is in
        self.reads: dict[int, None] = {}  # numbers of the leaves that the program reads, in order
        self.ins: list[Value] = []  # inputs of the present equation, as its rule takes them
        self.inner: list[Record] = []  # programs inside the present equation

    def parameter(self, leaf: int, shape: tuple[int, ...]) -> Value:
        """A leaf of the variables, with new ids. Cut units hold 0."""
        zeroed = [np.broadcast_to(np.float64(0), (n,)) for n in shape]
        axes = tuple(Axis(self.new_ids(n), holds, holds) for n, holds in zip(shape, zeroed, strict=True))
        long = [k for k, n in enumerate(shape) if n > 1]
        return Value(axes, leaf=leaf, vector=long[0] if len(long) == 1 else None)

    def new_ids(self, n: int) -> np.ndarray:
        self.num_ids += n
        return np.arange(self.num_ids - n, self.num_ids)

    def because(self, reason: Reason) -> int:
        """The id of fixed indices for this reason."""
        self.reasons.append(reason._replace(source=(reason.source, *self.callers[::-1])))
        return FREE - len(self.reasons)

    def fixed_axis(self, n: int, reason: Reason) -> Axis:
        return unknown_axis(np.full(n, self.because(reason)))

    def follow(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """Carry `args` through a jaxpr and return its outputs."""
        steps: list[Step] = []

        def equation(eqn: Any, ins: list[Value]) -> list[Value]:
            self.ins, self.inner = ins, []
            outs = self._equation(with_numbers(eqn, self.numbers), list(ins))
            steps.append(Step(self.ins, outs, self.inner))
            return outs

        outer = self.ins, self.inner
        outs = interpret(jaxpr, args, constant, equation)
        self.ins, self.inner = outer
        self.inner.append(Record(list(args), steps, outs))
        return outs

    def _equation(self, eqn: Any, ins: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        rule = self.rules.get(name)
        if name in CONTROL_FLOW:
            self.callers.append(eqn.source_info)
            outs = rule(self, eqn, *ins) if rule else opaque(self, eqn, *ins)
            self.callers.pop()
            return outs
        for value in ins:
            if value.leaf is not None:
                self.reads[value.leaf] = None
        if all(value.free and math.isnan(value.const) for value in ins):
            outs = [Value(free_axes(getattr(var.aval, "shape", ()))) for var in eqn.outvars]
        else:
            outs = rule(self, eqn, *ins) if rule else opaque(self, eqn, *ins)
        if all(value.origin is not None for value in ins) and not eqn.effects and name not in RANDOM:
            outs = [out._replace(origin=(eqn, ins, number)) for number, out in enumerate(outs)]
        return outs

    def own(self, position: int, axes: Sequence[int] | None = None) -> Value:
        """An input of the present equation whose free axes, all or some, get ids of their own."""
        value = self.ins[position]
        wanted = range(len(value.axes)) if axes is None else axes
        if any(value.axes[k].free for k in wanted):
            owned = tuple(
                axis.map(lambda old: np.full(len(old), value.const), self.new_ids(len(axis)))
                if k in wanted and axis.free
                else axis
                for k, axis in enumerate(value.axes)
            )
            self.ins = [*self.ins]
            self.ins[position] = value = value._replace(axes=owned)
        return value

    def unite(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Tie two axes, index by index, and return the ids of both: free ones take the other's, fixed ones stay."""
        if one is other or not len(one) or other[0] == FREE:
            return one
        if one[0] == FREE:
            return other
        differ = (one != other) & ((one >= 0) | (other >= 0))
        if not differ.any():
            return one
        self.united.append((one[differ], other[differ]))
        return np.where(other < 0, other, one)

    def fix(self, ids: np.ndarray, reason: Reason) -> None:
        """Fix those of `ids` that can be cut."""
        open_ids = ids[ids >= 0]
        if len(open_ids):
            self.united.append((open_ids, np.full(len(open_ids), self.because(reason))))

    def contract(self, one: Axis, other: Axis) -> None:
        """Sum over a pair of axes: tie them; the sum is exact where either holds 0."""
        ids = self.unite(one.ids, other.ids)
        self.summed.append(ids[ids >= 0])
        self.meets(ids, (one.zeroed != 0) & (other.zeroed != 0), (one.alone != 0) & (other.alone != 0))

    def meets(self, ids: np.ndarray, harm: np.ndarray, harm_alone: np.ndarray) -> None:
        """Record where a sum met something of a cut channel."""
        can_go = ids >= 0
        self.inexact.append(ids[can_go & harm])
        self.inexact_alone.append(ids[can_go & harm_alone])


def interpret(jaxpr: Any, args: Sequence[T], constant: Callable[[Any], T], equation: Callable[..., list[T]]) -> list[T]:
    """Evaluate a jaxpr over values of any kind: `constant(array)` and `equation(eqn, inputs)` make them."""
    closed = jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, [])
    env = dict(zip(closed.jaxpr.constvars, map(constant, closed.consts), strict=True))
    env |= zip(closed.jaxpr.invars, args, strict=True)

    def read(atom: Any) -> T:
        return constant(atom.val) if isinstance(atom, core.Literal) else env[atom]

    for eqn in live_equations(closed.jaxpr):
        env |= zip(eqn.outvars, equation(eqn, [read(atom) for atom in eqn.invars]), strict=True)
    return [read(atom) for atom in closed.jaxpr.outvars]


def live_equations(jaxpr: Any) -> list[Any]:
    """The equations whose results are used, in order."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            live.append(eqn)
            needed.update(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
    return live[::-1]


def because(eqn: Any, what: str = "", *, expected: bool = False) -> Reason:
    """The reason that an equation gives for fixing an axis."""
    return Reason(f"{eqn.primitive.name} {what}".strip(), eqn.source_info, expected)


def opaque(walk: Walk, eqn: Any, *ins: Value) -> list[Value]:
    """The rule of primitives that have no rule: fix everything."""
    reason = because(eqn)
    for value in ins:
        for axis in value.axes:
            walk.fix(axis.ids, reason)
    if all(value.free for value in ins):
        return [Value(free_axes(getattr(var.aval, "shape", ()))) for var in eqn.outvars]
    fixed = walk.because(reason)
    shapes = (getattr(var.aval, "shape", ()) for var in eqn.outvars)
    return [Value(tuple(unknown_axis(np.full(n, fixed)) for n in shape)) for shape in shapes]


# Primitives whose outputs are no constants although their inputs may be.
RANDOM = ("random_bits", "rng_bit_generator", "rng_uniform", "random_gamma", "infeed")
