"""Fine-tuning of the pruned VGG-19 on CIFAR-10 by what measured best: the rate falls along a cosine, not in steps.

Command: python -m jaxslim.train configs/cifar10_finetune_recommended.py   (after cifar10_sparse_recommended.py)
Cost: as cifar10_finetune.py, about 2.6 PFLOP.
Expected at ratio 0.7: about the 93.6 % of a stepped rate or more, by what was measured at a quarter of the widths
(README); at full size it is not yet run.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="cifar10-finetuned-recommended",
    dataset="cifar10",
    init_from="runs/cifar10-best-cut",
    epochs=40,
    schedule="cosine",
)
