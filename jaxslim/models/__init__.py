"""Networks whose widths are data."""

from jaxslim.models.vgg import VGG, WIDTHS, vgg11, vgg13, vgg16, vgg19

__all__ = ["VGG", "WIDTHS", "vgg11", "vgg13", "vgg16", "vgg19"]
