"""What a checkpoint's network does and takes: accuracy by class, loss, size, and time alone or beside the dense one."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxslim import models
from jaxslim.data import Dataset
from jaxslim.experiments.latency import measure, runtimes, size, uncut
from jaxslim.reporting.confusion import confusion_matrix
from jaxslim.reporting.evaluation import Evaluated
from jaxslim.slim.latency import ROUNDS, latency
from jaxslim.storage import checkpoint
from jaxslim.storage.checkpoint import Loaded
from jaxslim.storage.integrity import digest
from jaxslim.storage.programs import Program
from jaxslim.training.evaluation import Evaluation, evaluator
from jaxslim.training.feed import device_mesh
from jaxslim.training.network import check_fit, load_trained


def study(path: str | Path, *, beside: bool = False, against: str | Path | None = None, **changes: Any) -> Evaluated:
    """Measure the network of a checkpoint on the test images of its configuration.

    Args:
      path: of the checkpoint.
      beside: whether to time the network beside the dense one, with one image and with the batch size of its training.
      against: checkpoint of the dense network; by default the one that the network was cut from.
      **changes: fields of the configuration to replace, such as `dataset`, unless they are None.

    Raises:
      InputError: a checkpoint without a configuration or of other images, or `beside` without a dense network.
    """
    path = checkpoint.find(path)
    loaded, config, images = load_trained(path, code=False, **changes)
    shape, dense = images.test_images.shape[1:], None
    if beside:
        place = uncut(path) if against is None else checkpoint.find(against)
        dense = place, checkpoint.load(place)
        check_fit(dense[1].module, dense[1].variables, images, place)
    test = evaluator(config, loaded.module, device_mesh(), images.test_images, images.test_labels, predictions=True)
    result = test(loaded.variables)
    facts = _facts(path, loaded, images, result)
    timed = None
    if dense:
        facts.append(("beside", str(dense[0])))
        timed = measure(dense, (path, loaded), shape, (1, config.batch_size), runtimes=runtimes())
    else:
        device = jax.devices()[0].device_kind
        for number, what in ((1, "1 image"), (64, "64 images")):
            seconds = latency(loaded.module.apply, loaded.variables, jnp.zeros((number, *shape)))
            facts.append(("latency", f"{seconds * 1e3:.2f} ms for {what} (median of {ROUNDS}, {device})"))
    classes = len(images.class_names)
    return Evaluated(
        title=f"Evaluation of {config.name}",
        accuracy=result.accuracy,
        loss=result.loss,
        class_names=images.class_names,
        confusion=confusion_matrix(images.test_labels, np.asarray(result.predicted), classes),
        facts=tuple(facts),
        latency=timed,
    )


def _facts(path: Path, loaded: Loaded, images: Dataset, result: Evaluation) -> list[tuple[str, str]]:
    module, variables, meta = loaded
    cost = size(path, loaded, images.test_images.shape[1:])
    return [
        ("checkpoint", f"{path} ({meta.get('kind', 'of unknown kind')})"),
        ("trained on", str(meta["config"].get("dataset", "unknown images"))),
        ("network", f"{_kind(loaded)} {models.architecture(module) or ''}".strip()),
        ("accuracy", f"{result.accuracy:.2%} on {len(images.test_labels):,} test images of {images.name}"),
        ("loss", f"{result.loss:.4f}"),
        ("digest", f"{digest(variables)} (SHA-256 of the variables)"),
        ("parameters", f"{cost.params:,}"),
        ("MACs", f"{cost.macs:,} multiply-accumulates an image" if cost.macs else "unknown"),
    ]


def _kind(loaded: Loaded) -> str:
    """What a network is called; a program has the name of the class that it was made of."""
    if not isinstance(loaded.module, Program):
        return models.kind(loaded.module)
    return f"{str(loaded.meta['module'].get('type', 'network')).rpartition('.')[2]}, as a program"
