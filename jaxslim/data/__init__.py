"""Images to train on."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from jaxslim.data.augmentation import AUGMENTATIONS, augmenter, normalise
    from jaxslim.data.loading import hold_out, load
    from jaxslim.data.sources import Dataset, Form
    from jaxslim.data.streams import Streamed

    __all__ = ["AUGMENTATIONS", "Dataset", "Form", "Streamed", "augmenter", "hold_out", "load", "normalise"]
else:  # each loads when first used: processes that decode images must not load JAX
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "augmentation": ["AUGMENTATIONS", "augmenter", "normalise"],
            "loading": ["hold_out", "load"],
            "sources": ["Dataset", "Form"],
            "streams": ["Streamed"],
        },
    )
