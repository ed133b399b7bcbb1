"""Figures show what was planted, whatever the size of the data."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from leaderboard_example import BENCHMARKS, leaderboard
from PIL import Image

from eomt_exp.contracts import VOID
from eomt_exp.engine.evaluation import Example
from eomt_exp.evaluator.ranking import PixelCurves
from eomt_exp.report.figures import curves_figure, heat_map_figure, heat_maps
from eomt_exp.report.training_figure import smoothed, training_figure


def pixels(path) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    return np.asarray(Image.open(path).convert("RGB")) / 255.0


def scene(height: int = 96, width: int = 192) -> Example:
    """The left third is anomalous and scores high, the right third is void."""
    rng = np.random.default_rng(0)
    image = rng.integers(60, 120, (height, width, 3), np.uint8)
    anomaly = np.zeros((height, width), np.uint8)
    anomaly[:, : width // 3], anomaly[:, -width // 3 :] = 1, VOID
    score = rng.normal(0, 0.1, (height, width)) + 2.0 * (anomaly == 1)
    return Example("best", "planted", 0.5, "rba", image, anomaly, score)


@pytest.mark.parametrize("size", [(64, 64), (320, 640)])
def test_the_planted_anomaly_is_hotter_than_the_road(tmp_path, size):
    path = heat_map_figure([scene(*size)], tmp_path / "new" / "heat.png", "planted, rba")
    picture = pixels(path)
    height, width = picture.shape[:2]
    assert abs(width - 1200) < 3
    assert 250 < height < 700
    assert picture.std() > 0.1
    middle = picture[int(0.45 * height) : int(0.6 * height)]
    heat = middle[:, int(0.625 * width) : int(0.925 * width)]  # the third panel
    third = heat.shape[1] // 3
    hot, cold = heat[:, third // 4 : third // 2], heat[:, third + third // 3 : -third - third // 3]
    assert hot.mean() > cold.mean() + 0.3
    assert hot[..., 0].mean() > hot[..., 2].mean() + 0.2  # yellow, not grey
    truth = middle[:, int(0.32 * width) : int(0.36 * width)]
    assert truth[..., 0].mean() > truth[..., 1].mean() + 0.3  # the anomaly's red
    assert os.listdir(path.parent) == ["heat.png"]


def test_heat_maps_survive_odd_rows(tmp_path):
    row = scene()
    void = row._replace(anomaly=np.full_like(row.anomaly, VOID))
    constant = row._replace(score=np.zeros(row.score.shape))
    broken = row._replace(score=np.where(row.anomaly == 1, np.nan, row.score))
    for index, rows in enumerate([[void], [constant], [broken], [row, scene(64, 64), void]]):
        assert pixels(heat_map_figure(rows, tmp_path / f"{index}.png")).std() > 0.05


def test_the_truth_is_filled_outlined_and_void_is_striped():
    grey, truth = np.full((60, 120, 3), 90, np.uint8), np.zeros((60, 120), np.uint8)
    truth[20:40, 10:50], truth[:, 110:] = 1, VOID
    (panels,), low, high = heat_maps(
        [scene()._replace(image=grey, anomaly=truth, score=(truth == 1) * 1.0)]
    )
    photo, filled, heat = (panel.astype(float) for panel in panels)
    assert (low, high) == (0, 1)
    assert np.abs(photo - 90).max() < 1
    red = filled[..., 0] - filled[..., 1]
    assert red[20:40, 10:50].min() > 80
    assert max(np.abs(red[:10]).max(), np.abs(red[:, 70:]).max()) < 1
    assert heat[25:35, 15:45].mean() > heat[:, 70:105].mean() + 80
    assert (heat[19, 10:50] == 255).all()
    assert len(np.unique(heat[:, 110:])) == 2


def test_curves_are_drawn_for_many_methods_and_for_none_defined(tmp_path):
    board = leaderboard()
    picture = pixels(curves_figure(board, BENCHMARKS[0], tmp_path / "curves.png"))
    assert abs(picture.shape[1] - 1200) < 3
    assert picture.std() > 0.05
    for result in board.results:
        result.curves = PixelCurves(*[np.empty(0)] * 4)
        result.metrics = dict.fromkeys(result.metrics, math.nan)
    curves_figure(board, BENCHMARKS[0], tmp_path / "empty.png")


def test_training_figure_copes_with_gaps_single_points_and_silence(tmp_path):
    journal = tmp_path / "metrics.jsonl"
    training_figure(journal, tmp_path / "none.png")
    journal.write_text('{"step": 0, "train/total": 1.0, "val/miou": null}\n{"step": 1, "tr')
    training_figure(journal, tmp_path / "one.png")
    rates = {"time": 1.0, "lr/head": 1e-4}
    lines = [{"step": s, "train/total": 9 * 0.95**s + 1e-3} | rates for s in range(99)]
    for index, line in enumerate(lines[::20]):
        line |= {f"val/s{n}/ap": index / 9 + n / 99 for n in range(11)} | {"val/miou": 0.5}
    lines[50]["train/total"] = math.nan
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines).replace("NaN", "null"))
    training_figure(journal, tmp_path / "full.png")
    none, one, full = (pixels(tmp_path / f"{name}.png") for name in ("none", "one", "full"))
    assert all(abs(picture.shape[1] - 1200) < 3 for picture in (none, one, full))
    assert min(none.std(), one.std()) > 0.01
    assert full.std() > one.std()


def test_smoothing_keeps_level_gaps_and_timing():
    assert np.allclose(smoothed(np.full(100, 3.0)), 3.0)
    values = np.r_[np.zeros(100), np.ones(100)]
    assert np.allclose(smoothed(values), 1 - smoothed(values)[::-1])  # no lag
    values[30] = np.nan
    assert np.isnan(smoothed(values)).sum() == 1
