"""VGG-19 on SVHN with the L1 pull on the BatchNorm scales, lambda 1e-4.

Command: jaxslim train svhn-vgg19
Baseline: jaxslim train svhn-vgg19 --l1 0 --name svhn-vgg19-baseline
Then: jaxslim prune runs/svhn-vgg19 --ratio 0.6 --out runs/svhn-vgg19-cut
      jaxslim train svhn-vgg19 --init-from runs/svhn-vgg19-cut --l1 0 --name svhn-vgg19-tuned
Cost: 20 epochs of 604,388 images, 398.1 M multiply-accumulates each forward, about 29 PFLOP in all.
Expected: 97.8 % for the baseline, in the paper (table 1).
Expected after fine-tuning: 97.9 % with 3.04 M of 20.04 M parameters, in the paper.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="svhn-vgg19",
    dataset="svhn_cropped+extra",
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    augment=("crop",),
    model="vgg19",
    epochs=20,
    batch_size=64,
    optimizer_args={"nesterov": True},
    l1=1e-4,
)
