"""Measure a checkpoint: `jaxslim evaluate CHECKPOINT`."""

import dataclasses
import time
from typing import Any

import tyro

from jaxslim.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Print accuracy, loss, digest, parameters, MACs and latency of a checkpoint's network."""

    checkpoint: tyro.conf.Positional[str]
    """Folder of a checkpoint, RUN/best, RUN/latest, or a run, which stands for its latest."""
    dataset: str | None = None
    """Data set to evaluate on; the one that it was trained on if not given."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets."""
    batch_size: int = 500
    """Images a batch."""


def main(argv: list[str]) -> None:
    """The command."""
    options = tyro.cli(Options, args=argv, prog="jaxslim evaluate")
    if options.batch_size < 1:
        raise InputError(f"batch_size is {options.batch_size}; it must be at least 1.")
    import jax

    from jaxslim.core.cost import count
    from jaxslim.storage import checkpoint
    from jaxslim.storage.integrity import digest
    from jaxslim.training.evaluation import evaluator
    from jaxslim.training.feed import device_mesh
    from jaxslim.training.network import load_trained

    path = checkpoint.find(options.checkpoint)
    changes = {"dataset": options.dataset, "data_dir": options.data_dir, "eval_batch_size": options.batch_size}
    loaded, config, images = load_trained(path, **changes)
    evaluate = evaluator(config, loaded.module, device_mesh(), images.test_images, images.test_labels)
    result = evaluate(loaded.variables)
    cost = count(loaded.module.apply, loaded.variables, images.test_images)
    device = jax.devices()[0]
    lines = (
        f"checkpoint  {path} ({loaded.meta.get('kind', 'of unknown kind')})",
        f"trained on  {loaded.meta['config']['dataset']}",
        f"network     {type(loaded.module).__name__} {list(getattr(loaded.module, 'widths', []))}",
        f"accuracy    {result.accuracy:.2%} on {len(images.test_labels)} test images of {images.name}",
        f"loss        {result.loss:.4f}",
        f"digest      {digest(loaded.variables)} (SHA-256 of the variables)",
        f"parameters  {cost.params:,}",
        f"MACs        {cost.macs:,} multiply-accumulates an image",
        *(
            f"latency     {seconds * 1e3:.2f} ms for {n} image(s) (median of 20, {device.device_kind})"
            for n, seconds in latencies(loaded.module, loaded.variables, images.test_images.shape[1:])
        ),
    )
    for line in lines:
        print(line)


def latencies(module: Any, variables: Any, shape: tuple[int, ...], batches: tuple[int, ...] = (1, 64)) -> Any:
    """Median seconds of 20 runs after a warm-up, for each batch size."""
    import jax
    import numpy as np

    apply = jax.jit(module.apply)
    for batch in batches:
        images = jax.numpy.zeros((batch, *shape))
        jax.block_until_ready(apply(variables, images))
        times = []
        for _ in range(20):
            started = time.perf_counter()
            jax.block_until_ready(apply(variables, images))
            times.append(time.perf_counter() - started)
        yield batch, float(np.median(times))
