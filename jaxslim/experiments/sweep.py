"""Accuracy and size of a trained network against the share of channels cut: the reference's second and third tables."""

import contextlib
import dataclasses
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxslim import data
from jaxslim.core.cost import count
from jaxslim.core.cut import zero
from jaxslim.core.graph import trace
from jaxslim.core.plan import Plan, plan
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import cut_once
from jaxslim.reporting.report import Report, SweepRow
from jaxslim.slim.absorb import absorber
from jaxslim.slim.criteria import bn_scales, scale_values
from jaxslim.slim.prune import Pruned, apply_plan, difference, tolerance
from jaxslim.slim.recalibrate import recalibrator
from jaxslim.storage.checkpoint import Loaded, load
from jaxslim.training.config import RATIOS, TrainConfig
from jaxslim.training.evaluation import evaluator, training_batches
from jaxslim.training.feed import device_mesh
from jaxslim.training.loop import train
from jaxslim.training.network import load_trained


class Cut(NamedTuple):
    """One ratio: its row of the table, and the network."""

    row: SweepRow
    pruned: Pruned


def sweep(
    loaded: Loaded,
    config: TrainConfig,
    images: data.Dataset,
    ratios: Sequence[float] = RATIOS,
    *,
    verify: bool = False,
    min_channels: int = 1,
    absorb: bool = False,
    recalibrate: int = 0,
) -> Iterator[Cut]:
    """Cut `loaded` at each ratio and measure the accuracy on the test images, without fine-tuning.

    The full network with the channels at zero stands in for the cut one, so that all ratios share one compiled
    evaluation; a network where the two differ is evaluated cut.

    Args:
      loaded: of `checkpoint.load`.
      config: for normalisation and the batch size of evaluation.
      images: with test images.
      ratios: shares of the channels, each in [0, 1).
      verify: evaluate every really cut network too, and the difference of the logits.
      min_channels: of `plan`.
      absorb: of `prune`.
      recalibrate: training batches to estimate the BatchNorm statistics again on, at each ratio.

    Yields:
      A `Cut` for each ratio, in the order given.

    Raises:
      InputError: as `plan`.
    """
    if not ratios or len(set(ratios)) != len(ratios):
        raise InputError(f"The ratios are {list(ratios)}; give at least one, each once, for example 0 0.5 0.7.")
    module, variables = loaded.module, loaded.variables
    mesh = device_mesh()
    sample = jax.random.normal(jax.random.key(0), (64, *images.test_images.shape[1:]))
    graph, scores = trace(module.apply, variables, sample), bn_scales(variables)
    plans: list[Plan] = [plan(graph, scores, ratio, min_channels) for ratio in ratios]  # all, to fail before the work

    def measurer(network: Any) -> Callable[[Any], float]:
        """Accuracy on the test images of variables of `network`, after recalibration if there is one."""
        evaluate = evaluator(config, network, mesh, images.test_images, images.test_labels)
        again = recalibrator(network)
        return lambda variables: evaluate(again(variables, batches) if batches else variables).accuracy

    batches = training_batches(config, images, recalibrate) if recalibrate else []
    full = measurer(module)
    adapt = absorber(module.apply, variables, graph, sample) if absorb else lambda _: variables
    adapted = [adapt(chosen) for chosen in plans]
    networks = [apply_plan(module, own, graph, chosen, sample) for own, chosen in zip(adapted, plans, strict=True)]

    def gap(index: int) -> float:
        return difference(module, networks[index], sample)

    agrees = gap(int(np.argmax(ratios))) <= tolerance(module)
    for index, (ratio, chosen, pruned) in enumerate(zip(ratios, plans, networks, strict=True)):
        params, macs = count(pruned.module.apply, pruned.variables, sample)
        exact = agrees and bool(graph.exact[~chosen.keep].all())
        really = measurer(pruned.module)(pruned.variables) if verify or not exact else None
        accuracy = full(zero(graph, adapted[index], chosen)) if exact else really
        assert accuracy is not None
        yield Cut(
            SweepRow(
                ratio=ratio,
                accuracy=accuracy,
                params=params,
                macs=macs,
                kept={layer.name: layer.after for layer in chosen.layers},
                protected=chosen.protected,
                verified_accuracy=really,
                logits_difference=gap(index) if verify else None,
                widths=None,
            ),
            pruned,
        )


def study(
    path: str,
    out: Path,
    *,
    ratios: Sequence[float] = RATIOS,
    verify: bool = False,
    min_channels: int = 1,
    absorb: bool = False,
    recalibrate: int = 0,
    finetune_epochs: int = 0,
    baseline: str | None = None,
    data_dir: str | None = None,
) -> Report:
    """Sweep a checkpoint and gather the report; with `finetune_epochs`, train each cut network in a run below `out`.

    Raises:
      InputError: a checkpoint or the data cannot be used, or a ratio cannot be met.
    """
    loaded, config, images = load_trained(path, data_dir=data_dir)
    scales = {"baseline": scale_values(load(baseline).variables)} if baseline else {}
    scales[str(loaded.meta.get("kind", "network"))] = scale_values(loaded.variables)
    rows = []
    before: dict[str, int] = {}
    cutting: dict[str, Any] = {"min_channels": min_channels, "absorb": absorb, "recalibrate": recalibrate}
    for row, pruned in sweep(loaded, config, images, ratios, verify=verify, **cutting):
        print(f"ratio {row.ratio:g}: accuracy {row.accuracy:.2%}, {row.params:,} parameters", file=sys.stderr)
        before = {layer.name: layer.before for layer in pruned.plan.layers}
        if finetune_epochs:
            accuracy = _finetune(path, row.ratio, cutting, finetune_epochs, config, out)
            row = dataclasses.replace(row, finetuned_accuracy=accuracy)
        rows.append(row)
    notes = {
        "checkpoint": path,
        "best checkpoints": f"chosen on {config.chosen_on}",
        "data": f"{len(images.test_labels)} test images of {images.name}",
        **machine(),
    }
    return Report(title=f"Ratio sweep of {config.name}", sweep=tuple(rows), channels=before, scales=scales, notes=notes)


def machine() -> dict[str, str]:
    """Hardware and versions, for the notes of a report."""
    device = jax.devices()[0]
    many = f"{jax.device_count()} x {device.device_kind}"
    hardware = many if device.platform != "cpu" else f"{cores()} {_processor()}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jaxslim", "jax", "flax", "optax"))
    return {"hardware": hardware, "versions": f"{versions}, Python {platform.python_version()}"}


def cores() -> int:
    """How many this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return f"cores of {line.partition(':')[2].strip()}"
    return "CPU cores"


def _finetune(path: str, ratio: float, cutting: dict[str, Any], epochs: int, config: TrainConfig, out: Path) -> float:
    """Save the cut network below `out` and train it on by its own recipe without the L1 pull."""
    folder = out.absolute() / f"ratio-{ratio:g}"
    cut_once(path, folder, ratio, config.data_dir, **cutting)
    changes: dict[str, Any] = {"name": f"ratio-{ratio:g}-finetuned", "workdir": f"{folder}-finetuned"}
    tuned = dataclasses.replace(config, **changes, epochs=epochs, l1=0.0, init_from=str(folder))
    return train(tuned).metrics["accuracy"]
