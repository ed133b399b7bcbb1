"""Writes what a model found in pictures: maps, masks, overlays, tables of regions and a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from eomt_exp.evaluator.metrics import Metric
from eomt_exp.evaluator.regions import Region, regions_of
from eomt_exp.files import replacing, write_text
from eomt_exp.report.figures import as_jpeg
from eomt_exp.report.html_report import template
from eomt_exp.report.overlay import HeatScale, overlay
from eomt_exp.report.tables import Entry, Table
from eomt_exp.report.terminal import make_console, rich_table
from eomt_exp.report.text_tables import rows_as_csv

FOUND, PAGE, TABLE, LIST = "found", "index.html", "regions.csv", "regions.json"
COLUMNS = ("image", *Region._fields)
MOST_ROWS = 10  # of the table on a terminal
_THUMBNAIL = 320  # pixels wide
_QUALITY = 90  # of JPEG


class Writer(NamedTuple):
    """Says what is written of each picture, and how."""

    folder: Path
    threshold: float | None  # None: no masks and no regions
    smallest: int  # pixels of a region
    maps: str  # png, npz or none
    overlays: bool
    masks: bool

    def is_done(self, name: str) -> bool:
        """Return whether all files of a picture are there."""
        return self._found(name).is_file()

    def write(self, name: str, image: np.ndarray, score: np.ndarray, scale: HeatScale) -> None:
        """Write the files of one picture (H, W, 3) uint8, score (H, W); its regions come last."""
        mask = None if self.threshold is None else score >= self.threshold
        low, high = _finite_ends(score)
        if self.maps == "npz":
            with replacing(self.folder / "scores" / f"{name}.npz") as scratch:
                np.savez_compressed(scratch, score=score)
        elif self.maps == "png":
            _write_map(self.folder / "scores" / f"{name}.png", score, low, high)
        if self.masks and mask is not None:
            _save(Image.fromarray(mask.view(np.uint8) * 255), self.folder / f"masks/{name}.png")
        if self.overlays:
            picture = Image.fromarray(overlay(image, score, scale, mask))
            _save(picture, self.folder / f"overlays/{name}.jpg", quality=_QUALITY)
        found = self.found(name, score) | {"lowest": low, "highest": high}
        write_text(self._found(name), json.dumps(found))

    def found(self, name: str, score: np.ndarray) -> dict[str, Any]:
        """Return what is listed of a picture or a frame."""
        height, width = score.shape
        regions = [] if self.threshold is None else regions_of(score, self.threshold, self.smallest)
        return {
            "image": name,
            "height": height,
            "width": width,
            "threshold": self.threshold,
            "regions": [region._asdict() for region in regions],
        }

    def all_found(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Read what was written of pictures; those that are not done, as broken ones, are none."""
        return [json.loads(self._found(n).read_text()) for n in names if self.is_done(n)]

    def _found(self, name: str) -> Path:
        return self.folder / FOUND / f"{name}.json"


def write_tables(found: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write all regions as CSV, a row each, and as JSON, an entry a picture."""
    write_text(folder / TABLE, rows_as_csv(COLUMNS, _rows(found)))
    write_text(folder / LIST, json.dumps(found, indent=1) + "\n")


def write_gallery(found: Sequence[dict[str, Any]], folder: Path, title: str, lead: str) -> Path:
    """Write a page of all overlays, most anomalous first, which loads nothing."""
    cards = [
        {
            "name": one["image"],
            "overlay": f"overlays/{one['image']}.jpg",
            "picture": _thumbnail(folder / f"overlays/{one['image']}.jpg"),
            "highest": one["highest"],
            "regions": len(one["regions"]),
            "share": sum(r["area"] for r in one["regions"]) / (one["height"] * one["width"]),
        }
        for one in sorted(found, key=lambda one: -one["highest"])
    ]
    page = template("gallery.html").render(title=title, lead=lead, cards=cards)
    write_text(folder / PAGE, page + "\n")
    return folder / PAGE


def print_regions(found: Sequence[dict[str, Any]]) -> None:
    """Print the regions with the highest mean scores."""
    rows = sorted(_rows(found), key=lambda row: -row[COLUMNS.index("mean")])
    console = make_console()
    if not rows:
        console.print("no region reaches the threshold.")
        return
    entries = [
        [Entry(row[0], look="name"), *(Entry(f"{value:.6g}", look="number") for value in row[1:])]
        for row in rows[:MOST_ROWS]
    ]
    columns = [Metric(name) for name in COLUMNS]
    title = f"{len(entries)} of {len(rows)} regions"
    console.print(rich_table(Table(columns, entries), title))


def _rows(found: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["image"], *region.values()) for one in found for region in one["regions"]]


def _finite_ends(score: np.ndarray) -> tuple[float, float]:
    inside = score[np.isfinite(score)]
    return (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)


def _write_map(path: Path, score: np.ndarray, low: float, high: float) -> None:
    """Write score as a 16-bit PNG: low is 0 and high 65535, and both stand in its text chunks."""
    share = np.nan_to_num((score - low) / ((high - low) or 1.0), nan=0.0).clip(0, 1)
    chunks = PngImagePlugin.PngInfo()
    for name, value in (("score_at_0", low), ("score_at_65535", high)):
        chunks.add_text(name, repr(value))
    picture = Image.fromarray((share * 65535).round().astype(np.uint16))
    _save(picture, path, pnginfo=chunks, compress_level=3)


def _save(picture: Image.Image, path: Path, **settings: Any) -> None:
    with replacing(path) as scratch:
        picture.save(scratch, **settings)


def _thumbnail(path: Path) -> str:
    with Image.open(path) as picture:
        picture.draft("RGB", (2 * _THUMBNAIL, 2 * _THUMBNAIL))
        height = round(picture.height * _THUMBNAIL / picture.width)
        return as_jpeg(np.asarray(picture.resize((_THUMBNAIL, max(height, 1)))))
