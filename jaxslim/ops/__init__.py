"""Convolutions and a BatchNorm that are faster on CPUs than XLA's and Flax's own, with the same parameters and results.

Call `accelerate()` once at the start of a program for all networks of all frameworks. Or take both in a network of your
own: `nn.Conv(..., conv_general_dilated=jaxslim.ops.conv)`, and `jaxslim.ops.BatchNorm` in place of `nn.BatchNorm`. On
other platforms all of them do what XLA and Flax do.
"""

from jaxslim.ops.convolution import accelerate, as_written, conv
from jaxslim.ops.norm import BatchNorm

__all__ = ["BatchNorm", "accelerate", "as_written", "conv"]
