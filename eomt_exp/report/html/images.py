"""Shows the report's best and worst images: the photo, its truth outlined, and the heat map."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from eomt_exp.contracts import VOID
from eomt_exp.engine.evaluation import Example
from eomt_exp.report.canvas import HEAT, heat_range
from eomt_exp.report.html.tags import Html, joined, tag
from eomt_exp.report.metric_names import shown

WIDTH = 480  # pixels of a panel: three of them side by side, and a file that can be mailed
QUALITY = 80  # of JPEG
OUTLINE = (255, 45, 111)


def example_figures(examples: Sequence[Example]) -> Html | None:
    """Show a row of panels an image, with one scale of the heat map; None without images."""
    if not examples:
        return None
    low, high = heat_range(np.concatenate([_finite(e.score).ravel() for e in examples]))
    return joined(
        [_colour_scale(low, high), *(_figure(example, low, high) for example in examples)]
    )


def _figure(example: Example, low: float, high: float) -> Html:
    image, anomaly, score = _at_panel_width(example)
    panels = {
        "photo": image,
        "truth, outlined": _outlined(_with_stripes(image, anomaly == VOID), anomaly == 1, OUTLINE),
        "score": _heat(image, anomaly, (score - low) / (high - low)),
    }
    images = [
        tag("img", src=_data(panel), alt=f"{name}: {example.name}", title=name)
        for name, panel in panels.items()
    ]
    caption = [tag("strong", example.kind), f" · AP {shown('ap', example.ap)} · {example.name}"]
    return tag(
        "figure",
        tag("figcaption", *caption),
        tag("div", *images, class_="panels"),
        class_="example",
    )


def _at_panel_width(example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resize image, anomaly and score to WIDTH at most; a thin anomaly stays visible."""
    height, width = example.anomaly.shape
    ratio = min(1.0, WIDTH / width)
    size = (max(round(width * ratio), 1), max(round(height * ratio), 1))
    image = Image.fromarray(np.asarray(example.image, dtype=np.uint8))
    anomaly = np.zeros(size[::-1], np.uint8)
    anomaly[_resized(example.anomaly == VOID, size) > 0.5] = VOID
    anomaly[_resized(example.anomaly == 1, size) > 0.1] = 1
    score = _resized(_finite(example.score), size)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)), anomaly, score


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    plane = Image.fromarray(array.astype(np.float32))
    return np.asarray(plane.resize(size, Image.Resampling.BOX))


def _finite(score: np.ndarray) -> np.ndarray:
    """Put infinite scores at the ends of the finite ones, NaN at the lower end."""
    inside = score[np.isfinite(score)]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    return np.nan_to_num(score, nan=low, posinf=high, neginf=low)


def _with_stripes(image: np.ndarray, void: np.ndarray) -> np.ndarray:
    """Make void pixels pale and striped: they are not judged."""
    height, width = void.shape
    stripes = np.add.outer(np.arange(height), np.arange(width)) % 10 < 5
    pale = 0.45 * image + np.where(stripes, 105, 88)[..., None]
    return np.where(void[..., None], pale, image).astype(np.uint8)


def _outlined(
    image: np.ndarray, region: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """Draw a line around the region with a dark rim, so that it shows on any background."""
    line = _grown(region, 2) & ~region
    rim = _grown(region, 3) & ~line & ~region
    drawn = np.where(rim[..., None], image * 0.35, image)
    return np.where(line[..., None], np.array(colour), drawn).astype(np.uint8)


def _grown(region: np.ndarray, pixels: int) -> np.ndarray:
    for _ in range(pixels):
        wide = np.pad(region, 1)
        region = (
            wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
        )
    return region


def _heat(image: np.ndarray, anomaly: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draw heat over the grey picture, denser where it is hotter; the truth outlined in white."""
    from matplotlib import colormaps

    heat = np.clip(heat, 0, 1)
    grey = 0.8 * image.mean(axis=2, keepdims=True)
    weight = 0.55 + 0.45 * heat[..., None]
    panel = grey * (1 - weight) + 255 * colormaps[HEAT](heat)[..., :3] * weight
    return _outlined(_with_stripes(panel, anomaly == VOID), anomaly == 1)


def _colour_scale(low: float, high: float) -> Html:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    stops = ", ".join(to_hex(colormaps[HEAT](share)) for share in np.linspace(0, 1, 9))
    bar = tag("span", class_="bar", style=f"background: linear-gradient(90deg, {stops})")
    texts = f"{low:.3g}", f"{high:.3g}"
    return tag("div", tag("span", f"score {texts[0]}"), bar, texts[1], class_="scale")


def _data(panel: np.ndarray) -> str:
    """Encode the picture as a data: address."""
    file = io.BytesIO()
    Image.fromarray(panel).save(file, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
