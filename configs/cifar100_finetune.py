"""Fine-tuning of the pruned VGG-19 on CIFAR-100; the widths come from the checkpoint.

Command: python -m jaxslim.train configs/cifar100_finetune.py
Cost: 160 epochs; about 4.9 M parameters are left of 20.1 M at ratio 0.5.
Expected at ratio 0.5: 73 % (the network-slimming authors report 73.32 %).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar100-finetuned", dataset="cifar100", init_from="runs/cifar100-pruned", epochs=160)
