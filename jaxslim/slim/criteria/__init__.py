"""Criteria: what scores the units of a network, one number a unit, for `jaxslim.plan`.

Each takes the graph first and returns (num_units + 1,) floats: entry 0 is 0, and -inf is no score. The higher a score,
the longer the unit stays. Scores are NumPy arrays, so `0.5 * a + b` is one too; see `weighted_sum`. A function of yours
with this result serves wherever these do.
"""

from jaxslim.slim.criteria.activations import activation as activation
from jaxslim.slim.criteria.gradients import fisher as fisher
from jaxslim.slim.criteria.gradients import taylor as taylor
from jaxslim.slim.criteria.scales import bn_scale as bn_scale
from jaxslim.slim.criteria.scales import scale as scale
from jaxslim.slim.criteria.weights import geometric_median as geometric_median
from jaxslim.slim.criteria.weights import lamp as lamp
from jaxslim.slim.criteria.weights import magnitude as magnitude
from jaxslim.slim.criteria.weights import random as random
from jaxslim.slim.criteria.weights import weighted_sum as weighted_sum
