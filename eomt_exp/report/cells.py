"""Keeps one model's results on one benchmark on disk: an evaluation that was killed reuses them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eomt_exp.engine.evaluation import Example
from eomt_exp.evaluator.image_counts import ImageCounts
from eomt_exp.evaluator.ranking import PixelCurves
from eomt_exp.files import replacing
from eomt_exp.report.leaderboard import Histogram, Result, SizeRow, TnrRow, image_rows

FORMAT = 2  # raise it when the files or the meaning of a number change

_log = logging.getLogger(__name__)


@dataclass
class Cell:
    """Holds what one benchmark came to under one model."""

    depends_on: dict[str, Any]  # all that could change the numbers, as JSON knows it
    results: list[Result]  # a scorer each
    images: dict[str, ImageCounts]  # by scorer, for comparisons with other models
    examples: list[Example]
    facts: dict[str, Any]  # for the manifest: images, those left out, their hash


def save_cell(path: Path, cell: Cell) -> None:
    """Write a cell as an archive of arrays and one JSON text: nothing in it can run."""
    arrays: dict[str, np.ndarray] = {}
    results = []
    for i, result in enumerate(cell.results):
        state = cell.images[result.scorer].state_dict()
        parts = {
            "curve": result.curves._asdict(),
            "histogram": result.histogram._asdict(),
            "images": {key: value.numpy() for key, value in state.items()},
        }
        for part, values in parts.items():
            arrays |= {f"result{i}/{part}/{key}": value for key, value in values.items()}
        results.append({**vars(result), "curves": None, "histogram": None, "images": None})
    examples = []
    for i, example in enumerate(cell.examples):
        arrays |= {f"example{i}/{k}": getattr(example, k) for k in ("image", "anomaly", "score")}
        examples.append([example.kind, example.name, example.ap, example.scorer])
    facts = {"depends_on": cell.depends_on, "facts": cell.facts}
    text = json.dumps({**facts, "results": results, "examples": examples})
    arrays["json"] = np.frombuffer(text.encode(), np.uint8)
    with replacing(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_cell(path: Path, depends_on: dict[str, Any]) -> Cell | None:
    """Return the finished cell, or None where there is none that these settings have made."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return _from_arrays(dict(file), depends_on)
    except Exception as error:  # flipped bytes surface as zlib's, zipfile's or tokenize's errors
        _log.warning("%s cannot be read (%s); it is measured again.", path, error)
        return None


def _from_arrays(arrays: dict[str, np.ndarray], depends_on: dict[str, Any]) -> Cell | None:
    content = json.loads(arrays["json"].tobytes().decode())
    if content["depends_on"] != depends_on:
        return None
    results, images = [], {}
    for i, plain in enumerate(content["results"]):
        plain["curves"] = PixelCurves(**_part(arrays, f"result{i}/curve/"))
        plain["histogram"] = Histogram(**_part(arrays, f"result{i}/histogram/"))
        plain["tnr"] = [TnrRow(*row) for row in plain["tnr"]]
        plain["sizes"] = [SizeRow(*row) for row in plain["sizes"]]
        plain["intervals"] = {k: tuple(pair) for k, pair in plain["intervals"].items()}
        state = _part(arrays, f"result{i}/images/")
        counts = images[plain["scorer"]] = ImageCounts()
        counts.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        results.append(Result(**{**plain, "images": image_rows(counts)}))
    examples = [
        Example(*facts, *(arrays[f"example{i}/{k}"] for k in ("image", "anomaly", "score")))
        for i, facts in enumerate(content["examples"])
    ]
    return Cell(depends_on, results, images, examples, content["facts"])


def _part(arrays: dict[str, np.ndarray], start: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(start): a for key, a in arrays.items() if key.startswith(start)}
