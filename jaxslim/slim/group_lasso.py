"""Group lasso over units, as optax transforms: all parameters that go with a unit are pulled to zero together."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxslim.core.graph import ChannelGraph
from jaxslim.core.groups import going_along, groups
from jaxslim.core.paths import leaf_paths
from jaxslim.errors import InputError
from jaxslim.slim.criteria.scales import leaf_number

Axes = tuple[np.ndarray, ...]


class _Members(NamedTuple):
    """The elements of some parameters that go with each unit."""

    axes: tuple[Axes | None, ...]
    """For each parameter the unit of each index of each axis, as `ChannelGraph.units`; None if no unit pulls on it."""
    pairs: np.ndarray
    """int (2, n): units that pull, and the units on axes that they pull on: themselves, and those that go with them."""
    root: np.ndarray
    """float (num_units + 1,): root of the number of elements of each unit that pulls; 0 for other units."""
    layer: np.ndarray
    """int (num_units + 1,): number of the layer that each unit that pulls is a channel of; 0 for other units."""

    def norms(self, leaves: list[Any]) -> jax.Array:
        """(num_units + 1,): Euclidean norms of the elements of each unit that pulls; 0 for other units."""
        sums, units = [], []
        for leaf, axes in zip(leaves, self.axes, strict=True):
            if axes is not None:
                for axis in [axis for axis, own in enumerate(axes) if own.any()]:
                    sums.append(_squares(leaf, axis))
                    units.append(axes[axis])
                    # XLA would store squares that two sums share, which is slower.
                    leaf = lax.optimization_barrier(leaf)
        own = jax.ops.segment_sum(jnp.concatenate(sums), np.concatenate(units), len(self.root))
        above, below = self.pairs
        return jnp.sqrt(jax.ops.segment_sum(own[below], above, len(self.root)))

    def weights(self, norms: jax.Array, alpha: float) -> jax.Array:
        """(num_units + 1,): what the norm of each unit is multiplied by in the penalty."""
        root = jnp.asarray(self.root, norms.dtype)
        if not alpha:
            return root
        ends = (jax.ops.segment_min, jax.ops.segment_max)
        low, high = (end(norms, self.layer, len(root))[self.layer] for end in ends)
        share = jnp.where(high > low, (high - norms) / jnp.where(high > low, high - low, 1), 0)
        return root * 2 ** (alpha * share)

    def spread(self, values: jax.Array, gather: Any, join: Callable[[Any, Any], Any]) -> list[jax.Array | None]:
        """For each parameter the joined `values` of the units that its elements go with, as an array to broadcast."""
        above, below = self.pairs
        joined = gather(values[above], below, len(self.root))
        return [None if axes is None else functools.reduce(join, _along(joined, axes)) for axes in self.axes]


def _squares(leaf: jax.Array, axis: int) -> jax.Array:
    """Sum of the squares of the elements at each index of an axis."""
    size = jnp.abs(leaf)
    square = jnp.square(size.astype(jnp.promote_types(size.dtype, jnp.float32)))
    return square.sum(tuple(other for other in range(leaf.ndim) if other != axis))


def _along(values: jax.Array, axes: Axes) -> list[jax.Array]:
    """`values` of the units of each axis that has some, laid along the axis."""
    shapes = [[len(units) if own == axis else 1 for own in range(len(axes))] for axis, units in enumerate(axes)]
    return [values[units].reshape(shape) for units, shape in zip(axes, shapes, strict=True) if units.any()]


def group_lasso_subgradient(
    strength: optax.ScalarOrSchedule, graph: ChannelGraph, *, alpha: float = 0.0
) -> optax.GradientTransformation:
    """Add the subgradient of `strength * sum over units of sqrt(n) * |w|` to the updates.

    Here w are the n elements that go with a unit, in all parameters, and |w| is their Euclidean norm. An element of a
    kernel goes with the unit of its input channel and with that of its output channel, and both pull on it; if both are
    one unit, the element counts twice. What goes along counts too, as in `magnitude`. So a unit shrinks as a whole, in
    every layer that it couples, and the network needs no norms (Yuan & Lin 2006, section 2; DepGraph: Fang et al., CVPR
    2023, section 3.3). Put it first in a chain, before weight decay and momentum.

    The pull on an element is `strength` times its size relative to the root mean square of its unit. Weights are
    smaller than scales, so `strength` is smaller than that of `l1_subgradient` too.

    Args:
      strength: a number, or a schedule: a function of the number of steps taken, for a pull that grows, such as
        `optax.linear_schedule(0, 1e-4, 1000)`.
      graph: of the network whose parameters the transform is given, at the traced paths; they may be some of the traced
        variables. Parameters without units stay as they are, and so do those that training does not adjust.
      alpha: how much harder the weak units of a layer are pulled than its strong ones: the weight of a unit is
        multiplied by 2 ** (alpha * (max - |w|) / (max - min)), with the norms of its layer. DepGraph takes 4.

    Returns:
      The transform, whose state counts the steps.

    Raises:
      InputError: `strength` or `alpha` is negative or not a number; later, `init` and `update` refuse parameters
        without units or of other shapes than the traced ones.

    Example:
      >>> from jaxslim import trace
      >>> params = {"a": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}
      >>> graph = trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((1, 1)))
      >>> tx = optax.chain(group_lasso_subgradient(0.5, graph), optax.sgd(1.0))
      >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> [round(float(u[0, 0]), 4) for u in (updates["a"], updates["b"])]  # 0.5 * sqrt(2) * (0.6, 0.8)
      [-0.4243, -0.5657]
    """
    members, force = _members_of(graph, alpha), _schedule("group lasso strength", strength)

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> tuple[Any, Any]:
        those = members(_given(params, "group_lasso_subgradient"))
        leaves: list[Any] = jax.tree.leaves(params)
        structure: Any = jax.tree.structure(params)
        norms = those.norms(leaves)
        pull = force(state.count) * those.weights(norms, alpha) / jnp.where(norms > 0, norms, jnp.inf)
        factors = those.spread(pull, jax.ops.segment_sum, jnp.add)
        pulled = [
            g if factor is None else g + (factor * p).astype(g.dtype)
            for g, p, factor in zip(structure.flatten_up_to(updates), leaves, factors, strict=True)
        ]
        return structure.unflatten(pulled), optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(functools.partial(_start, members), update)


def group_lasso_proximal(
    strength: optax.ScalarOrSchedule,
    learning_rate: optax.ScalarOrSchedule,
    graph: ChannelGraph,
    *,
    alpha: float = 0.0,
) -> optax.GradientTransformation:
    """Shrink the elements of each unit together after each step, so that whole units become exactly zero.

    Put it last in a chain. With w the n elements that go with a unit after the step, all of w is multiplied by
    max(0, 1 - rate * strength * sqrt(n) / |w|), the proximal step of the penalty of `group_lasso_subgradient` (Yuan &
    Lin 2006, section 2; Parikh & Boyd 2014, section 6.5). All norms are those before the shrinking. An element of
    several units takes the factors of all of them. So where units share elements, the step is not the exact proximal
    one, but a unit under its threshold still becomes zero as a whole. Momentum m multiplies the pull of
    `group_lasso_subgradient` by 1 / (1 - m), but not this one.

    Args:
      strength: as for `group_lasso_subgradient`.
      learning_rate: a number, or a schedule.
      graph: as for `group_lasso_subgradient`.
      alpha: as for `group_lasso_subgradient`.

    Returns:
      The transform, whose state counts the steps.

    Raises:
      InputError: as for `group_lasso_subgradient`, or the learning rate is negative or not a number.

    Example:
      >>> from jaxslim import trace
      >>> params = {"a": jnp.array([[3.0, 0.3]]), "b": jnp.array([[4.0], [0.4]])}
      >>> graph = trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((1, 1)))
      >>> tx = optax.chain(optax.sgd(0.5), group_lasso_proximal(1.0, 0.5, graph))  # 0.5 * sqrt(2) is over |(0.3, 0.4)|
      >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
      >>> optax.apply_updates(params, updates)["a"].round(4).tolist()
      [[2.5757..., 0.0]]
    """
    members, force = _members_of(graph, alpha), _schedule("group lasso strength", strength)
    rate = _schedule("learning rate", learning_rate)

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> tuple[Any, Any]:
        those = members(_given(params, "group_lasso_proximal"))
        leaves: list[Any] = jax.tree.leaves(params)
        structure: Any = jax.tree.structure(params)
        changes = structure.flatten_up_to(updates)
        after = [p if axes is None else p + u for p, u, axes in zip(leaves, changes, those.axes, strict=True)]
        norms = those.norms(after)
        threshold = rate(state.count) * force(state.count) * those.weights(norms, alpha)
        below = jnp.where(threshold > 0, 0, 1)
        factors = those.spread(
            jnp.where(norms <= threshold, below, 1 - threshold / jnp.where(norms == 0, 1, norms)),
            jax.ops.segment_prod,
            jnp.multiply,
        )
        shrunk = [
            u if factor is None else (factor * moved - p).astype(u.dtype)
            for u, p, moved, factor in zip(changes, leaves, after, factors, strict=True)
        ]
        return structure.unflatten(shrunk), optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(functools.partial(_start, members), update)


def _start(members: Callable[[Any], _Members], params: Any) -> optax.ScaleByScheduleState:
    members(params)  # refuses what does not fit
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))


def _given(params: Any, name: str) -> Any:
    if params is None:
        raise InputError(f"{name} needs the parameters: call update(gradients, state, params).")
    return params


def _schedule(name: str, value: optax.ScalarOrSchedule) -> optax.Schedule:
    if callable(value):
        return value
    if not isinstance(value, jax.core.Tracer) and not 0 <= value < math.inf:  # optax.inject_hyperparams traces numbers
        raise InputError(f"The {name} is {value!r}; it must be a number of at least 0, or a schedule.")
    return optax.constant_schedule(value)


def _members_of(graph: ChannelGraph, alpha: float) -> Callable[[Any], _Members]:
    """What finds the members of each unit in a tree of parameters."""
    if not 0 <= alpha < math.inf:
        raise InputError(f"alpha is {alpha!r}; it must be a number of at least 0, for example 4.")
    goes = going_along(graph).multiply(graph.choosable[:, None]).tocsr()
    pairs, layers = np.stack(goes.nonzero()).astype(np.int32), groups(graph)

    def members(params: Any) -> _Members:
        axes = tuple(_axes(graph, path, leaf) for path, leaf in leaf_paths(params))
        count = np.zeros(graph.num_units + 1)
        for own in filter(None, axes):
            size = math.prod(map(len, own))
            for units in own:
                np.add.at(count, units, size // max(len(units), 1))
        root = np.sqrt(goes @ count)
        if not root.any():
            problem = "The parameters have no units that can be cut, so the group lasso would pull on nothing"
            raise InputError(f"{problem}; pass the trained parameters, at the paths that the graph was traced with.")
        return _Members(axes, pairs, root, np.where(root > 0, layers, 0))

    return members


def _axes(graph: ChannelGraph, path: Any, leaf: Any) -> Axes | None:
    """The units of a parameter's axes; None if it has none or is not trained."""
    number = leaf_number(graph, path)
    if number is None or not jnp.issubdtype(leaf.dtype, jnp.inexact) or (graph.trained and not graph.trained[number]):
        return None
    if np.shape(leaf) != graph.shapes[number]:
        raise InputError(
            f"{'/'.join(path)} is of shape {np.shape(leaf)}, and the graph was traced with {graph.shapes[number]}; "
            "trace the network that you train."
        )
    return graph.units[number] if any(units.any() for units in graph.units[number]) else None
