"""VGG-19 on CIFAR-10 with the L1 pull on the BatchNorm scales, lambda 1e-4.

Command: jaxslim train cifar10-sparse
Then:    jaxslim prune runs/cifar10-sparse --ratio 0.7 --out runs/cifar10-pruned
Cost: as cifar10-baseline, about 19 PFLOP.
Expected: 94.0 % (the PyTorch reference reports 94.02 %, foolwood's implementation 93.77 %).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar10-sparse", dataset="cifar10", model="vgg19", epochs=160, l1=1e-4)
