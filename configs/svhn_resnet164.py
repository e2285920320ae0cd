"""ResNet-164 on SVHN with the L1 pull on the BatchNorm scales, lambda 1e-5.

Command: jaxslim train svhn-resnet164
Baseline: jaxslim train svhn-resnet164 --l1 0 --name svhn-resnet164-baseline
Then: jaxslim prune runs/svhn-resnet164 --ratio 0.4 --out runs/svhn-resnet164-cut
      jaxslim train svhn-resnet164 --init-from runs/svhn-resnet164-cut --l1 0 --name svhn-resnet164-tuned
Cost: 20 epochs of 604,388 images, 247.6 M multiply-accumulates each forward, about 18 PFLOP in all.
Expected: 98.2 % for the baseline, in the paper (table 1).
Expected after fine-tuning: 98.15 % with 1.46 M of 1.70 M parameters, in the paper.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="svhn-resnet164",
    dataset="svhn_cropped+extra",
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    augment=("crop",),
    model="resnet164",
    epochs=20,
    batch_size=64,
    optimizer_args={"nesterov": True},
    l1=1e-5,
)
