#!/usr/bin/env bash
# Your own images, by commands alone: train with the pull, cut, fine-tune, measure.
#
# Command: scripts/examples/own_data.sh FOLDER [OPTIONS]
# What it writes goes to FOLDER. The options are of the first `jaxslim train`.
# Cost: about a minute on 2 CPU cores.
set -euo pipefail
PATH=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venv/bin:$PATH
mkdir -p "${1:?name a folder to write to}"
cd "$1"

# These stand for your images: photos/train/CLASS/*.png and photos/test/CLASS/*.png. They are scikit-learn's digits.
python - <<'PY'
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    file = Path("photos", "test" if number % 5 == 0 else "train", str(label), f"{number}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15.9).astype("uint8")).save(file)
PY

jaxslim train --dataset photos --image-size 8 --channels 1 --augment crop --pad 1 --epochs 15 "${@:2}"
jaxslim prune runs/photos-sparse --ratio 0.6 --out runs/photos-pruned
jaxslim train --init-from runs/photos-pruned --epochs 5
jaxslim evaluate runs/photos-pruned-finetuned
