"""Fine-tuning of the VGG-19 that was cut from cifar100-sparse, as the reference does it.

Command: jaxslim train cifar100-finetune
Cost: 160 epochs; about 4.9 M parameters are left of 20.1 M at ratio 0.5.
Expected at ratio 0.5: 73 % (the network-slimming authors report 73.32 %).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar100-finetuned", init_from="runs/cifar100-pruned", epochs=160)
