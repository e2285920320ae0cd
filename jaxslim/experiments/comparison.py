"""Which criterion cuts best: one trained network, cut by many criteria, before and after fine-tuning."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxslim.core.cut import mask
from jaxslim.core.plan import Plan, plan
from jaxslim.experiments.cutting import measurer, sample, scorer
from jaxslim.experiments.finetuning import finetuning
from jaxslim.reporting.comparison import CutRow, StepsRow
from jaxslim.slim import criteria
from jaxslim.slim.absorb import absorber
from jaxslim.slim.kinds import network
from jaxslim.slim.progressive import gradual
from jaxslim.slim.prune import traced
from jaxslim.training import feed
from jaxslim.training.loop import Sums, TrainState, train_step
from jaxslim.training.network import load_trained
from jaxslim.training.optimizer import learning_rates, optimizer


class Subject(NamedTuple):
    """A trained network that is cut many times.

    The cut channels stay in the arrays as zeros, so that one compiled program serves all cuts. It must be a network in
    which every cut is exact, as a VGG is.
    """

    path: Path
    config: Any
    images: Any
    module: Any
    variables: Any
    graph: Any
    accuracy: Callable[[Any], float]
    """Of variables, on the test images, as a share."""


@functools.lru_cache(maxsize=1)
def subject(path: Path) -> Subject:
    """The network of a checkpoint; the latest one is remembered."""
    (module, variables, _), config, images = load_trained(path)
    inputs = sample(images.test_images.shape[1:])
    graph = traced(network(module, variables, [inputs]), [inputs])
    return Subject(path, config, images, module, variables, graph, measurer(config, images, 0)(module))


def by_criterion(
    path: Path,
    criterion: str,
    scopes: Sequence[str],
    macs: Sequence[float],
    tuned_macs: Sequence[float],
    epochs: int,
) -> Iterator[CutRow]:
    """Cut a checkpoint's network by one criterion, with absorption, and measure its accuracy.

    Args:
      path: of the checkpoint.
      criterion: name of a function of `jaxslim.criteria`; `random` is seeded with the seed of the training,
        `magnitude` is normalised by size, and `magnitude_mean` by the mean of the layer.
      scopes: of `plan`, for example global and alike.
      macs: shares of the multiply-accumulates that are to stay.
      tuned_macs: those of them at which the cut network is fine-tuned too, as `finetuning` does.
      epochs: of fine-tuning.

    Yields:
      A row for each scope and share.
    """
    of = subject(path)
    scores = _scorer(of, criterion)(of.graph, of.variables)
    absorb = absorber(of.module.apply, of.variables, of.graph, sample(of.images.test_images.shape[1:]))
    for scope in scopes:
        for share in macs:
            chosen = plan(of.graph, scores, macs=share, scope=scope)  # type: ignore[arg-type]
            cut = mask(of.graph, absorb(chosen), chosen)
            after = of.accuracy(tuned(of, cut, chosen, epochs)) if share in tuned_macs else None
            yield CutRow(criterion, scope, share, _reached(chosen), of.accuracy(cut), after)


def in_steps(path: Path, criterion: str, macs: float, steps: int, epochs: int) -> StepsRow:
    """Cut as `jaxslim.Progressive` does, on a cubic schedule, and fine-tune after each step.

    Each step scores the network as it is then, what went before stays away, and constants are absorbed. The rate of
    each fine-tuning falls from a tenth of that of the training to zero.

    Args:
      path: of the checkpoint.
      criterion: as for `by_criterion`.
      macs: share of the multiply-accumulates that is left after the last step.
      steps: how many; 1 cuts once.
      epochs: of fine-tuning, over all steps together.
    """
    of = subject(path)
    score, variables, chosen = _scorer(of, criterion), of.variables, None
    images = sample(of.images.test_images.shape[1:])
    for share in gradual(steps):
        scores = score(of.graph, variables)
        chosen = plan(of.graph, scores, macs=1 - (1 - macs) * share, within=chosen)
        cut = mask(of.graph, absorber(of.module.apply, variables, of.graph, images)(chosen), chosen)
        variables = tuned(of, cut, chosen, epochs // steps)
    return StepsRow(criterion, macs, steps, epochs, of.accuracy(variables))


def tuned(of: Subject, variables: Any, chosen: Plan, epochs: int) -> Any:
    """Fine-tune a network whose cut channels are zero and stay zero; the steps are those of the network without them.

    Args:
      of: the network.
      variables: masked ones.
      chosen: the plan that they were masked by.
      epochs: of fine-tuning.

    Returns:
      The variables, masked too.
    """
    config, step, start, batches = _tuner(of.path, epochs)
    everywhere, _ = feed.shardings(feed.device_mesh())
    ones = jax.tree.map(jnp.ones_like, of.variables)
    keep = mask(of.graph, ones, chosen)["params"]
    sums = jax.tree.map(jnp.asarray, Sums(np.float32(0), np.int32(0), np.int32(0)))
    state = TrainState(jnp.int32(0), variables, (start(variables["params"]), keep), sums)
    state = feed.place(jax.tree.map(jnp.copy, state), everywhere)  # a step takes the arrays of its state over
    key = feed.place(jax.random.key(config.seed + 1), everywhere)
    with contextlib.closing(batches):
        for epoch in range(1, epochs + 1):
            for batch in batches.batches(epoch, skip=0):
                state = step(state, batch, key)
                jax.block_until_ready(state.step)
    return state.variables


@functools.lru_cache(maxsize=2)
def _tuner(path: Path, epochs: int) -> tuple[Any, Any, Any, Any]:
    """Configuration, compiled step, start of the optimizer, and batches of a fine-tuning."""
    of, mesh = subject(path), feed.device_mesh()
    config = finetuning(path, epochs=epochs)
    images = of.images
    seen = images.train_images, images.train_labels, config.batch_size, config.seed
    batches = feed.feed(mesh, *seen, epochs=epochs)
    unpulled = jax.tree.map(lambda _: False, of.variables["params"])
    tx = optimizer(config, learning_rates(config, batches.steps_per_epoch), unpulled)
    gate = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.ones_like, params),
        lambda updates, keep, params=None: (jax.tree.map(jnp.multiply, updates, keep), keep),
    )
    return config, train_step(config, of.module, optax.chain(tx, gate), mesh), jax.jit(tx.init), batches


def _scorer(of: Subject, criterion: str) -> Callable[..., Any]:
    if criterion == "random":
        return functools.partial(criteria.random, seed=of.config.seed)
    if criterion in ("magnitude", "magnitude_mean"):
        return functools.partial(criteria.magnitude, normalize="mean" if criterion == "magnitude_mean" else "size")
    return scorer(criterion, of.module, of.config, of.images)


def _reached(chosen: Plan) -> float:
    return float(chosen.target.reached) if chosen.target else 1.0
