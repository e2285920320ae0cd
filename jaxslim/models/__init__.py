"""Networks that configurations and checkpoints can name."""

from jaxslim.models.densenet import DenseNet, densenet22, densenet40, densenet40_bc
from jaxslim.models.mlp import MLP, mlp
from jaxslim.models.preresnet import PreResNet, preresnet20, preresnet56, preresnet110, preresnet164, resnet164
from jaxslim.models.registry import MODELS, architecture, build, kind, module_class, registered
from jaxslim.models.resnet import ResNet, resnet18, resnet18_cifar, resnet34, resnet50, resnet101, resnet152
from jaxslim.models.vgg import VGG, WIDTHS, vgg11, vgg13, vgg16, vgg19
from jaxslim.models.vgg_imagenet import ImageNetVGG, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn, vgg_a

__all__ = ["MODELS", "WIDTHS", "architecture", "build", "kind", "module_class", "registered"]
__all__ += [
    "VGG",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "ImageNetVGG",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
    "vgg_a",
]
__all__ += ["PreResNet", "preresnet20", "preresnet56", "preresnet110", "preresnet164", "resnet164"]
__all__ += ["DenseNet", "densenet22", "densenet40", "densenet40_bc", "MLP", "mlp"]
__all__ += ["ResNet", "resnet18", "resnet18_cifar", "resnet34", "resnet50", "resnet101", "resnet152"]
