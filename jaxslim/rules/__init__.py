"""How each primitive passes channels on: one rule a primitive, `rule(walk, eqn, *inputs) -> outputs`.

Beside its ids, an axis carries what a channel holds once the vectors (scale, bias) of its unit are zero: 0 after a
BatchNorm, still 0 after a ReLU, 0.5 after a sigmoid, NaN where that is not known. Where a contraction meets something
other than 0, zeroing and cutting differ, and the units are recorded as inexact.
"""

from jaxslim.rules.axes import AXES
from jaxslim.rules.contractions import CONTRACTIONS
from jaxslim.rules.control import CONTROL
from jaxslim.rules.elementwise import ELEMENTWISE
from jaxslim.rules.walk import Rule

RULES: dict[str, Rule] = {**ELEMENTWISE, **AXES, **CONTRACTIONS, **CONTROL}
