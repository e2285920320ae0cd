"""DenseNet-40 on CIFAR-10 with the L1 pull on the BatchNorm scales, lambda 1e-5.

Command: jaxslim train cifar10-densenet40
Baseline: jaxslim train cifar10-densenet40 --l1 0 --name cifar10-densenet40-baseline
Then: jaxslim prune runs/cifar10-densenet40 --ratio 0.4 --out runs/cifar10-densenet40-cut
      jaxslim train cifar10-densenet40 --init-from runs/cifar10-densenet40-cut --l1 0 --name cifar10-densenet40-tuned
Cost: 160 epochs of 50,000 images, 282.9 M multiply-accumulates each forward, about 14 PFLOP in all.
Expected: 94.2 % (the network-slimming authors report 94.17 %, and 94.11 % for the baseline).
Expected after fine-tuning: 94.3 % with 0.69 M of 1.06 M parameters, or with --ratio 0.6 94.2 % with 0.49 M (they report
94.32 % and 94.22 %; table 1 of the paper has 94.81 %, and 94.35 % at 0.7).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="cifar10-densenet40",
    dataset="cifar10",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    model="densenet40",
    epochs=160,
    batch_size=64,
    optimizer_args={"nesterov": True},
    l1=1e-5,
)
