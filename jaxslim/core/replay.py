"""Evaluation of a traced program on smaller arrays: each shape in the program is derived again from what survives."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxslim.core.classes import survivors
from jaxslim.core.symbols import number_shape, stand_ins
from jaxslim.core.value import Axis, Value, free_axis, unknown_axis
from jaxslim.core.walk import Record, Rule, Step, Walk, live_equations

Narrow = Callable[..., Sequence[Any]]


class Program:
    """A traced program, and which indices of its inputs survive.

    Args:
      closed: its jaxpr, with the full shapes.
      alive: for each input and axis, bool (n,): whether each index survives; None where all do.
      rules: of the walk.
      narrow_rules: for each primitive whose parameters hold shapes, how it runs on smaller arrays.
      conflict: called where the program ties what goes to what stays; raises.
      whole_is_free: whether an input of which all survives may lose indices where it meets what goes, as a constant.
      origins: for each input, what it is made of if it is a constant.
    """

    def __init__(
        self,
        closed: Any,
        alive: Sequence[Sequence[np.ndarray | None]],
        rules: dict[str, Rule],
        narrow_rules: dict[str, Narrow],
        conflict: Callable[[Any], None],
        *,
        whole_is_free: bool = False,
        origins: Sequence[Any] = (),
    ) -> None:
        self.closed, self.rules, self.narrow_rules, self.conflict = closed, rules, narrow_rules, conflict
        shapes = [aval.shape for aval in closed.in_avals]
        numbers = stand_ins(shapes)
        walk = Walk(rules, numbers)
        values = []
        known = []
        for number, (axes, symbolic) in enumerate(zip(alive, shapes, strict=True)):
            shape = number_shape(symbolic, numbers)
            own = [
                free_axis(n) if survives is None and whole_is_free else unknown_axis(walk.new_ids(n))
                for survives, n in zip(axes, shape, strict=True)
            ]
            long = [k for k, n in enumerate(shape) if n > 1]
            origin = origins[number] if origins else None
            values.append(Value(tuple(own), leaf=number, vector=long[0] if len(long) == 1 else None, origin=origin))
            for axis, survives in zip(own, axes, strict=True):
                if axis.free:
                    continue
                known.append((axis.ids, np.ones(len(axis), bool) if survives is None else survives, number))
        outs = walk.follow(closed, values)
        self.classes, self.survives = survivors(walk, known, conflict)
        self.record = walk.inner[-1]
        self.out_alive = [[self.alive(axis) for axis in out.axes] for out in outs]
        self.out_origins = [out.origin for out in outs]

    def alive(self, axis: Axis) -> np.ndarray | None:
        """bool (n,): which indices of an axis survive; None if all do."""
        if axis.free or not len(axis.ids):
            return None
        alive = self.survives[self.classes.of(axis.ids)]
        return None if alive.all() else alive

    def kept(self, axis: Axis) -> np.ndarray:
        alive = self.alive(axis)
        return np.ones(len(axis), bool) if alive is None else alive

    def length(self, axis: Axis, n: Any) -> Any:
        """How many indices of an axis of length `n` survive."""
        alive = self.alive(axis)
        return n if alive is None else int(alive.sum())

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        """Run on smaller arrays."""
        return self.run(self.closed, self.record, arrays)

    def run(self, jaxpr: Any, record: Record, arrays: Sequence[Any]) -> list[Any]:
        consts, inner = (jaxpr.consts, jaxpr.jaxpr) if isinstance(jaxpr, core.ClosedJaxpr) else ([], jaxpr)
        env: dict[Any, Any] = dict(zip(inner.constvars, consts, strict=True))
        env |= zip(inner.invars, arrays, strict=True)
        equations = live_equations(inner)
        last = {atom: number for number, eqn in enumerate(equations) for atom in eqn.invars if not _is_literal(atom)}
        last |= {atom: len(equations) for atom in inner.outvars if not _is_literal(atom)}

        def read(atom: Any) -> Any:
            return atom.val if _is_literal(atom) else env[atom]

        for number, (eqn, step) in enumerate(zip(equations, record.steps, strict=True)):
            outs = self._equation(eqn, step, [read(atom) for atom in eqn.invars])
            env |= zip(eqn.outvars, outs, strict=True)
            for atom in eqn.invars:
                if not _is_literal(atom) and last[atom] == number:
                    env.pop(atom, None)
        return [read(atom) for atom in inner.outvars]

    def _equation(self, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
        if not self._is_touched(step):
            return bind(eqn, arrays)
        narrow = self.narrow_rules.get(eqn.primitive.name)
        if narrow is None:
            return bind(eqn, self.ready(step, arrays))
        return narrow(self, eqn, step, arrays)

    def _is_touched(self, step: Step) -> bool:
        """Whether any axis that the equation, or a program inside, meets has lost indices."""
        if any(self.alive(axis) is not None for value in (*step.ins, *step.outs) for axis in value.axes):
            return True
        return any(self._is_touched(inner_step) for record in step.inner for inner_step in record.steps)

    def ready(self, step: Step, arrays: Sequence[Any]) -> list[Any]:
        """The inputs of an equation, with free axes that got ids cut to these."""
        return [self.fit(array, value) for array, value in zip(arrays, step.ins, strict=True)]

    def fit(self, array: Any, value: Value) -> Any:
        """`array` without what is gone of `value`: along axes that are whole still."""
        for k, axis in enumerate(value.axes):
            alive = self.alive(axis)
            if alive is not None and np.shape(array)[k] != alive.sum():
                array = take(array, alive, k)
        return array

    def to(self, array: Any, value: Value, axes: Sequence[Axis]) -> Any:
        """`array`, which stands for `value`, with the indices that survive in `axes`, where these are as long."""
        for k, (own, target) in enumerate(zip(value.axes, axes, strict=True)):
            wanted = self.alive(target)
            if len(own) != len(target) or wanted is None:
                continue
            have = self.alive(own)
            if have is None or np.shape(array)[k] == len(own):
                array = take(array, wanted, k)
            elif have.sum() != wanted.sum():
                array = take(array, wanted[have], k)
        return array

    def inside(
        self, closed: Any, alive: Sequence[Sequence[np.ndarray | None]], origins: Sequence[Any] = ()
    ) -> "Program":
        """Another program, such as a derivative rule, with what survives of its inputs."""
        rules = self.rules, self.narrow_rules, self.conflict
        return Program(closed, alive, *rules, whole_is_free=True, origins=origins)


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, core.Literal)


def bind(eqn: Any, arrays: Sequence[Any], **changed: Any) -> Sequence[Any]:
    """Evaluate an equation, perhaps with other parameters."""
    outs = eqn.primitive.bind(*arrays, **eqn.primitive.get_bind_params({**eqn.params, **changed}))
    return outs if eqn.primitive.multiple_results else [outs]


def take(array: Any, alive: np.ndarray, axis: int) -> Any:
    """The indices that survive along an axis: as a slice if they lie evenly, else as a gather."""
    indices = np.flatnonzero(alive)
    if isinstance(array, np.ndarray):
        return np.take(array, indices, axis)
    return take_at(array, indices, axis)


def take_at(array: Any, indices: np.ndarray, axis: int) -> Any:
    steps = np.diff(indices)
    if len(indices) and (steps == (steps[:1] if len(steps) else 1)).all() and (not len(steps) or steps[0] > 0):
        step = int(steps[0]) if len(steps) else 1
        return jax.lax.slice_in_dim(array, int(indices[0]), int(indices[-1]) + 1, step, axis)
    return jnp.take(array, indices, axis, mode="clip", unique_indices=True)
