"""Images to train on."""

from jaxslim.data.augmentation import AUGMENTATIONS, augmenter, normalise
from jaxslim.data.loading import hold_out, load
from jaxslim.data.sources import Dataset, Form
from jaxslim.data.streams import Streamed

__all__ = ["AUGMENTATIONS", "Dataset", "Form", "Streamed", "augmenter", "hold_out", "load", "normalise"]
