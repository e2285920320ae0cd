"""ResNet-164 on CIFAR-10 with the L1 pull on the BatchNorm scales, lambda 1e-5.

Command: jaxslim train cifar10-resnet164
Baseline: jaxslim train cifar10-resnet164 --l1 0 --name cifar10-resnet164-baseline
Then: jaxslim prune runs/cifar10-resnet164 --ratio 0.4 --out runs/cifar10-resnet164-cut
      jaxslim train cifar10-resnet164 --init-from runs/cifar10-resnet164-cut --l1 0 --name cifar10-resnet164-tuned
Cost: 160 epochs of 50,000 images, 247.6 M multiply-accumulates each forward, about 12 PFLOP in all.
Expected: 94.8 % (the network-slimming authors report 94.76 %, and 94.75 % for the baseline).
Expected after fine-tuning: 95.0 % with 1.45 M of 1.70 M parameters, or with --ratio 0.6 93.8 % with 1.12 M (they report
95.05 % and 93.81 %; table 1 of the paper has 94.92 % and 94.73 %).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="cifar10-resnet164",
    dataset="cifar10",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    model="resnet164",
    epochs=160,
    batch_size=64,
    optimizer_args={"nesterov": True},
    l1=1e-5,
)
