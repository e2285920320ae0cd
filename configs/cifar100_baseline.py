"""VGG-19 on CIFAR-100 without sparsity.

Command: jaxslim train cifar100-baseline
Cost: 160 epochs of 50,000 images, about 19 PFLOP.
Expected: 72 % (the network-slimming authors report 72.12 % with batches of 64 and CIFAR's own mean and deviation).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar100-baseline", dataset="cifar100", model="vgg19", epochs=160)
