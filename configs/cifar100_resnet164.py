"""ResNet-164 on CIFAR-100 with the L1 pull on the BatchNorm scales, lambda 1e-5.

Command: jaxslim train cifar100-resnet164
Baseline: jaxslim train cifar100-resnet164 --l1 0 --name cifar100-resnet164-baseline
Then: jaxslim prune runs/cifar100-resnet164 --ratio 0.4 --out runs/cifar100-resnet164-cut
      jaxslim train cifar100-resnet164 --init-from runs/cifar100-resnet164-cut --l1 0 --name cifar100-resnet164-tuned
Cost: 160 epochs of 50,000 images, 247.6 M multiply-accumulates each forward, about 12 PFLOP in all.
Expected: 76.9 % (the network-slimming authors report 76.87 %, and 76.79 % for the baseline).
Expected after fine-tuning: 77.4 % with 1.49 M of 1.73 M parameters (they report 77.36 %; table 1 of the paper has
77.13 %, and 76.09 % at --ratio 0.6).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="cifar100-resnet164",
    dataset="cifar100",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    model="resnet164",
    epochs=160,
    batch_size=64,
    optimizer_args={"nesterov": True},
    l1=1e-5,
)
