"""The multi-pass scheme: cut, train on with sparsity, and cut again (Liu et al., ICCV 2017, section 4.6)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxslim.errors import InputError
from jaxslim.experiments.cutting import cut_once
from jaxslim.experiments.finetuning import finetuning
from jaxslim.slim.criteria.scales import scale_values
from jaxslim.storage import checkpoint
from jaxslim.training.config import from_json
from jaxslim.training.loop import train


class Pass(NamedTuple):
    """What one pass leaves."""

    folder: Path
    """Of the run that trained the cut network on."""
    accuracy: float
    """After that training, as a share."""
    params: int
    macs: int


def multipass(
    path: str | Path,
    out: str | Path,
    passes: int = 4,
    *,
    max_layer_ratio: float = 0.5,
    data: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Iterator[Pass]:
    """Cut what lies below the median of all scales, but at most a share of each layer, train on, and again.

    Args:
      path: checkpoint of a network that was trained with L1; each pass trains with that L1.
      out: folder for the runs `pass-1`, `pass-2`, ... and the cuts before them; what is there is not done again.
      passes: how many.
      max_layer_ratio: largest share of a layer that a pass cuts.
      data: replaces `dataset` or `data_dir` of the checkpoint's configuration.
      **changes: to the configuration of the training after each cut, for example `epochs=10`.

    Yields:
      A `Pass` after each.

    Raises:
      InputError: the checkpoint tells no training with L1, or as `save_cut` and `train` say.
    """
    source, out = checkpoint.find(path), Path(out).absolute()
    fields = checkpoint.read_meta(source).get("config")
    trained = from_json(fields, source) if isinstance(fields, dict) else None
    if trained is None or not trained.l1:
        raise InputError(f"{path} was not trained with L1, which the scheme needs; train with --l1 first.")
    if passes < 1:
        raise InputError(f"passes is {passes}; it must be at least 1.")
    for number in range(1, passes + 1):
        name, cut = f"pass-{number}", out / f"pass-{number}-cut"
        scales = np.sort(scale_values(checkpoint.load(source).variables))
        if not len(scales):
            raise InputError(f"{path} has no scales of BatchNorm, by which the scheme cuts; use jaxslim prune.")
        threshold = float(scales[len(scales) // 2 - 1])
        how = {"threshold": threshold, "max_layer_ratio": max_layer_ratio, "absorb": True}
        cut_once(source, cut, None, data=data, **how)
        own = {field: getattr(trained, field) for field in ("l1", "learning_rate", "schedule")}
        recipe = {"name": name, "workdir": str(out / name), **own, **(data or {}), **changes}
        run = train(finetuning(cut, **recipe))
        source = checkpoint.find(run.folder)
        cost = checkpoint.read_meta(checkpoint.find(cut))["cost"]
        yield Pass(run.folder, run.metrics["accuracy"], cost["params"], cost["macs"])
