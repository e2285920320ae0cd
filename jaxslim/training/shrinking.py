"""Cutting the network of a run while it trains."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim.core.cut import cut
from jaxslim.core.graph import ChannelGraph
from jaxslim.core.layers import scored_layers
from jaxslim.core.plan import plan
from jaxslim.errors import InputError
from jaxslim.slim.criteria.scales import pulled_scale
from jaxslim.slim.kinds import network
from jaxslim.slim.progressive import gradual
from jaxslim.slim.prune import prune, scored, traced
from jaxslim.training.config import TrainConfig
from jaxslim.training.network import new


class Smaller(NamedTuple):
    """What a cut leaves of a run."""

    module: Any
    variables: Any
    rest: Any
    """The optimizer's state and the like."""


class Shrinking:
    """The cuts that `progressive` asks for: in the first half of the epochs, at the start of an epoch each.

    How many channels have gone by an epoch follows from the configuration and the uncut network alone, so a run that is
    continued cuts as one that was never stopped.
    """

    def __init__(
        self, config: TrainConfig, source: Any, image_shape: tuple[int, ...], classes: int, gone: int = 0
    ) -> None:
        if config.epochs < 2:
            raise InputError(f"progressive cuts between epochs, and there is {config.epochs}; give at least 2 epochs.")
        self._config, self._image = config, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        self._scores = pulled_scale if config.l1 else None
        if source is not None:
            module, variables = source.module, source.variables
        else:
            module = new(config, classes)
            variables = jax.eval_shape(module.init, jax.random.key(0), self._image)
            variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)
        graph, scores = self._scored(module, variables)
        plan(graph, scores, config.progressive)  # to fail before the training
        self._total = _channels(graph, scores)
        self.gone = gone
        """How many channels were cut so far; a layer with one channel left counts none."""

    def _scored(self, module: Any, variables: Any) -> tuple[ChannelGraph, Any]:
        model = network(module, variables, (self._image,))
        graph = traced(model, (self._image,))
        return graph, scored(model, graph, self._scores)

    def to_cut(self, epoch: int) -> int:
        """How many channels are to go yet by the start of an epoch."""
        config = self._config
        shares = gradual(config.progressive_steps, config.progressive_schedule)
        due = (max(2, 1 + config.epochs * k // (2 * len(shares))) for k in range(1, len(shares) + 1))
        share = max((share for share, start in zip(shares, due, strict=True) if start <= epoch), default=0.0)
        return max(math.floor(self._total * config.progressive * share + 1e-9) - self.gone, 0)

    def cut(self, epoch: int, module: Any, variables: Any, rest: Any) -> Smaller | None:
        """What is left of a network, and of the `rest` that has its arrays, by an epoch; None if all stays."""
        number = self.to_cut(epoch)
        if not number:
            return None
        there = _channels(*self._scored(module, variables))
        images = jax.random.normal(jax.random.key(0), (16, *self._image.shape[1:]))
        pruned = prune(module, variables, number / there, images, scores=self._scores, absorb=True)
        self.gone += round(pruned.plan.achieved * there)
        return Smaller(pruned.module, pruned.variables, cut(pruned.graph, rest, pruned.plan))


def _channels(graph: ChannelGraph, scores: Any) -> int:
    """How many channels of a network have scores."""
    _, score = scored_layers(graph, scores)
    return int(np.count_nonzero(graph.choosable & (score > -math.inf)))
