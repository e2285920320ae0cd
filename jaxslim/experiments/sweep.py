"""Accuracy and size of a trained network against the share of channels cut: the reference's second and third tables."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxslim import models
from jaxslim.core.cut import mask
from jaxslim.core.plan import Plan, plan
from jaxslim.data import Dataset
from jaxslim.data.loading import hold_out
from jaxslim.errors import InputError
from jaxslim.experiments.cutting import cut_once, measurer, sample
from jaxslim.experiments.finetuning import finetuning
from jaxslim.experiments.hardware import machine
from jaxslim.reporting.results import Report, SweepRow
from jaxslim.slim.absorb import absorber
from jaxslim.slim.criteria.scales import pulled_scale, scale_values
from jaxslim.slim.kinds import network
from jaxslim.slim.prune import Pruned, apply_plan, scored, traced
from jaxslim.storage.checkpoint import Loaded, find, load
from jaxslim.training.config import RATIOS, TrainConfig
from jaxslim.training.feed import check_batches, device_mesh
from jaxslim.training.loop import train
from jaxslim.training.network import load_trained


class Cut(NamedTuple):
    """One ratio: its row of the table, and the network."""

    row: SweepRow
    pruned: Pruned


def sweep(
    loaded: Loaded,
    config: TrainConfig,
    images: Dataset,
    ratios: Sequence[float] = RATIOS,
    *,
    verify: bool = False,
    min_channels: int = 1,
    absorb: bool = False,
    recalibrate: int = 0,
) -> Iterator[Cut]:
    """Cut `loaded` at each ratio and measure the accuracy on the test images, without fine-tuning.

    The masked full network stands in for the cut one, so that all ratios share one compiled evaluation; the two are
    compared at the largest ratio. A cut that is not exact is evaluated by itself. With `verify`, every cut network is
    evaluated too, and the difference of its logits measured; with `absorb`, the rows have the accuracy without
    absorption too. `recalibrate` is the number of training batches to estimate the BatchNorm statistics again on, at
    each ratio.
    Yields a `Cut` for each ratio, in the order given; raises InputError as `plan` does.
    """
    if not ratios or len(set(ratios)) != len(ratios):
        raise InputError(f"The ratios are {list(ratios)}; give at least one, each once, for example 0 0.5 0.7.")
    module, variables = loaded.module, loaded.variables
    test = measurer(config, images, recalibrate)
    inputs = sample(images.test_images.shape[1:])
    full = network(module, variables, [inputs])
    graph = traced(full, [inputs])
    scores = scored(full, graph, pulled_scale if config.l1 else None)
    plans = [plan(graph, scores, ratio, min_channels) for ratio in ratios]  # all, to fail before the work
    absorbed = absorber(module.apply, variables, graph, inputs) if absorb else None

    def cut(plan: Plan, absorb: Any, compare: bool = False) -> Pruned:
        return apply_plan(full, graph, plan, absorb(plan) if absorb else variables, [inputs], compare=compare)

    masked = test(module)

    def accuracy(pruned: Pruned, verified: float | None = None) -> float:
        if pruned.report.exact == 1:
            return masked(mask(graph, pruned.full, pruned.plan))
        return test(pruned.module)(pruned.variables) if verified is None else verified

    for ratio, chosen in zip(ratios, plans, strict=True):
        pruned = cut(chosen, absorbed, compare=verify or ratio == max(ratios))
        verified = test(pruned.module)(pruned.variables) if verify else None
        row = SweepRow(
            ratio=ratio,
            accuracy=accuracy(pruned, verified),
            params=pruned.report.params[1],
            macs=(pruned.report.macs or (0, 0))[1],
            kept={layer.name: layer.after for layer in pruned.plan.layers},
            protected=pruned.plan.protected,
            plain_accuracy=accuracy(cut(chosen, None)) if absorb else None,
            verified_accuracy=verified,
            logits_difference=pruned.report.difference if verify else None,
            architecture=models.architecture(pruned.module),
        )
        yield Cut(row, pruned)


def study(
    path: str | Path,
    out: Path,
    *,
    ratios: Sequence[float] = RATIOS,
    verify: bool = False,
    finetune: Mapping[str, Any] | None = None,
    baseline: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    **cutting: Any,
) -> Report:
    """Sweep a checkpoint and gather the report.

    With `finetune`, fields for the configuration of `finetuning`, each cut network is trained on in a run below `out`.
    The scales of `baseline`, a checkpoint trained without sparsity, are shown beside this one's. `data` replaces
    `dataset` or `data_dir` of the checkpoint's configuration, and `cutting` has the other options of `sweep`.
    """
    data, path = data or {}, find(path)
    loaded, config, images = load_trained(path, **data)
    scales = {"baseline": scale_values(load(baseline).variables)} if baseline else {}
    label = str(loaded.meta.get("kind", "network"))
    scales[label] = scale_values(loaded.variables)
    notes = {
        "checkpoint": str(path),
        "best checkpoints": f"chosen on {config.chosen_on}",
        "data": f"{len(images.test_labels)} test images of {images.name}",
    }
    if finetune:
        tuning = finetuning(path, **data, **finetune)
        trained_on = hold_out(images, tuning.holdout, tuning.seed)[0] if tuning.holdout else images
        check_batches(tuning.batch_size, tuning.epochs, len(trained_on.train_labels), device_mesh())
        rate, schedule = f"learning rate {tuning.learning_rate:g}", f"schedule {tuning.schedule}"
        notes["fine-tuning"] = f"epochs {tuning.epochs}, {rate}, {schedule}"
        print(f"fine-tuning each cut network: {notes['fine-tuning']}", file=sys.stderr)
    rows, thresholds, channels = [], {}, {}
    for row, pruned in sweep(loaded, config, images, ratios, verify=verify, **cutting):
        plain = "" if row.plain_accuracy is None else f" ({row.plain_accuracy:.2%} without absorption)"
        print(f"ratio {row.ratio:g}: accuracy {row.accuracy:.2%}{plain}, {row.params:,} parameters", file=sys.stderr)
        channels = {layer.name: layer.before for layer in pruned.plan.layers}
        left = scale_values(mask(pruned.graph, loaded.variables, pruned.plan))
        if (gone := scales[label][left == 0]).size:
            thresholds[row.ratio] = float(gone.max())
        if finetune:
            folder = out.absolute() / f"ratio-{row.ratio:g}"
            cut_once(path, folder, row.ratio, data=data, **cutting)
            accuracy = train(finetuning(folder, **data, **finetune)).metrics["accuracy"]
            row = dataclasses.replace(row, finetuned_accuracy=accuracy)
        rows.append(row)
    return Report(
        title=f"Ratio sweep of {config.name}",
        sweep=tuple(rows),
        channels=channels,
        scales=scales,
        thresholds={label: thresholds},
        notes={**notes, **machine()},
    )
