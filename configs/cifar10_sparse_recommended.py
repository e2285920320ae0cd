"""VGG-19 on CIFAR-10 with the proximal L1 pull, lambda 1e-4: scales become exactly zero.

Command: python -m jaxslim.train configs/cifar10_sparse_recommended.py
Then:    jaxslim prune runs/cifar10-proximal --ratio 0.7 --absorb --recalibrate 20 --out runs/cifar10-best-cut
Cost: as cifar10_sparse.py, about 19 PFLOP.
Expected: as cifar10_sparse.py, 94.0 %, and more of it before fine-tuning, by what was measured at a quarter of the
widths (README); at full size it is not yet run.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar10-proximal", dataset="cifar10", model="vgg19", l1=1e-4, l1_method="proximal")
