"""How each primitive is written in ONNX: `rule(emitter, node) -> values`, one rule a primitive."""

from jaxslim.interop.onnx.emitter import Rule
from jaxslim.interop.onnx.rules.contractions import CONTRACTIONS
from jaxslim.interop.onnx.rules.control import CONTROL
from jaxslim.interop.onnx.rules.elementwise import ELEMENTWISE
from jaxslim.interop.onnx.rules.indexing import INDEXING
from jaxslim.interop.onnx.rules.patterns import PATTERNS
from jaxslim.interop.onnx.rules.pooling import POOLING
from jaxslim.interop.onnx.rules.reductions import REDUCTIONS
from jaxslim.interop.onnx.rules.shapes import SHAPES
from jaxslim.interop.onnx.rules.slices import SLICES

RULES: dict[str, Rule] = {
    **ELEMENTWISE,
    **SHAPES,
    **SLICES,
    **INDEXING,
    **REDUCTIONS,
    **CONTRACTIONS,
    **POOLING,
    **CONTROL,
    **PATTERNS,
}
