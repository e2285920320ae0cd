"""Cutting the network of a checkpoint into a checkpoint of its own."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim.data import Dataset
from jaxslim.errors import InputError
from jaxslim.files import check_out
from jaxslim.slim import criteria
from jaxslim.slim.criteria.scales import pulled_scale
from jaxslim.slim.prune import Pruned, prune
from jaxslim.slim.recalibrate import recalibrate as recalibrate_statistics
from jaxslim.slim.recalibrate import recalibrator
from jaxslim.storage import checkpoint
from jaxslim.storage.history import is_checkpoint
from jaxslim.training.config import TrainConfig
from jaxslim.training.evaluation import evaluator, training_batches
from jaxslim.training.feed import device_mesh
from jaxslim.training.network import load_trained, trained
from jaxslim.training.optimizer import losses

CRITERION_BATCHES = 10
"""Training batches that a criterion sees."""
WITH_BATCHES = ("taylor", "fisher", "activation")
"""Criteria that see any."""


def sample(image_shape: Any) -> jax.Array:
    """Normalised random images (16, height, width, channels) to compare networks on, the same for the same shape."""
    return jax.random.normal(jax.random.key(0), (16, *image_shape))


def statistics_batches(number: int, config: TrainConfig, images: Dataset) -> list[jax.Array]:
    """The first `number` of `training_batches`, to estimate BatchNorm statistics on."""
    if number < 0:
        raise InputError(f"recalibrate is {number}; it must be a number of batches, 0 or more.")
    return [batch for batch, _ in training_batches(config, images, number)] if number else []


def scorer(criterion: str, module: Any, config: TrainConfig, images: Dataset) -> Callable[..., Any]:
    """The scores of a criterion by its name, for `prune`; those that need data see some training batches."""
    if criterion in ("taylor", "fisher"):
        batches, loss = training_batches(config, images, CRITERION_BATCHES), losses(config)

        def mean_loss(variables: Any, batch: Any) -> jax.Array:
            return loss(module.apply(variables, batch[0]), batch[1]).mean()

        return lambda graph, variables: getattr(criteria, criterion)(graph, mean_loss, variables, batches)
    if criterion == "activation":
        inputs = statistics_batches(CRITERION_BATCHES, config, images)
        return lambda graph, variables: criteria.activation(graph, module.apply, variables, inputs)
    if criterion == "magnitude":
        return functools.partial(criteria.magnitude, normalize="mean")
    found: Callable[..., Any] = getattr(criteria, criterion)
    return found


def measurer(config: TrainConfig, images: Dataset, recalibrate: int) -> Callable[[Any], Callable[[Any], float]]:
    """Build `of(module)`, which gives a function of variables: their accuracy on the test images, as a share.

    `recalibrate` is a number of training batches to estimate the BatchNorm statistics again on. The function of a
    module compiles once for all variables.
    """
    batches = statistics_batches(recalibrate, config, images)

    def of(module: Any) -> Callable[[Any], float]:
        test = evaluator(config, module, device_mesh(), images.test_images, images.test_labels)
        again = recalibrator(module)
        return lambda variables: test(again(variables, batches) if batches else variables).accuracy

    return of


def check_place(out: Path) -> None:
    """Raise InputError, before the work, for an `--out` that cannot become a folder or would damage a checkpoint."""
    check_out(out)
    known = [place for place in (out, *out.parents) if is_checkpoint(place)]
    if out in known or out.name == "checkpoints":
        raise InputError(f"{out} holds a checkpoint; choose another --out.")
    if known or out.parent.name == "checkpoints":
        raise InputError(f"{out} lies among a run's own checkpoints or inside one; choose another --out.")


def save_cut(
    path: str | Path,
    out: str | Path,
    ratio: float | None,
    *,
    absorb: bool = False,
    recalibrate: int = 0,
    criterion: str | None = None,
    data: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Pruned, dict[str, Any]]:
    """`prune` the network of a checkpoint, check the result, and save it as a checkpoint of its own.

    `recalibrate` is a number of training batches; 0 keeps the BatchNorm statistics and needs no images. `criterion` is
    the name of a function of `jaxslim.criteria`; without one, `prune` chooses. `data` replaces `dataset` or `data_dir`
    of the checkpoint's configuration, and `options` are of `plan`. Returns the smaller network
    and the metadata saved with it. The check is that of `prune`, on random images, before recalibration.
    """
    path, out = checkpoint.find(path), Path(out).absolute()
    if os.path.lexists(out):
        raise InputError(f"{out} exists already and checkpoints are never overwritten; choose another --out.")
    check_place(out)
    needs_images = recalibrate or criterion in WITH_BATCHES
    found: tuple[Any, ...] = load_trained(path, **data or {}) if needs_images else (trained(path),)
    (module, variables, meta), *trained_on = found
    if "image_shape" not in meta:
        raise InputError(f"{path} does not name its images' shape; save it with meta={{'image_shape': [32, 32, 3]}}.")
    batches = statistics_batches(recalibrate, *trained_on) if recalibrate else []
    given = {name: value for name, value in options.items() if value is not None}
    scores = scorer(criterion, module, *(trained_on or (None, None))) if criterion else None  # type: ignore[arg-type]
    if not criterion and (meta.get("config") or {}).get("l1"):
        scores = pulled_scale
    pruned = prune(module, variables, ratio, sample(meta["image_shape"]), scores=scores, absorb=absorb, **given)
    small = recalibrate_statistics(pruned.module, pruned.variables, batches) if batches else pruned.variables
    report, macs = pruned.report, pruned.report.macs or (0, 0)
    pairs = zip(jax.tree.leaves(pruned.full), jax.tree.leaves(variables), strict=True)
    described: dict[str, Any] = {
        "kind": "pruned",
        **{name: meta[name] for name in ("config", "class_names", "image_shape") if name in meta},
        "parent": checkpoint.parent(path, meta),
        "cost": {"params": report.params[1], "macs": macs[1]},
        "full_cost": {"params": report.params[0], "macs": macs[0]},
        "plan": {
            **given,
            **({"criterion": criterion} if criterion else {}),
            "absorb": absorb,
            "recalibrate": recalibrate,
            "requested": ratio,
            "achieved": pruned.plan.achieved,
            **({"target": str(pruned.plan.target)} if pruned.plan.target else {}),
            "layers": [layer._asdict() for layer in pruned.plan.layers],
        },
        "check": {"logits_difference": report.difference, "exact": report.exact == 1},
        "absorbed_into": sum(new is not old and not jnp.allclose(new, old, rtol=0, atol=1e-6) for new, old in pairs),
        "recalibrated_on": len(batches),
    }
    checkpoint.save(out, pruned.module, small, described, inputs=pruned.inputs)
    return pruned, described


def cut_once(path: str | Path, folder: Path, ratio: float | None, **how: Any) -> None:
    """`save_cut` to `folder`, unless the same call did it before; InputError if the folder holds another cut."""
    if not folder.exists():
        save_cut(path, folder, ratio, **how)
    path, there = checkpoint.find(path), checkpoint.read_meta(checkpoint.find(folder))
    made = {
        name: value for name, value in there.get("plan", {}).items() if name not in ("achieved", "layers", "target")
    }
    asked = {"absorb": False, "recalibrate": 0, **how, "requested": ratio}
    asked.pop("data", None)
    source = checkpoint.parent(path, checkpoint.read_meta(path)) | {"path": None}  # the folders may have been moved
    if {**there.get("parent", {}), "path": None} != source or json.loads(json.dumps(asked)) != made:
        raise InputError(f"{folder} was cut from another checkpoint or with other options; choose another --out.")


def accuracies(full: str | Path, cut: str | Path, **data: Any) -> tuple[float, float, str]:
    """Accuracy of two checkpoints on the test images of the first, and these images in words."""
    loaded, config, images = load_trained(full, code=False, **data)

    def accuracy(module: Any, variables: Any, _: Any) -> float:
        return evaluator(config, module, device_mesh(), images.test_images, images.test_labels)(variables).accuracy

    described = f"{len(images.test_labels):,} test images of {images.name}"
    return accuracy(*loaded), accuracy(*checkpoint.load(cut)), described
