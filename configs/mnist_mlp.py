"""784-500-300-10, dense layers with gates, on MNIST with the L1 pull on the gates, lambda 1e-3.

Command: jaxslim train mnist-mlp
Baseline: jaxslim train mnist-mlp --l1 0 --name mnist-mlp-baseline
Then: jaxslim prune runs/mnist-mlp --ratio 0.8 --scope layer --out runs/mnist-mlp-cut
      jaxslim train mnist-mlp --init-from runs/mnist-mlp-cut --l1 0 --name mnist-mlp-tuned
Cost: 30 epochs of 60,000 images, 0.5 M multiply-accumulates each forward, about 6 TFLOP in all.
Expected: 98.6 % for the baseline, in the paper (table 3).
Expected after fine-tuning: 98.5 % with 100 and 60 neurons, 15.6 % of the weights, in the paper.
The paper names no lambda for MNIST. With 1e-3, nine in ten gates end below 1e-3 on scikit-learn's digits.
"""

from jaxslim.training.config import TrainConfig

config = TrainConfig(
    name="mnist-mlp",
    dataset="mnist",
    image_size=28,
    channels=1,
    mean=(0.1307,),
    std=(0.3081,),
    augment=(),
    model="mlp",
    epochs=30,
    batch_size=256,
    lr_drops=(1 / 3, 2 / 3),
    optimizer_args={"nesterov": True},
    l1=1e-3,
)
