"""Cutting in steps while a network trains."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxslim.core.cut import cut, restore
from jaxslim.core.plan import Plan, plan
from jaxslim.errors import InputError
from jaxslim.slim.kinds import network
from jaxslim.slim.prune import PLAN_OPTIONS, Pruned, apply_plan, scored, traced

GOALS = ("ratio", "macs", "params")


def gradual(steps: int, how: Literal["cubic", "linear"] = "cubic") -> tuple[float, ...]:
    """Which share of all that goes has gone after each step; the last is 1.

    `linear` cuts as much in each step; `cubic` cuts most in the first ones: 1 - (1 - k / steps)^3 after step k (Zhu and
    Gupta, 2017, equation 1).

    Raises:
      InputError: there are no steps, or `how` is neither.

    Example:
      >>> gradual(2, "linear"), gradual(2)
      ((0.5, 1.0), (0.875, 1.0))
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1.")
    if how not in ("cubic", "linear"):
        raise InputError(f"The schedule is {how!r}; it must be cubic or linear.")
    return tuple(1 - (1 - k / steps) ** (3 if how == "cubic" else 1) for k in range(1, steps + 1))


class Progressive:
    """Cuts a model in steps, with training between.

    The network is traced once. Each step scores the variables as they are then; what went before stays away.

    Args:
      model: of any kind that `prune` takes.
      variables: as for `prune`.
      *inputs: as for `prune`.
      ratio: share of the channels that is gone at the end; or one of `macs` and `params`, the shares that are left.
      steps: how many cuts.
      schedule: how much of the whole each cut takes; see `gradual`.
      scores: a function `(graph, variables) -> scores`; the default is that of `prune`.
      **options: further arguments of `plan`, except thresholds and latencies; all others are keyword arguments of the
        model's call.

    Raises:
      InputError: as for `prune`.

    Example:
      >>> import jax
      >>> from flax import linen as nn
      >>> images = np.ones((4, 6))
      >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> variables = net.init(jax.random.key(0), images)
      >>> steps = Progressive(net, variables, images, ratio=0.5, steps=2, schedule="linear")
      >>> while not steps.done:
      ...     variables, (state,) = steps.cut(steps.variables, {"params": steps.variables["params"]})
      ...     print(steps.plan.achieved, steps.module.apply(variables, images).shape)
      0.25 (4, 2)
      0.5 (4, 2)
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        *inputs: Any,
        ratio: float | None = None,
        steps: int = 5,
        schedule: Literal["cubic", "linear"] = "cubic",
        scores: Any = None,
        selection: bool = True,
        **options: Any,
    ) -> None:
        chosen = {name: options.pop(name) for name in PLAN_OPTIONS & options.keys()}
        if wrong := [name for name in ("threshold", "latency", "within") if name in chosen]:
            raise InputError(f"{wrong[0]} cannot be met in steps; give one of {', '.join(GOALS)}.")
        goals = {"ratio": ratio} | {name: chosen.pop(name, None) for name in GOALS[1:]}
        self._goal = {name: value for name, value in goals.items() if value is not None}
        if len(self._goal) != 1:
            raise InputError(f"Give one of {', '.join(GOALS)}, for example ratio=0.7.")
        self._shares, self._chosen, self._inputs = list(gradual(steps, schedule)), chosen, inputs
        self._network = network(model, variables, inputs, options)
        self.graph = traced(self._network, inputs, selection)
        """The graph of the full network."""
        if scores is not None and not callable(scores):
            raise InputError("scores must be a function (graph, variables) -> scores, since the variables change.")
        self._scores = scores
        self.plan = Plan(keep=np.ones(self.graph.num_units + 1, bool))
        """What is left by now."""
        self.module = model
        """The model as it is now."""
        self.variables = self._network.variables if variables is None else variables
        """Its variables, as they were after the last cut."""
        self._plan(1.0)  # to fail before the training

    @property
    def done(self) -> bool:
        """Whether all cuts are made."""
        return not self._shares

    def cut(self, variables: Any = None, *states: Any) -> tuple[Any, tuple[Any, ...]]:
        """Take the next step.

        Args:
          variables: of `module`, trained on. For a model that holds them, the model, or None if `module` itself was
            changed; for an Equinox model with a state, the pair of both.
          *states: optimizer states over them, or other trees with their paths.

        Returns:
          The smaller variables and states. `module`, `variables` and `plan` are the new ones.

        Raises:
          InputError: all steps are taken, or as for `prune` and `cut`.
        """
        if self.done:
            raise InputError("All steps are taken; the network has its final size.")
        held = self._network.held(self.module if variables is None else variables)
        if held is not None:
            variables = held
        elif variables is None:
            variables = self.variables
        full = restore(self.graph, self.plan, variables)
        new = self._plan(self._shares[0], full)
        states = tuple(cut(self.graph, restore(self.graph, self.plan, state), new) for state in states)
        pruned: Pruned = apply_plan(self._network, self.graph, new, full, self._inputs)
        self._shares.pop(0)
        self.plan, self.module, self.variables = new, pruned.module, pruned.variables
        return pruned.variables, states

    def _plan(self, share: float, variables: Any = None) -> Plan:
        ((name, value),) = self._goal.items()
        goal: Mapping[str, Any] = {name: value * share if name == "ratio" else 1 - (1 - value) * share}
        model = self._network if variables is None else dataclasses.replace(self._network, variables=variables)
        return plan(self.graph, scored(model, self.graph, self._scores), within=self.plan, **goal, **self._chosen)
