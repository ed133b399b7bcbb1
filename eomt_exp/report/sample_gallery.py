"""Draws training samples with what they teach, to be looked at before a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eomt_exp.contracts import Sample, Target
from eomt_exp.report.canvas import INK, new_figure, save_png
from eomt_exp.report.figures import ANOMALY, dimmed, striped, truth_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEGEND_COLUMNS = 8


def gallery_figure(
    samples: Mapping[int, Sample], class_names: Sequence[str], path: str | Path, title: str = ""
) -> Path:
    """Draw a row a sample as a PNG 1200 px wide: image, masks, anomaly and, where any has, copy.

    `samples` are by their index in the training set, all of one size.
    """
    rows = [(f"{index}: {sample.name}", panels_of(sample)) for index, sample in samples.items()]
    columns = max(len(panels) for _, panels in rows)
    height, width = rows[0][1][0].shape[:2]
    shown = sorted({int(label) for one in samples.values() for label in one.target.labels})
    lines = (len(shown) + 2) // _LEGEND_COLUMNS + 1
    tall = (12 / columns * height / width + 0.26) * len(rows) + 0.8 + 0.22 * lines
    figure = new_figure(12, tall)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.04, wspace=0.0, hspace=0.0)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for place, (name, panels) in enumerate(rows):
        others = ("masks", "anomaly", "its copy") if place == 0 else ("", "", "")
        for axes in grid[place]:
            axes.set_axis_off()
        for axes, panel, text in zip(grid[place], panels, (name, *others), strict=False):
            axes.imshow(panel.astype(np.uint8), interpolation="antialiased")
            axes.set_title(text, loc="left", fontsize=10, color=INK)
    _explain(figure, shown, class_names)
    return save_png(figure, path, title)


def panels_of(sample: Sample) -> list[np.ndarray]:
    """Return pictures (H, W, 3) in [0, 255]: image, masks, anomaly and the copy there may be."""
    image, target = _pixels(sample), sample.target
    panels = [image, _mask_panel(image, target), truth_panel(image, target.anomaly.numpy())]
    return panels if sample.copy is None else [*panels, _pixels(sample.copy)]


def _pixels(sample: Sample) -> np.ndarray:
    return 255 * sample.image.numpy().transpose(1, 2, 0)


def _mask_panel(image: np.ndarray, target: Target) -> np.ndarray:
    """Colour each mask; grey pixels are in none, and those that mask losses leave out striped."""
    panel = 13 + dimmed(image, 0.6)
    for mask, label in zip(target.masks.numpy(), target.labels.tolist(), strict=True):
        panel[mask] = 0.4 * panel[mask] + 0.6 * 255 * np.array(_colour(label))
    return striped(panel, image, target.ignore.numpy())


def _colour(label: int) -> tuple[float, float, float]:
    """Return RGB in [0, 1]; the golden ratio parts the hues of neighbours, none is an anomaly's."""
    from matplotlib.colors import hsv_to_rgb

    red, green, blue = hsv_to_rgb(
        (0.05 + 0.8 * (label * 0.618034 % 1), 0.75, 0.6 + 0.35 * (label % 2))
    )
    return float(red), float(green), float(blue)


def _explain(figure: Figure, labels: Sequence[int], class_names: Sequence[str]) -> None:
    """Write the classes below; what is no known class is that of outliers."""
    from matplotlib.patches import Patch

    names = [class_names[k] if k < len(class_names) else "outlier class" for k in labels]
    handles = [Patch(color=_colour(k), label=name) for k, name in zip(labels, names, strict=True)]
    handles.append(Patch(color=ANOMALY, label="anomaly"))
    handles.append(
        Patch(facecolor="#a0a0a0", edgecolor="#c4c4c4", hatch="////", label="left out, or void")
    )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False,
        fontsize=9,
    )  # fmt: skip
