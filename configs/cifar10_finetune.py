"""Fine-tuning of the pruned VGG-19 on CIFAR-10; the widths come from the checkpoint.

Command: python -m jaxslim.train configs/cifar10_finetune.py   (--init-from FOLDER for another pruned checkpoint)
Cost: 40 epochs at 0.21 G multiply-accumulates an image forward, about 2.6 PFLOP.
Expected at ratio 0.7: 93.6 % (foolwood's implementation reports 93.56 %, the PyTorch reference 92.64 % after 10
epochs).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar10-finetuned", dataset="cifar10", init_from="runs/cifar10-pruned", epochs=40)
