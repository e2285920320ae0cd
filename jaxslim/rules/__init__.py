"""How each primitive passes channels on: one rule a primitive, `rule(walk, eqn, *inputs) -> outputs`."""

from jaxslim.rules.axes import AXES
from jaxslim.rules.contractions import CONTRACTIONS
from jaxslim.rules.control import CONTROL
from jaxslim.rules.elementwise import ELEMENTWISE
from jaxslim.rules.walk import Rule

RULES: dict[str, Rule] = {**ELEMENTWISE, **AXES, **CONTRACTIONS, **CONTROL}
