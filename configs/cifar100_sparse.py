"""VGG-19 on CIFAR-100 with the L1 pull on the BatchNorm scales, lambda 1e-4.

Command: jaxslim train cifar100-sparse
Then:    jaxslim prune runs/cifar100-sparse --ratio 0.5 --out runs/cifar100-pruned
Cost: 160 epochs of 50,000 images, about 19 PFLOP.
Expected: 72 % (the network-slimming authors report 72.05 %).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar100-sparse", dataset="cifar100", model="vgg19", epochs=160, l1=1e-4)
