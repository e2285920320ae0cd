"""Programs inside the program, on smaller arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim.core.replay import Narrow, Program
from jaxslim.core.rules.control import inner_program, scan_inputs
from jaxslim.core.value import Value
from jaxslim.core.walk import Record, Step


def _call(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    return program.run(inner_program(eqn), step.inner[-1], arrays)


def _remat(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    def inner(*arrays: Any) -> list[Any]:
        return program.run(inner_program(eqn), step.inner[-1], arrays)

    options = {name: eqn.params[name] for name in ("policy", "prevent_cse") if name in eqn.params}
    return jax.checkpoint(inner, **options)(*arrays)


def _fitted(program: Program, arrays: Sequence[Any], values: Sequence[Value], targets: Sequence[Value]) -> list[Any]:
    return [program.to(array, value, target.axes) for array, value, target in zip(arrays, values, targets, strict=True)]


def _cond(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    def branch(jaxpr: Any, record: Record) -> Callable[..., list[Any]]:
        return lambda *arrays: _fitted(program, program.run(jaxpr, record, arrays), record.outs, step.outs)

    branches = [branch(*pair) for pair in zip(eqn.params["branches"], step.inner, strict=True)]
    return jax.lax.switch(arrays[0], branches, *arrays[1:])


def _scan(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    params, record = eqn.params, step.inner[-1]
    consts, start, scanned = scan_inputs(params, arrays)
    _, start_values, _ = scan_inputs(params, step.ins)
    number, carried = len(consts), len(start)
    values = record.ins[number : number + carried]

    def body(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = program.run(params["jaxpr"], record, [*consts, *carry, *slices])
        return _fitted(program, outs[:carried], record.outs[:carried], values), outs[carried:]

    options = {name: params[name] for name in ("length", "reverse", "unroll") if name in params}
    carry, rows = jax.lax.scan(body, _fitted(program, start, start_values, values), scanned, **options)
    return [*carry, *rows]


def _while(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    params, (body_record, cond_record) = eqn.params, step.inner[-2:]
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    start = n_cond + n_body
    values = body_record.ins[n_body:]
    rows = len(params["cond_jaxpr"].out_avals[0].shape)  # where vmap made the loop, each row has a predicate

    def predicate(carry: list[Any]) -> Any:
        return program.run(params["cond_jaxpr"], cond_record, [*arrays[:n_cond], *carry])[0]

    def body(carry: list[Any]) -> list[Any]:
        outs = program.run(params["body_jaxpr"], body_record, [*arrays[n_cond:start], *carry])
        outs = _fitted(program, outs, body_record.outs, values)
        if not rows:
            return outs
        going = predicate(carry)
        return [jnp.where(jnp.expand_dims(going, range(rows, old.ndim)), new, old)
                for new, old in zip(outs, carry, strict=True)]  # fmt: skip

    def goes_on(carry: list[Any]) -> Any:
        return predicate(carry).any()

    return jax.lax.while_loop(goes_on, body, _fitted(program, arrays[start:], step.ins[start:], values))


def _shard_map(program: Program, eqn: Any, step: Step, arrays: list[Any]) -> Sequence[Any]:
    params = eqn.params

    def inner(*arrays: Any) -> list[Any]:
        return program.run(params["jaxpr"], step.inner[-1], arrays)

    mapped = jax.shard_map(
        inner,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=list(params["out_specs"]),
        check_vma=params["check_vma"],
        axis_names=set(params.get("manual_axes", params["mesh"].axis_names)),
    )
    return mapped(*arrays)


CONTROL: dict[str, Narrow] = {
    **dict.fromkeys(("jit", "closed_call", "core_call", "custom_lin"), _call),
    **dict.fromkeys(("remat2", "checkpoint"), _remat),
    "cond": _cond,
    "scan": _scan,
    "shard_map": _shard_map,
    "while": _while,
}
