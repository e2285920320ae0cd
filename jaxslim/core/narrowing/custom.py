"""Functions with derivative rules of their own, which stay: the rules are traced in full and run on smaller arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.replay import Narrow, Program, bind
from jaxslim.core.rules.control import inner_program
from jaxslim.core.walk import Step
from jaxslim.errors import InputError

Alive = list[list[np.ndarray | None]]


def _alive(program: Program, values: Sequence[Any]) -> Alive:
    return [[program.alive(axis) for axis in value.axes] for value in values]


def _run(program: Program, eqn: Any, step: Step) -> Callable[..., list[Any]]:
    return lambda *arrays: program.run(inner_program(eqn), step.inner[-1], arrays)


def _whole(eqn: Any, differentiable: list[int]) -> tuple[Callable[..., Any], list[Any], list[Any]]:
    """The full function of its differentiable inputs and of the others, and the shapes of both."""
    shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars]
    others = [number for number in range(len(shapes)) if number not in differentiable]

    def function(inputs: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        arrays = dict(zip(differentiable, inputs, strict=True)) | dict(zip(others, rest, strict=True))
        return list(bind(eqn, [arrays[number] for number in range(len(shapes))]))

    return function, [shapes[number] for number in differentiable], [shapes[number] for number in others]


def _differentiable(eqn: Any) -> list[int]:
    """Numbers of the inputs that a rule is for; those that the function closes over, which come first, have none."""
    closed_over = eqn.params.get("num_consts", 0)
    is_float = [jnp.issubdtype(var.aval.dtype, np.inexact) for var in eqn.invars]
    return [k for k, own in enumerate(is_float) if own and k >= closed_over]


def _origins(step: Step, numbers: list[int]) -> list[Any]:
    """What the constants among the inputs are made of, for those with these numbers."""
    return [step.ins[k].origin for k in numbers]


def _custom_jvp(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    function = jax.custom_jvp(_run(program, eqn, step))
    numbers = _differentiable(eqn)

    @function.defjvp
    def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        whole, shapes, rest_shapes = _whole(eqn, numbers)

        def both(inputs: Any, directions: Any, rest: Any) -> Any:
            return jax.jvp(lambda *inputs: whole(inputs, rest), inputs, directions)

        closed = jax.make_jaxpr(both)(tuple(shapes), tuple(shapes), rest_shapes)
        alive = _alive(program, step.ins)
        rest = [k for k in range(len(alive)) if k not in numbers]
        origins = [*2 * [None] * len(numbers), *_origins(step, rest)]
        inner = program.inside(closed, [alive[k] for k in (*numbers, *numbers, *rest)], origins)
        given = [*(primals[k] for k in numbers), *(tangents[k] for k in numbers)]
        outs = inner([*given, *(primals[k] for k in rest)])
        outs = _fit_outputs(inner, outs, 2 * _alive(program, step.outs))
        return outs[: len(outs) // 2], outs[len(outs) // 2 :]

    return function(*program.ready(step, arrays))


def _custom_vjp(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    function = jax.custom_vjp(_run(program, eqn, step))
    numbers = _differentiable(eqn)
    whole, shapes, rest_shapes = _whole(eqn, numbers)
    structure: list[Any] = []
    alive, out_alive = _alive(program, step.ins), _alive(program, step.outs)

    def forward(*arrays: Any) -> Any:
        def both(inputs: Any, rest: Any) -> Any:
            outs, pull = jax.vjp(lambda *inputs: whole(inputs, rest), *inputs)
            residuals, tree = jax.tree.flatten(pull)
            structure[:] = [tree, [jax.ShapeDtypeStruct(np.shape(r), r.dtype) for r in residuals]]
            return outs, residuals

        closed = jax.make_jaxpr(both)(tuple(shapes), rest_shapes)
        rest = [k for k in range(len(arrays)) if k not in numbers]
        origins = [*[None] * len(numbers), *_origins(step, rest)]
        inner = program.inside(closed, [alive[k] for k in (*numbers, *rest)], origins)
        outs = inner([arrays[k] for k in (*numbers, *rest)])
        structure.extend([inner.out_alive[len(out_alive) :], inner.out_origins[len(out_alive) :]])
        fitted = _fit_outputs(inner, outs[: len(out_alive)], out_alive)
        return fitted, outs[len(out_alive) :]

    def backward(residuals: Any, gradients: Any) -> Any:
        tree, residual_shapes, residual_alive, origins = structure
        out_shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
        closed = jax.make_jaxpr(lambda r, g: jax.tree.unflatten(tree, r)(g))(residual_shapes, out_shapes)
        origins = [*origins, *[None] * len(out_alive)]
        try:
            inner = program.inside(closed, [*residual_alive, *out_alive], origins)
        except InputError:  # a stream has lost channels, and the function passes on fewer than are left
            residuals = [_spread(array, axes) for array, axes in zip(residuals, residual_alive, strict=True)]
            whole_alive = [[None] * len(axes) for axes in residual_alive]
            inner = program.inside(closed, [*whole_alive, *out_alive], origins)
        outs = _fit_gradients(inner, inner([*residuals, *gradients]), [alive[k] for k in numbers])
        found = dict(zip(numbers, outs, strict=True))
        return tuple(found.get(k) for k in range(len(alive)))

    function.defvjp(forward, backward)
    return function(*program.ready(step, arrays))


def _fit_outputs(inner: Program, outs: list[Any], wanted: Alive) -> list[Any]:
    """Outputs that nothing inside ties to what was cut come in full; they lose what the caller lost."""
    fitted = []
    for array, axes, have in zip(outs, wanted, inner.out_alive, strict=False):
        for k, alive in enumerate(axes):
            if alive is not None and have[k] is None:
                array = jnp.take(array, np.flatnonzero(alive), k)
        fitted.append(array)
    return fitted


def _fit_gradients(inner: Program, outs: list[Any], wanted: Alive) -> list[Any]:
    """As `_fit_outputs`; indices of an input that the function passes on to nothing that is left have gradient zero.

    A norm, for example, may read a stream whose channels other readers keep.
    """
    fitted = []
    for array, axes, have in zip(_fit_outputs(inner, outs, wanted), wanted, inner.out_alive, strict=True):
        differ = [
            own is not None and (alive is None or not np.array_equal(own, alive))
            for alive, own in zip(axes, have, strict=True)
        ]
        array = _spread(array, [own if other else None for own, other in zip(have, differ, strict=True)])
        for k, (alive, other) in enumerate(zip(axes, differ, strict=True)):
            if other and alive is not None:
                array = jnp.take(array, np.flatnonzero(alive), k)
        fitted.append(array)
    return fitted


def _spread(array: Any, alive: Sequence[np.ndarray | None]) -> Any:
    """An array in full along each axis of which indices survive, with zeros for the others."""
    for k, own in enumerate(alive):
        if own is not None:
            moved = jnp.moveaxis(array, k, 0)
            whole = jnp.zeros((len(own), *moved.shape[1:]), moved.dtype).at[np.flatnonzero(own)].set(moved)
            array = jnp.moveaxis(whole, 0, k)
    return array


CUSTOM: dict[str, Narrow] = {"custom_jvp_call": _custom_jvp, "custom_vjp_call": _custom_vjp}
