"""Criteria that look at the gradients of a loss."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.paths import leaf_paths
from jaxslim.errors import InputError, first_line
from jaxslim.slim.criteria.units import Reduce, parts, reduced

Loss = Callable[[Any, Any], Any]


def taylor(
    graph: ChannelGraph, loss: Loss | Any, variables: Any, batches: Iterable[Any] = (), reduce: Reduce = "sum"
) -> np.ndarray:
    """First order Taylor expansion of the loss: the sum of |w * g| over all parameters that go with a unit.

    To first order, the loss changes by at most this if the unit is set to zero (Molchanov et al., CVPR 2019, section
    3.1).

    Args:
      graph: of the network.
      loss: `loss(variables, batch)` -> number; or the gradients themselves, a tree with the paths of `variables`.
      variables: the traced variables, or those among them that are to count.
      batches: what the loss takes, one after the other; the gradient is the mean over all.
      reduce: what is made of the sums of the parameters that a unit stands in.

    Returns:
      (num_units + 1,) scores.

    Raises:
      InputError: there are no batches, the loss does not run with them, or the gradients have another structure.

    Example:
      >>> import jaxslim
      >>> w = {"a": np.ones((1, 2)), "b": np.array([[3.0], [5.0]])}
      >>> graph = jaxslim.trace(lambda w, x: x @ w["a"] @ w["b"], w, np.ones((1, 1)))
      >>> taylor(graph, lambda w, x: (x @ w["a"] @ w["b"]).sum(), w, [np.ones((1, 1))]).tolist()
      [0.0, 6.0, 10.0]
    """
    gradients = _mean(_gradients(loss, variables, batches), _precise) if callable(loss) else loss
    return _summed(graph, variables, gradients, lambda w, g: np.abs(w * g), reduce)


def fisher(
    graph: ChannelGraph, loss: Loss | Any, variables: Any, batches: Iterable[Any] = (), reduce: Reduce = "sum"
) -> np.ndarray:
    """Second order expansion with the diagonal of the Fisher matrix: half the sum of w^2 * mean of g^2.

    At a minimum the first order vanishes; the second is that of Optimal Brain Damage (LeCun et al., NeurIPS 1989,
    equation 5) with squared gradients in place of the Hessian's diagonal (Theis et al., 2018, equation 8). The mean is
    over batches, so batches of one example each give the Fisher matrix itself.

    Args:
      graph: of the network.
      loss: as for `taylor`; gradients that are given are squared.
      variables: as for `taylor`.
      batches: as for `taylor`.
      reduce: as for `taylor`.

    Returns:
      (num_units + 1,) scores.

    Raises:
      InputError: as for `taylor`.
    """
    if callable(loss):
        squares = _mean(_gradients(loss, variables, batches), lambda g: jnp.abs(_precise(g)) ** 2)
    else:
        squares = jax.tree.map(lambda g: np.abs(np.asarray(_precise(g))) ** 2, loss)
    return _summed(graph, variables, squares, lambda w, g: np.abs(w) ** 2 * g.real / 2, reduce)


def _gradients(loss: Loss, variables: Any, batches: Iterable[Any]) -> Iterable[Any]:
    """The gradient of each batch, with None at leaves that are no floats."""
    leaves, structure = jax.tree.flatten(variables)
    floats = [number for number, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]

    @jax.jit
    def gradient(own: list[Any], rest: list[Any], batch: Any) -> Any:
        def of_floats(own: list[Any]) -> Any:
            filled = dict(enumerate(rest)) | dict(zip(floats, own, strict=True))
            return loss(jax.tree.unflatten(structure, [filled[number] for number in range(len(leaves))]), batch)

        return jax.grad(of_floats)(own)

    own = [leaves[number] for number in floats]
    first = None
    for batch in batches:
        paths = [path for path, _ in leaf_paths(batch)]
        first = paths if first is None else first
        if paths != first:
            raise InputError(f"A batch has {_differing(first, paths)}; give batches of one structure.")
        try:
            found = dict(zip(floats, gradient(own, leaves, batch), strict=True))
        except InputError:
            raise
        except Exception as error:  # whatever the loss and JAX find wrong
            raise InputError(
                f"The loss cannot be applied ({first_line(error)}); give a function loss(variables, batch) -> number."
            ) from error
        yield jax.tree.unflatten(structure, [found.get(number) for number in range(len(leaves))])
    if first is None:
        raise InputError("There are no batches; give some, for example [(images, labels)].")


def _precise(gradient: Any) -> Any:
    """In float32 at least: the squares of small gradients vanish in half precision."""
    return jnp.asarray(gradient, jnp.promote_types(jnp.result_type(gradient), jnp.float32))


def _mean(trees: Iterable[Any], change: Callable[[Any], Any]) -> Any:
    total, number = None, 0
    for tree in trees:
        own = jax.tree.map(change, tree)
        total, number = own if total is None else jax.tree.map(jnp.add, total, own), number + 1
    return jax.tree.map(lambda leaf: leaf / number, total)


def _summed(
    graph: ChannelGraph,
    variables: Any,
    gradients: Any,
    value: Callable[[np.ndarray, np.ndarray], np.ndarray],
    reduce: Reduce,
) -> np.ndarray:
    weights, slopes = dict(leaf_paths(variables)), dict(leaf_paths(gradients))
    adjusted = [path for path, leaf in weights.items() if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    differing = [path for path in slopes if path not in weights] or [path for path in adjusted if path not in slopes]
    if differing:
        one, other = ("gradients", "variables") if differing[0] in slopes else ("variables", "gradients")
        advice = "give gradients of the same variables"
        raise InputError(f"The {one} hold {'/'.join(differing[0])}, which the {other} do not; {advice}.")
    for path, slope in slopes.items():
        if np.shape(slope) != np.shape(weights[path]):
            shapes = f"shape {np.shape(slope)}, and the variable {np.shape(weights[path])}"
            raise InputError(f"The gradient {'/'.join(path)} has {shapes}; give gradients of the same variables.")
    structure = jax.tree.structure(variables)
    values = [
        value(np.asarray(leaf, np.promote_types(jnp.result_type(leaf), np.float64)), np.asarray(slopes[path]))
        if path in slopes
        else np.zeros(np.shape(leaf), bool)
        for path, leaf in weights.items()
    ]
    tree = jax.tree.unflatten(structure, values)
    return reduced(graph, ((units, own.sum(1)) for units, own in parts(graph, tree)), reduce)


def _differing(first: list[Any], paths: list[Any]) -> str:
    wrong = [path for path in paths if path not in first]
    if wrong:
        return f"{'/'.join(wrong[0]) or 'an array'}, which the first has not"
    return f"no {'/'.join(next(path for path in first if path not in paths)) or 'array'}, which the first has"
