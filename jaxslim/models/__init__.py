"""Networks whose widths are data."""

from jaxslim.models.registry import MODELS, MODULES, architecture, build
from jaxslim.models.vgg import VGG, WIDTHS, vgg11, vgg13, vgg16, vgg19

__all__ = ["MODELS", "MODULES", "VGG", "WIDTHS", "architecture", "build", "vgg11", "vgg13", "vgg16", "vgg19"]
