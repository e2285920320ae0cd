"""VGG-A on ImageNet with the L1 pull on the BatchNorm scales, lambda 1e-5.

Command: jaxslim train imagenet-vgg-a
Baseline: jaxslim train imagenet-vgg-a --l1 0 --name imagenet-vgg-a-baseline
Then: jaxslim prune runs/imagenet-vgg-a --ratio 0.5 --out runs/imagenet-vgg-a-cut
      jaxslim train imagenet-vgg-a --init-from runs/imagenet-vgg-a-cut --l1 0 --epochs 5 --learning-rate 1e-3 \
      --lr-drop-factor 1 --name imagenet-vgg-a-tuned
Cost: 60 epochs of 1.28 M images, 7.6 G multiply-accumulates each forward, about 3,500 PFLOP in all.
Expected: 63.3 % for the baseline, in the paper (table 2).
Expected after fine-tuning: 63.3 % with 23.2 M of 132.9 M parameters, in the paper, which fine-tunes for 5 epochs only.
With images of your own in train/CLASS/* and val/CLASS/*, add --dataset FOLDER.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="imagenet-vgg-a",
    dataset="imagenet2012",
    image_size=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    augment=("resized-crop", "flip"),
    fit="crop",
    model="vgg_a",
    epochs=60,
    batch_size=256,
    lr_drops=(1 / 3, 2 / 3),
    optimizer_args={"nesterov": True},
    l1=1e-5,
)
