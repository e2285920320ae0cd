"""VGG-19 on CIFAR-10 with the proximal L1 pull, lambda 1e-4: scales become exactly zero.

Command: jaxslim train cifar10-sparse-recommended
Then:    jaxslim prune runs/cifar10-proximal --ratio 0.7 --recalibrate 20 --out runs/cifar10-best-cut
Cost: as cifar10-sparse, about 19 PFLOP.
Expected: 94.0 % as for cifar10-sparse, and more of it before fine-tuning. This is what a quarter of the widths showed
(README); the full size has not been run yet.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar10-proximal", dataset="cifar10", model="vgg19", l1=1e-4, l1_method="proximal")
