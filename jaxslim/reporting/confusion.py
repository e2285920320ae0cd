"""Which classes a network tells apart: accuracy by class, and which class is taken for which."""

from collections.abc import Sequence

import numpy as np

from jaxslim.reporting.results import Table

MOST_CLASSES = 20
"""Classes that a table names; of more, it names the worst."""


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class were taken for each.

    Args:
      labels: int (n,), the class of each image.
      predicted: int (n,), the class that a network gives each image.
      classes: how many classes there are.

    Returns:
      int (classes, classes): a row for each class of an image, a column for each class that it was taken for.

    Example:
      >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
      [[1, 1], [0, 1]]
    """
    pairs = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def accuracies(matrix: np.ndarray) -> np.ndarray:
    """Share of the images of each class that a network has right, float (classes,); NaN for a class without images."""
    totals = matrix.sum(1)
    return np.where(totals > 0, matrix.diagonal() / np.maximum(totals, 1), np.nan)


def per_class(matrix: np.ndarray, names: Sequence[str], most: int = MOST_CLASSES) -> Table:
    """Accuracy of each class, and what it is most often taken for; of more than `most` classes, the worst."""
    shares, totals = accuracies(matrix), matrix.sum(1)
    known = np.flatnonzero(totals)
    shown, title = known, "Accuracy by class"
    if len(known) > most:
        shown = known[np.argsort(shares[known], kind="stable")][:most]
        title = f"Accuracy by class: the worst {most} of {len(known):,}"
    rows = []
    for one in shown.tolist():
        wrong = matrix[one].copy()
        wrong[one] = 0
        other, count = int(wrong.argmax()), int(wrong.max())
        mistaken = f"{names[other]} ({count} of {totals[one]:,})" if count else ""
        rows.append([names[one], f"{totals[one]:,}", f"{100 * shares[one]:.2f}", mistaken])
    return Table(title, ["Class", "Images", "Accuracy (%)", "Most often taken for"], rows)


def confusions(matrix: np.ndarray, names: Sequence[str], most: int = MOST_CLASSES, picture: str = "") -> Table:
    """The whole matrix of up to `most` classes; of more, the pairs of classes that are confused most often."""
    if len(matrix) <= most:
        rows = [
            [name, *(str(count) if count else "" for count in row)] for name, row in zip(names, matrix, strict=True)
        ]
        return Table("Confusion matrix: classes of images below, predicted classes across", ["", *names], rows, picture)
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, totals = [], matrix.sum(1)
    for one, other in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if count := wrong[one, other]:
            rows.append([names[one], names[other], f"{count:,}", f"{100 * count / totals[one]:.2f}"])
    header = ["Class", "Taken for", "Images", "Share of the class (%)"]
    return Table("Classes that are confused most often", header, rows, picture)
