"""Name the classes of images: `jaxslim predict CHECKPOINT IMAGE...`."""

import dataclasses
import json
import os
from typing import Any

from tyro.conf import Positional

from jaxslim.commands.arguments import parse
from jaxslim.commands.cli import start_jax
from jaxslim.errors import InputError

EXAMPLES = (
    "jaxslim predict runs/photos-pruned-finetuned cat.jpg dog.jpg",
    "jaxslim predict runs/photos-pruned-finetuned photos/test/cat --top 1",
    "jaxslim predict photos.stablehlo cat.jpg",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Print the classes that the network of a checkpoint, or of an exported file, gives images, with probabilities."""

    checkpoint: Positional[str]
    """Folder of a checkpoint, RUN/best, RUN/latest, or a run, which stands for its latest; or a file of jaxslim export
    (StableHLO)."""
    image: Positional[tuple[str, ...]] = ()
    """Image files, or folders of them."""
    top: int = 5
    """Classes to print of each image, the most probable first."""
    json: bool = False
    """Print JSON in place of a table."""


def main(argv: list[str]) -> None:
    """The command: read the images, run the network, print."""
    options = parse(Options, argv, prog="jaxslim predict", examples=EXAMPLES)
    if options.top < 1:
        raise InputError(f"top is {options.top}; it must be at least 1.")
    if not options.image:
        raise InputError("There is no image; give files, or a folder: jaxslim predict CHECKPOINT IMAGE...")
    import numpy as np

    from jaxslim.data.folders import decode, image_files
    from jaxslim.reporting.results import Table
    from jaxslim.reporting.terminal import show_table
    from jaxslim.storage.checkpoint import find
    from jaxslim.training.prediction import predictor

    start_jax()
    path = options.checkpoint if os.path.isfile(options.checkpoint) else find(options.checkpoint)
    network = predictor(path)
    files = [file for image in options.image for file in image_files(image)]
    shares = network.probabilities(decode(files, network.form))
    if wrong := [file for file, own in zip(files, shares, strict=True) if not np.isfinite(own).all()]:
        raise InputError(f"{path} gives {wrong[0]} outputs that are not finite; take another checkpoint.")
    best = np.argsort(-shares, axis=1, kind="stable")[:, : options.top]
    found: list[dict[str, Any]] = [
        {
            "image": file,
            "classes": [{"name": network.class_names[one], "probability": float(own[one])} for one in order.tolist()],
        }
        for file, own, order in zip(files, shares, best, strict=True)
    ]
    if options.json:
        print(json.dumps(found, indent=2))
        return
    rows = [
        [entry["image"] if not place else "", one["name"], f"{one['probability']:7.2%}"]
        for entry in found
        for place, one in enumerate(entry["classes"])
    ]
    show_table(Table(f"Classes by {path}", ["Image", "Class", "Probability"], rows, right=False))
