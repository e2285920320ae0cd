"""Networks that configurations and checkpoints can name."""

from jaxslim.models.registry import MODELS, architecture, build, module_class
from jaxslim.models.vgg import VGG, WIDTHS, vgg11, vgg13, vgg16, vgg19

__all__ = ["MODELS", "VGG", "WIDTHS", "architecture", "build", "module_class", "vgg11", "vgg13", "vgg16", "vgg19"]
