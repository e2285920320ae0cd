"""Cutting the network of a checkpoint into a checkpoint of its own."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxslim.core.cost import count
from jaxslim.errors import InputError
from jaxslim.files import check_out
from jaxslim.slim.prune import Pruned, difference, prune, tolerance
from jaxslim.slim.recalibrate import recalibrate as recalibrate_statistics
from jaxslim.storage import checkpoint
from jaxslim.training.evaluation import training_batches
from jaxslim.training.network import load_trained


def save_cut(
    path: str | Path,
    out: str | Path,
    ratio: float | None,
    *,
    absorb: bool = False,
    recalibrate: int = 0,
    data_dir: str | None = None,
    **options: Any,
) -> tuple[Pruned, dict[str, Any]]:
    """`prune` the network of a checkpoint, check the result, and save it as a checkpoint of its own.

    Args:
      path: what `checkpoint.load` takes.
      out: folder to make.
      ratio: of `plan`.
      absorb: of `prune`.
      recalibrate: training batches to estimate the BatchNorm statistics of the cut network on; 0 keeps the old ones.
      data_dir: where TFDS keeps its data sets, for `recalibrate`.
      **options: of `plan`.

    Returns:
      The smaller network, and the metadata saved with it: cost, plan, and the check, which is the `difference` on
      random images from the full network with the units that go at zero, before any recalibration.

    Raises:
      InputError: as `load`, `plan` and `save`, `out` cannot be written to, or the check failed although every unit that
        went is exact.
    """
    if recalibrate < 0:
        raise InputError(f"recalibrate is {recalibrate}; it must be a number of batches, 0 or more.")
    check_out(Path(out))
    path = checkpoint.find(path)
    module, variables, meta = checkpoint.load(path)
    if "image_shape" not in meta:
        raise InputError(f"{path} does not name its images' shape; save it with meta={{'image_shape': [32, 32, 3]}}.")
    images = jax.random.normal(jax.random.key(0), (64, *meta["image_shape"]))
    pruned = prune(module, variables, ratio, images, absorb=absorb, **options)
    gap = difference(module, pruned, images)
    exact = bool(pruned.graph.exact[~pruned.plan.keep].all())
    if exact and not gap <= tolerance(module):
        raise InputError(
            f"The cut network's logits differ from the zeroed full network's by {gap:.2g} of the largest; nothing was "
            "saved. The network takes a width from something other than its parameters' shapes."
        )
    batches = []
    if recalibrate:
        _, config, found = load_trained(path, data_dir=data_dir)
        batches = training_batches(config, found, recalibrate)
    small = recalibrate_statistics(pruned.module, pruned.variables, batches) if batches else pruned.variables
    pairs = zip(jax.tree.leaves(pruned.full), jax.tree.leaves(variables), strict=True)
    described: dict[str, Any] = {
        "kind": "pruned",
        **{name: meta[name] for name in ("config", "class_names", "image_shape") if name in meta},
        "parent": checkpoint.parent(path, meta),
        "cost": count(pruned.module.apply, small, images)._asdict(),
        "full_cost": count(module.apply, variables, images)._asdict(),
        "plan": {
            **options,
            "absorb": absorb,
            "recalibrate": recalibrate,
            "requested": ratio,
            "achieved": pruned.plan.achieved,
            "layers": [layer._asdict() for layer in pruned.plan.layers],
        },
        "check": {"logits_difference": gap, "exact": exact},
        "absorbed_into": sum(new is not old and not jnp.allclose(new, old, rtol=0, atol=1e-6) for new, old in pairs),
        "recalibrated_on": len(batches),
    }
    checkpoint.save(out, pruned.module, small, described)
    return pruned, described


def cut_once(path: str | Path, folder: Path, ratio: float | None, data_dir: str | None, **options: Any) -> None:
    """`save_cut` to `folder`, unless it was done before.

    Raises:
      InputError: the folder holds a cut of another checkpoint, or with other options.
    """
    if not folder.exists():
        save_cut(path, folder, ratio, data_dir=data_dir, **options)
    path, there = checkpoint.find(path), checkpoint.read_meta(checkpoint.find(folder))
    done = dict(there.get("plan", {}))
    made = {name: value for name, value in done.items() if name not in ("achieved", "layers")}
    asked = {"requested": ratio, "absorb": False, "recalibrate": 0, **options}
    source = checkpoint.parent(path, checkpoint.read_meta(path)) | {"path": None}  # the folders may have been moved
    if {**there.get("parent", {}), "path": None} != source or json.loads(json.dumps(asked)) != made:
        raise InputError(f"{folder} was cut from another checkpoint or with other options; choose another --out.")
