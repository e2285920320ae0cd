"""Draws how slimming works, from the scales of the network in own_linen.py: before, scales, after.

Command: python scripts/examples/how_slimming_works.py .github/how_slimming_works.png
Cost: 20 seconds on 2 CPU cores.
"""

import sys

import jax
import numpy as np
import own_linen
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

import jaxslim

BLUE, RED, BAND, INK = "#08519C", "#D55E00", "#E9ECEF", "#222222"
BLUES = ListedColormap(colormaps["Blues"](np.linspace(0.14, 0.97, 256)))
HEIGHT = 64  # channels of the widest layer


def colours(scales):
    return BLUES(LogNorm(1e-3, 0.6, clip=True)(scales))


def draw_network(panel, layers, image, label):
    """One column a layer, one cell a channel, between the image and what the network says."""
    heights = [9, *map(len, layers), 6]
    starts = [-0.95, *np.arange(len(layers)), len(layers) - 0.15]
    ends = [-0.42, *(start + 0.4 for start in starts[1:-1]), None]
    for i in range(len(starts) - 1):
        xs, up = (ends[i], starts[i + 1]), np.array(heights[i : i + 2]) / 2
        panel.fill_between(xs, -up, up, color=BAND, linewidth=0)
    panel.imshow(image, cmap="gray_r", extent=(starts[0], ends[0], -4.5, 4.5), aspect="auto")
    panel.text(starts[-1] + 0.1, 0, label, fontsize=19, fontweight="bold", va="center", color=INK)
    for i, scales in enumerate(layers):
        top = len(scales) / 2
        panel.imshow(colours(scales)[:, None], extent=(i, i + 0.4, -top, top), aspect="auto", interpolation="none")
        panel.hlines(np.arange(-top, top + 1), i, i + 0.4, color="white", linewidth=0.7)
        panel.text(i + 0.2, -HEIGHT / 2 - 2, len(scales), ha="center", va="top", fontsize=10, color=INK)
    panel.text(-0.68, -HEIGHT / 2 - 2, "channels", ha="center", va="top", fontsize=10, color=INK)
    panel.set(xlim=(-1.1, len(layers) + 0.3), ylim=(-HEIGHT / 2 - 6, HEIGHT / 2 + 1))
    panel.axis("off")


def draw_scales(panel, scales, cut):
    """Bars in order of size, and the line between the channels that go and those that stay."""
    low, places = 1e-7, np.arange(len(scales))
    panel.bar(places, np.maximum(np.sort(scales), low), width=1.0, color=colours(np.sort(scales)))
    panel.axvspan(-0.5, cut - 0.5, color=RED, alpha=0.09, linewidth=0, zorder=0)
    panel.axvline(cut - 0.5, color=RED, linewidth=1.4)
    panel.set(yscale="log", xlim=(-0.5, len(scales) - 0.5), ylim=(low, 2), xticks=[])
    panel.text(cut / 2, 0.4, f"{cut} go", color=RED, fontweight="bold", ha="center")
    panel.text(cut + 2, 0.4, f"{len(scales) - cut} stay", color=BLUE, fontweight="bold")
    panel.set_xlabel(f"All {len(scales)} channels, sorted by |scale|", color=INK)
    panel.spines[["top", "right"]].set_visible(False)


def measure(net, variables):
    right = np.mean(jax.jit(net.apply)(variables, own_linen.test_images).argmax(-1) == own_linen.test_labels)
    params, macs = jaxslim.count(net.apply, variables, own_linen.test_images)
    return f"{right:.1%} right, {params:,} parameters, {macs:,} MACs"


def main(path):
    trained, small, tuned = own_linen.main()
    before, after = (
        [np.abs(variables["params"][f"bn{i}"]["scale"]) for i in range(4)] for variables in (trained, small.variables)
    )
    cut = sum(map(len, before)) - sum(map(len, after))
    example = own_linen.test_images[0, :, :, 0], str(own_linen.test_labels[0])
    figure = Figure(figsize=(13, 4.6), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 3, width_ratios=[4, 3.4, 4])
    draw_network(panels[0], before, *example)
    draw_scales(panels[1], np.concatenate(before), cut)
    draw_network(panels[2], after, *example)
    texts = (
        ("1  Train with a pull on the scales", measure(own_linen.Net(), trained)),
        ("2  Look at the scales", "BatchNorm multiplies each channel by its scale"),
        ("3  Cut, and fine-tune", measure(small.module, tuned)),
    )
    for panel, (title, text) in zip(panels, texts, strict=True):
        panel.set_title(title, loc="left", fontsize=14, fontweight="bold", color=INK, pad=26)
        panel.text(0, 1.03, text, transform=panel.transAxes, fontsize=10, color=INK)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1])
