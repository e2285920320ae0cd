"""Images to train on."""

from jaxslim.data.augmentation import AUGMENTATIONS, augmenter, normalise
from jaxslim.data.loading import hold_out, load
from jaxslim.data.sources import Dataset

__all__ = ["AUGMENTATIONS", "Dataset", "augmenter", "hold_out", "load", "normalise"]
