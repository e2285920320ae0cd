"""A small VGG on scikit-learn's handwritten digits, with sparsity: what `jaxslim train` does without a config.

Command: jaxslim train digits-sparse
Then:    jaxslim prune runs/digits-sparse --ratio 0.7 --out runs/digits-pruned
Cost: half a minute on 2 CPU cores.
Expected: over 99 %, with about 70 % of the BatchNorm scales under 0.01.
"""

from jaxslim.training.config import DIGITS

config = DIGITS
