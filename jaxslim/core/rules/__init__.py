"""How each primitive passes channels on: one rule a primitive, `rule(walk, eqn, *inputs) -> outputs`."""

from jaxslim.core.rules.axes import AXES
from jaxslim.core.rules.contractions import CONTRACTIONS
from jaxslim.core.rules.control import CONTROL
from jaxslim.core.rules.elementwise import ELEMENTWISE
from jaxslim.core.rules.indexing import INDEXING
from jaxslim.core.rules.reshape import RESHAPE
from jaxslim.core.walk import Rule

RULES: dict[str, Rule] = {**ELEMENTWISE, **AXES, **RESHAPE, **INDEXING, **CONTRACTIONS, **CONTROL}
