"""A detector of objects over scales after Lin et al. 2017, "Focal Loss for Dense Object Detection" (RetinaNet)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from . import Network, linen, normal


class Backbone(nn.Module):
    """A small residual network that returns the map of each of its scales, coarser by a factor of two each."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        maps = []
        for features in self.features:
            x = nn.Conv(features, (3, 3), 2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            y = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(x + nn.BatchNorm(use_running_average=not train)(y))
            maps.append(x)
        return maps


class Pyramid(nn.Module):
    """Adds each coarse map, doubled in size, to the next finer one; the last map gives one more, coarser one.

    Lin et al. 2017, "Feature Pyramid Networks for Object Detection", figure 3.
    """

    features: int

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        merged = [nn.Conv(self.features, (1, 1), name=f"lateral{number}")(x) for number, x in enumerate(maps)]
        for number in range(len(merged) - 2, -1, -1):
            larger = jnp.repeat(jnp.repeat(merged[number + 1], 2, axis=1), 2, axis=2)
            merged[number] = merged[number] + larger
        levels = [nn.Conv(self.features, (3, 3), name=f"smooth{number}")(x) for number, x in enumerate(merged)]
        return [*levels, nn.Conv(self.features, (3, 3), 2, name="extra")(maps[-1])]


class Tower(nn.Module):
    """Convolutions shared by all scales (Lin et al. 2017, section 4)."""

    features: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.relu(nn.Conv(self.features, (3, 3))(x))
        return nn.Conv(self.outputs, (3, 3))(x)


class RetinaNet(nn.Module):
    """Returns logits of classes and boxes for the anchors at each place of each scale (Lin et al. 2017, figure 3)."""

    classes: int = 3
    anchors: int = 2
    features: int = 12

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> dict[str, list[jax.Array]]:
        levels = Pyramid(self.features)(Backbone((8, 12, 16))(x, train))
        classes = Tower(self.features, self.anchors * self.classes, name="classes")
        boxes = Tower(self.features, self.anchors * 4, name="boxes")

        def by_anchor(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:3], self.anchors, -1)

        return {"classes": [by_anchor(classes(x)) for x in levels], "boxes": [by_anchor(boxes(x)) for x in levels]}


NETWORKS: tuple[Network, ...] = (
    linen("retinanet", RetinaNet(), normal(2, 16, 16, 3), call={"train": False}, train={"train": True}),
)
