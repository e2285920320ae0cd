"""Which parameter vectors multiply channels: the scales of norms, and layer scales."""

from typing import Any, NamedTuple

from jaxslim.core.rules.control import inner_program, scan_inputs
from jaxslim.core.walk import interpret


class _Made(NamedTuple):
    """What an array is made of, as far as scales go. A constant is made of nothing."""

    stream: bool = False
    """Whether it is no array of parameter vectors and constants alone."""
    factors: frozenset[int] = frozenset()
    """Leaves whose product with one another, constants and further vectors this vector is."""
    vector: bool = False
    rooted: bool = False
    """Whether the root of a parameter vector, such as a running variance, divides or multiplies it."""


_SAME = ("broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims", "name", "neg", "reshape")
_SAME_TOO = ("sharding_constraint", "squeeze", "stop_gradient", "transpose")
_ROOTS = ("rsqrt", "sqrt", "pow")
_STREAM = _Made(stream=True)


def scale_leaves(jaxpr: Any, leaves: int) -> dict[int, bool]:
    """The leaves that are vectors and multiply streams, as the scale of a norm does.

    Args:
      jaxpr: of the network; its first inputs are the leaves.
      leaves: how many there are.

    Returns:
      Their numbers, each with whether a leaf's root has normalised the stream too, as the running variance of a
      BatchNorm does.
    """
    found: dict[int, bool] = {}
    ins = [_leaf(number, var.aval.shape) for number, var in enumerate(jaxpr.jaxpr.invars[:leaves])]
    _follow(found, jaxpr, [*ins, *[_STREAM] * (len(jaxpr.jaxpr.invars) - leaves)])
    return found


def _leaf(number: int, shape: tuple[int, ...]) -> _Made:
    long = len([n for n in shape if n != 1])
    if not long:  # a number, such as the count of a running mean
        return _Made()
    return _Made(stream=long > 1, vector=long == 1, factors=frozenset([number]))


def _follow(found: dict[int, bool], jaxpr: Any, ins: list[_Made]) -> list[_Made]:
    return interpret(jaxpr, ins, lambda _: _Made(), lambda eqn, ins: _equation(found, eqn, ins))


def _equation(found: dict[int, bool], eqn: Any, ins: list[_Made]) -> list[_Made]:
    name = eqn.primitive.name
    if (inner := inner_program(eqn)) is not None:
        return _follow(found, inner, ins)
    if name == "scan":
        consts, carry, scanned = scan_inputs(eqn.params, ins)
        shapes = [var.aval.shape for var in scan_inputs(eqn.params, eqn.invars)[2]]
        rows = [_row(one, shape) for one, shape in zip(scanned, shapes, strict=True)]
        _follow(found, eqn.params["jaxpr"], [*consts, *[_STREAM] * len(carry), *rows])
    elif name == "cond":
        for branch in eqn.params["branches"]:
            _follow(found, branch, ins[1:])
    elif name in (*_SAME, *_SAME_TOO):
        return [ins[0]]
    elif name in ("mul", "div"):
        return [_product(found, name, *ins)]
    elif name in _ROOTS and ins[0].vector:
        return [_Made(vector=True, rooted=True)]
    streams = [one for one in ins if one.stream]
    if not streams:
        return [_Made(vector=any(one.vector for one in ins))] * len(eqn.outvars)
    # A norm subtracts a mean and adds a bias; what two streams make together is no norm's output any more.
    rooted = name in ("add", "sub") and len(streams) == 1 and streams[0].rooted
    return [_STREAM._replace(rooted=rooted)] * len(eqn.outvars)


def _row(one: _Made, shape: tuple[int, ...]) -> _Made:
    """What one round of a scan takes of a leaf that holds a vector for each round."""
    is_vector = one.factors and len([n for n in shape[1:] if n != 1]) == 1
    return one._replace(stream=False, vector=True) if is_vector else _STREAM


def _product(found: dict[int, bool], name: str, one: _Made, other: _Made) -> _Made:
    rooted = one.rooted or other.rooted
    if not (one.stream or other.stream):
        factors = one.factors if name == "div" else one.factors | other.factors
        return _Made(factors=factors, vector=one.vector or other.vector, rooted=rooted)
    if one.stream != other.stream and not (name == "div" and other.stream):
        for leaf in (other if one.stream else one).factors if name == "mul" else ():
            found[leaf] = found.get(leaf, False) or rooted
    return _STREAM._replace(rooted=rooted)
