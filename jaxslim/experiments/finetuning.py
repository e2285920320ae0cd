"""The configuration that fine-tunes a checkpoint: its own data and network, and a recipe that does not undo it."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxslim.errors import InputError
from jaxslim.storage import checkpoint
from jaxslim.storage.history import is_of_run
from jaxslim.training.config import TrainConfig, from_json

FIXED = ("channels", "mean", "std", "model", "model_args")  # cannot change after a network was trained
KNOWN = ("dataset", "data_dir", "image_size", *FIXED)  # describe the images and the network of a checkpoint


def finetuning(path: str | Path, recipe: TrainConfig | None = None, **changes: Any) -> TrainConfig:
    """The configuration that trains the network of a checkpoint on, with `changes` to its fields.

    The checkpoint decides the data and the network. Without a recipe, the run repeats the checkpoint's own training,
    but without a pull or a teacher, and with a learning rate that falls along a cosine from a tenth of the
    checkpoint's. A checkpoint that was fine-tuned before keeps its rate. The run's folder lies beside the checkpoint,
    under the name of the run.
    """
    trained = _trained(path)
    if recipe or not trained:
        if not recipe:
            raise InputError(f"{path} names no training configuration; give a CONFIG, which names data and recipe.")
        known = {name: getattr(trained, name) for name in KNOWN} if trained else {}
        return dataclasses.replace(recipe, **known | {"init_from": str(path)} | changes)
    folder = home(path)
    name = changes.get("name", f"{folder.name}-finetuned")
    tuned_before = trained.init_from and not trained.sparse
    own: dict[str, Any] = {
        "name": name,
        "workdir": str(folder.parent / name),
        "init_from": str(path),
        "distill_from": None,
        "l1": 0.0,
        "group_lasso": 0.0,
        "progressive": 0.0,
        "schedule": "cosine",
        "learning_rate": trained.learning_rate / (1 if tuned_before else 10),
    }
    return dataclasses.replace(trained, **own | changes)


def check_unchanged(config: TrainConfig, path: str | Path) -> None:
    """Refuse a configuration whose network or normalisation is not the one of the checkpoint it starts from."""
    trained = _trained(path)
    for name in FIXED if trained else ():
        if (mine := getattr(config, name)) != (there := getattr(trained, name)):
            raise InputError(f"{name} is {mine}, and the network of {path} was trained with {there}; leave {name} out.")


def home(path: str | Path) -> Path:
    """The folder of the run that a checkpoint belongs to; its own folder if it belongs to none."""
    found = checkpoint.find(path)
    return found.parents[1] if is_of_run(found) else found


def _trained(path: str | Path) -> TrainConfig | None:
    fields = checkpoint.read_meta(checkpoint.find(path)).get("config")
    return from_json(fields, path) if isinstance(fields, dict) else None
