"""The handwritten digits that come with scikit-learn."""

import numpy as np

from jaxslim.data.sources import Dataset, Form, assemble, fit


def read(form: Form) -> Dataset:
    """1,797 digits of 8x8 pixels; a fixed fifth of every class is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    images, labels = fit(grey, form), bunch.target
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return assemble("digits", (images[train], labels[train]), (images[test], labels[test]))
