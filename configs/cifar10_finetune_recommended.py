"""Fine-tuning of the VGG-19 that was cut from cifar10-sparse-recommended, with a rate that falls along a cosine.

Command: jaxslim train cifar10-finetune-recommended
Cost: as cifar10-finetune, about 2.6 PFLOP.
Expected at ratio 0.7: at least the 93.6 % of a stepped rate. This is what a quarter of the widths showed (README); the
full size has not been run yet.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="cifar10-finetuned-recommended", init_from="runs/cifar10-best-cut", epochs=40, schedule="cosine"
)
