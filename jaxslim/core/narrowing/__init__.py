"""How each primitive runs on smaller arrays: `narrow(program, eqn, step, arrays) -> outputs`.

Primitives whose parameters hold no shape need nothing here.
"""

from jaxslim.core.narrowing.control import CONTROL
from jaxslim.core.narrowing.custom import CUSTOM
from jaxslim.core.narrowing.shapes import SHAPES
from jaxslim.core.replay import Narrow

NARROW_RULES: dict[str, Narrow] = {**SHAPES, **CONTROL, **CUSTOM}
