"""Fine-tuning of the VGG-19 that was cut from cifar10-sparse, as the reference does it.

Command: jaxslim train cifar10-finetune   (--init-from FOLDER for another checkpoint)
Cost: 40 epochs at 0.21 G multiply-accumulates an image forward, about 2.6 PFLOP.
Expected at ratio 0.7: 93.6 % (foolwood's implementation reports 93.56 %, the PyTorch reference 92.64 % after 10
epochs).
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(name="cifar10-finetuned", init_from="runs/cifar10-pruned", epochs=40)
