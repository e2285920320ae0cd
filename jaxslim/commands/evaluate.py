"""Measure a checkpoint: `jaxslim evaluate CHECKPOINT`."""

import dataclasses

from jaxslim.commands.arguments import OfCheckpoint, parse
from jaxslim.commands.cli import start_jax
from jaxslim.errors import InputError

EXAMPLES = ("jaxslim evaluate runs/digits-sparse", "jaxslim evaluate runs/digits-pruned --dataset ~/photos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(OfCheckpoint):
    """Print accuracy, loss, digest, parameters, MACs and latency of a checkpoint's network."""

    batch_size: int = 500
    """Images a batch."""


def main(argv: list[str]) -> None:
    """The command."""
    options = parse(Options, argv, prog="jaxslim evaluate", examples=EXAMPLES)
    if options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}; it must be at least 1.")
    import jax
    import jax.numpy as jnp

    from jaxslim import models
    from jaxslim.core.cost import count
    from jaxslim.slim.latency import latency
    from jaxslim.storage import checkpoint
    from jaxslim.storage.integrity import digest
    from jaxslim.training.evaluation import evaluator
    from jaxslim.training.feed import device_mesh
    from jaxslim.training.network import load_trained

    start_jax()
    path = checkpoint.find(options.checkpoint)
    changes = {"dataset": options.dataset, "data_dir": options.data_dir, "eval_batch_size": options.batch_size}
    loaded, config, images = load_trained(path, **changes)
    module, variables, meta = loaded
    result = evaluator(config, module, device_mesh(), images.test_images, images.test_labels)(variables)
    cost = count(module.apply, variables, images.test_images)
    device, shape = jax.devices()[0].device_kind, images.test_images.shape[1:]
    found = {
        "checkpoint": f"{path} ({meta.get('kind', 'of unknown kind')})",
        "trained on": meta["config"]["dataset"],
        "network": f"{models.kind(module)} {models.architecture(module) or ''}".strip(),
        "accuracy": f"{result.accuracy:.2%} on {len(images.test_labels):,} test images of {images.name}",
        "loss": f"{result.loss:.4f}",
        "digest": f"{digest(variables)} (SHA-256 of the variables)",
        "parameters": f"{cost.params:,}",
        "MACs": f"{cost.macs:,} multiply-accumulates an image",
    }
    for name, value in found.items():
        print(f"{name:11} {value}")
    for number, what in ((1, "1 image"), (64, "64 images")):
        seconds = latency(module.apply, variables, jnp.zeros((number, *shape)))
        print(f"latency     {seconds * 1e3:.2f} ms for {what} (median of 20, {device})")
