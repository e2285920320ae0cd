"""DenseNet-40 on SVHN with the L1 pull on the BatchNorm scales, lambda 1e-5.

Command: jaxslim train svhn-densenet40
Baseline: jaxslim train svhn-densenet40 --l1 0 --name svhn-densenet40-baseline
Then: jaxslim prune runs/svhn-densenet40 --ratio 0.4 --out runs/svhn-densenet40-cut
      jaxslim train svhn-densenet40 --init-from runs/svhn-densenet40-cut --l1 0 --name svhn-densenet40-tuned
Cost: 20 epochs of 604,388 images, 282.9 M multiply-accumulates each forward, about 21 PFLOP in all.
Expected: 98.1 % for the baseline, in the paper (table 1).
Expected after fine-tuning: 98.2 % with 0.65 M of 1.02 M parameters, or with --ratio 0.6 as much with 0.44 M, in the
paper.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="svhn-densenet40",
    dataset="svhn_cropped+extra",
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    augment=("crop",),
    model="densenet40",
    epochs=20,
    batch_size=64,
    optimizer_args={"nesterov": True},
    l1=1e-5,
)
