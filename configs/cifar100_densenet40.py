"""DenseNet-40 on CIFAR-100 with the L1 pull on the BatchNorm scales, lambda 1e-5.

Command: jaxslim train cifar100-densenet40
Baseline: jaxslim train cifar100-densenet40 --l1 0 --name cifar100-densenet40-baseline
Then: jaxslim prune runs/cifar100-densenet40 --ratio 0.4 --out runs/cifar100-densenet40-cut
      jaxslim train cifar100-densenet40 --init-from runs/cifar100-densenet40-cut --l1 0 --name cifar100-densenet40-tuned
Cost: 160 epochs of 50,000 images, 282.9 M multiply-accumulates each forward, about 14 PFLOP in all.
Expected: 73.3 % (the network-slimming authors report 73.29 %, and 73.27 % for the baseline).
Expected after fine-tuning: 73.8 % with 0.71 M of 1.10 M parameters, or with --ratio 0.6 73.2 % with 0.50 M (they report
73.76 % and 73.19 %; table 1 of the paper has 74.72 % and 74.28 %).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="cifar100-densenet40",
    dataset="cifar100",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    model="densenet40",
    epochs=160,
    batch_size=64,
    optimizer_args={"nesterov": True},
    l1=1e-5,
)
