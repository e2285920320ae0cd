"""VGG-19 on CIFAR-10 without sparsity: the reference's baseline.

Command: jaxslim train cifar10-baseline
Cost: 160 epochs of 50,000 images, 398.1 M multiply-accumulates each forward, about 19 PFLOP in all.
Expected: 93.3 % (the PyTorch reference reports 93.26 %, foolwood's implementation of the same recipe 93.62 %).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar10-baseline", dataset="cifar10", model="vgg19", epochs=160)
