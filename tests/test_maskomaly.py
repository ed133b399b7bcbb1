"""Queries are counted and ranked as they were planted, and Maskomaly's score is its formula."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf
from torch import nn

from eomt_exp.build import build
from eomt_exp.contracts import VOID, FittedScorer, ImageSet, LabelledImage, MaskOutput, Model
from eomt_exp.engine.detector import Detector
from eomt_exp.engine.query_statistics import QueryCounts, QueryStatistics
from eomt_exp.engine.seen_images import SeenImages, contents_of, read_digests
from eomt_exp.scorers.maskomaly import Maskomaly
from eomt_exp.scorers.msp import MSP
from eomt_exp.tasks import mined_queries
from eomt_exp.weights.weight_files import save_weights
from tests.command_line import SMALL, metrics_of, only_run, run

ROAD, CAR, NO_OBJECT = range(3)
SURE = 50.0


class KnownQueries(Model):
    """Five queries that say what a test wants them to; the image says which image it is.

    0 covers all and is always road; 1 lies on what is white, and is road in nine of ten images;
    2 covers nothing, and is road in eight and car in two; 3 lies on what is grey or white, and is
    never sure of its car; 4 covers nothing and never is an object.
    """

    num_classes, num_queries = 2, 5

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> MaskOutput:
        brightness = images[:, 0]
        nothing = torch.full_like(brightness, -SURE)
        white, grey = 200 * (brightness - 0.9), 200 * (brightness - 0.45)
        masks = torch.stack([-nothing, white, nothing, grey, nothing], dim=1)
        numbers = (25.5 * brightness.mean(dim=(1, 2))).round().int().tolist()  # of DarkImages
        return MaskOutput(
            masks, torch.stack([self.classes(i) for i in numbers]), torch.zeros(1), None, 2
        )

    def classes(self, number: int) -> torch.Tensor:
        said = [
            ROAD,
            ROAD if number < 9 else NO_OBJECT,
            ROAD if number < 8 else CAR,
            CAR,
            NO_OBJECT,
        ]
        logits = SURE * nn.functional.one_hot(torch.tensor(said), 3).float()
        logits[3] = torch.tensor([0.3, 0.6, 0.1]).log()
        return logits


class DarkImages(ImageSet):
    """Ten images of one brightness each, 0 to 90 of 255."""

    num_classes, class_names = 2, ("road", "car")

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> LabelledImage:
        labels = np.zeros((8, 8), np.uint8)
        return LabelledImage(
            np.full((8, 8, 3), 10 * index, np.uint8), labels, labels, f"dark {index}"
        )


class WhiteObjects(ImageSet):
    """White squares on black: one across two windows beside a grey void, one in a corner, none."""

    def __init__(self, *indices: int) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> LabelledImage:
        index = self.indices[position]
        anomaly = np.zeros((8, 16), np.uint8)
        if index == 0:
            anomaly[:4, 6:10], anomaly[:, 14:] = 1, VOID
        elif index == 1:
            anomaly[4:, :4] = 1
        image = np.zeros((8, 16, 3), np.uint8)
        image[anomaly == 1], image[anomaly == VOID] = 255, 128
        return LabelledImage(image, anomaly, anomaly, f"white {index}")


def detector() -> Detector:
    return Detector(
        model=KnownQueries(), scorers={"msp": MSP()}, score="msp", image_size=(8, 8), windows=True
    )


def looked_at(*indices: int) -> QueryStatistics:
    counts = QueryCounts(min_confidence=0.9, mask_threshold=0.9)
    for item in WhiteObjects(*indices):
        windows = list(detector().outputs(item.image, item.anomaly))
        assert len(windows) == 2
        counts.add_predictions(windows[0][0].class_logits)
        counts.add_image((output.mask_logits[0], truth) for output, truth in windows)
    return counts.statistics()


def test_a_mean_iou_is_over_whole_images_and_void_under_the_mask_counts_nowhere() -> None:
    found = looked_at(0, 1, 2)
    everywhere = (16 / 112 + 16 / 128 + 0) / 3
    np.testing.assert_allclose(found.ious, [everywhere, 1, 0, 1, 0], rtol=1e-12)
    assert found.images.tolist() == [3, 2, 2, 2, 2]  # the third shows the others nothing
    assert found.ranking() == [1, 3, 0, 2, 4]
    assert found.outlier_queries(0.25) == [1, 3]
    assert found.outlier_queries(1.0) == []


def test_a_query_without_a_value_comes_last_and_is_no_outlier_query() -> None:
    found = looked_at(2)
    assert np.isnan(found.ious[1:]).all()
    assert found.ranking() == [0, 1, 2, 3, 4]
    assert found.outlier_queries(0.0) == []


def analysed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an analysis of KnownQueries."""
    sets: dict[str, ImageSet] = {"data.val": DarkImages(), "mining.white": WhiteObjects(0, 1, 2)}
    contents = {n: contents_of(read_digests(s, range(len(s)))) for n, s in sets.items()}
    monkeypatch.setattr(mined_queries, "_read", lambda cfg: (sets, contents))
    source = tmp_path / "known.safetensors"
    save_weights(KnownQueries(), source)
    overrides = ["task=analyse_queries", "trainer.num_workers=0", "data.road_classes=[0]"]
    cfg = compose("config", overrides=["hydra.run.dir=unused", *overrides])
    folder, thresholds = tmp_path / "mined", mined_queries.thresholds_of(cfg)
    with pytest.raises(ValueError, match=r"task\.min_iou must be from 0 to 1, got 25"):
        mined_queries.thresholds_of(OmegaConf.merge(cfg, {"task": {"min_iou": 25}}))
    mined_queries.analyse(cfg, thresholds, source, lambda _: detector(), folder)
    return folder


def test_an_analysis_writes_what_the_queries_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, hydra_at_conf: None
) -> None:
    folder = analysed(tmp_path, monkeypatch)
    texts = {path.name: path.read_text() for path in folder.glob("*.csv")}
    assert texts["times_predicted_stats.csv"].splitlines() == [
        "query,road,car,no_object", "0,10,0,0", "1,9,0,1", "2,8,2,0", "3,0,10,0", "4,0,0,10",
    ]  # fmt: skip
    assert texts["high_conf_stats.csv"].splitlines() == [
        "query,road,car,no_object", "0,1.0,0.0,0.0", "1,0.9,0.0,0.1", "2,0.8,0.2,0.0",
        "3,0.0,0.0,0.0", "4,0.0,0.0,1.0",
    ]  # fmt: skip
    assert texts["specialized.csv"].splitlines() == [
        "query,class,share",
        "0,road,1.0",
        "1,road,0.9",
    ]
    rows = [line.split(",") for line in texts["outlier_queries.csv"].splitlines()]
    assert rows[0] == ["query", "mean_iou", "images", "is_outlier_query"]
    assert [(int(row[0]), row[3]) for row in rows[1:]] == [
        (1, "True"), (3, "True"), (0, "False"), (2, "False"), (4, "False"),
    ]  # fmt: skip
    assert float(rows[3][1]) == pytest.approx((16 / 112 + 16 / 128) / 3)

    mined = json.loads((folder / "mined_queries.json").read_text())
    assert (mined["outlier_queries"], mined["ground_queries"]) == ([1, 3], [0, 1])
    seen = SeenImages.load(folder)
    assert sorted(seen.uses["mining"].values()) == ["white 0", "white 1", "white 2"]
    assert len(seen.uses["validation"]) == 10
    assert seen.overlap(contents_of(read_digests(WhiteObjects(1), [0])))[0].use == "mining"

    page = (folder / "queries.html").read_text()
    assert "2 of 5 queries are specialised; outlier queries, best first: 1, 3." in page
    assert len(re.findall('<tr class="ours">', page)) == 2
    assert not re.search(r"@import|url\((?!#)|src=.http", page)
    assert (folder / "figures" / "queries.png").is_file()
    assert "outlier queries, best first: 1, 3" in capsys.readouterr().out


def mined(folder: Path, **queries: Any) -> Maskomaly:
    return Maskomaly(mined=planted.mined_folder(folder, **queries))


def output(*queries: tuple[list[float], list[float]]) -> MaskOutput:
    """Mask probabilities of a row of pixels and probabilities of road, car, no-object, by query."""
    masks, probs = (torch.tensor([q[i] for q in queries], dtype=torch.float64) for i in (0, 1))
    return MaskOutput(masks.logit()[None, :, None], probs.log()[None], torch.zeros(1), None, 2)


def scores(scorer: Maskomaly, *queries: tuple[list[float], list[float]]) -> list[float]:
    return scorer(output(*queries))[0, 0].tolist()


SURE_ROAD, UNSURE_CAR, NOTHING = [0.9, 0.06, 0.04], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]


def test_rejection_is_by_the_best_of_the_queries_that_are_sure_of_a_known_class(tmp_path) -> None:
    scorer = mined(tmp_path, num_queries=3)
    found = scores(
        scorer,
        ([0.8, 0.05, 0.05], SURE_ROAD),
        ([0.05, 0.9, 0.05], UNSURE_CAR),  # 0.7 is not above 0.7
        ([0.05, 0.05, 0.9], NOTHING),  # and no-object explains nothing
    )
    assert found == pytest.approx([1 - 0.8 * 0.9, 1 - 0.05 * 0.9, 1 - 0.05 * 0.9])
    nobody = ([0.9, 0.9, 0.9], NOTHING)
    assert scores(scorer, nobody, nobody, nobody) == [1, 1, 1]


def test_between_two_sure_queries_is_no_anomaly(tmp_path) -> None:
    scorer = mined(tmp_path, num_queries=3)
    sure_car = [0.05, 0.9, 0.05]
    found = scores(
        scorer,
        ([0.4, 0.4, 0.09, 0.4], SURE_ROAD),
        ([0.3, 0.09, 0.3, 0.05], sure_car),
        ([0.05, 0.05, 0.05, 0.9], UNSURE_CAR),  # not accepted, so nothing ends at it
    )
    assert found == pytest.approx([0, 1 - 0.36, 1 - 0.27, 1 - 0.36])


def test_ground_queries_explain_however_unsure_they_are(tmp_path) -> None:
    scorer = mined(tmp_path, num_queries=2, ground=[1])
    found = scores(scorer, ([0.5, 0.05], SURE_ROAD), ([0.2, 0.8], UNSURE_CAR))
    # 0.45 beats 0.2 * 0.7; and where both lie there is no border: only one is accepted.
    assert found == pytest.approx([1 - 0.45, 1 - 0.8 * 0.7])


def test_both_branches_are_weighed(tmp_path) -> None:
    queries = [([0.8, 0.05], SURE_ROAD), ([0.05, 0.9], NOTHING), ([0.2, 0.6], UNSURE_CAR)]
    scorer = mined(tmp_path, num_queries=3, outliers=[1, 2])
    rejected, covered = [1 - 0.72, 1 - 0.045], [0.2 * 0.7, 0.9 * 0.8]  # no-object counts for them
    wanted = [0.6 * r + 0.4 * c for r, c in zip(rejected, covered, strict=True)]
    assert scores(scorer, *queries) == pytest.approx(wanted)
    scorer.weight = 0.0
    assert scores(scorer, *queries) == pytest.approx(covered)
    alone = mined(tmp_path, num_queries=3)
    assert scores(alone, *queries) == pytest.approx(rejected)


def test_the_planted_anomaly_outranks_the_known_half(tmp_path) -> None:
    bare = planted.planted_output(outlier_class=False, with_head=False)
    with_class = planted.planted_output(outlier_class=True, with_head=True)
    for one in (bare, with_class):
        for outliers in ([], [1]):
            left, right = planted.halves(mined(tmp_path, outliers=outliers)(one))
            assert right.min() > left.max()
    random = planted.random_output(3, outlier_class=True, scale=1e4)
    assert mined(tmp_path, outliers=[1], ground=[0])(random).isfinite().all()


def test_what_was_not_mined_on_this_model_is_refused(tmp_path) -> None:
    scorer = mined(tmp_path, num_queries=7)
    assert isinstance(scorer, FittedScorer)
    with pytest.raises(ValueError, match="model with 7 queries, and this one has 6"):
        scorer(planted.random_output())
    with pytest.raises(ValueError, match="needs queries"):
        scorer(planted.planted_pixels())
    with pytest.raises(ValueError, match=r"/nowhere has no mined_queries\.json"):
        Maskomaly(mined="/nowhere")
    with pytest.raises(ValueError, match="names query 49; its model has 0 to 5"):
        mined(tmp_path, outliers=[1, 49])
    with pytest.raises(ValueError, match="is for task=evaluate"):
        Maskomaly(mined="auto")
    node = {"_target_": "eomt_exp.scorers.maskomaly.Maskomaly", "mined": scorer.folder}
    with pytest.raises(ValueError, match=r"x\.rejection_weight must be from 0 to 1, got 60"):
        build(node | {"rejection_weight": 60}, "x")


FEW = ("evaluator.known_classes=false", "tracking=none")


@pytest.mark.slow
def test_mining_on_the_test_is_refused_or_marked(outputs: Path, capfd) -> None:
    first = run(capfd, "+experiment=maskomaly", *SMALL, *FEW)  # one command does it all
    assert first.code == 0, first.err
    assert "No query is an outlier query" in first.out or "best first" in first.out
    saved = metrics_of(only_run(outputs, "maskomaly"))
    assert 0 <= saved["metrics"]["synth_obstacle/maskomaly/ap"] <= 1
    assert saved["manifest"]["warnings"] == []
    (model,) = (path.parent for path in outputs.glob("semantic/*/metrics.json"))

    # The experiment's scorer, not that of the run, and the analysis of the first time.
    again = run(capfd, "+experiment=maskomaly", *SMALL, *FEW, f"checkpoint={model}", "name=again",
                "task.min_iou=0.25")  # fmt: skip
    assert again.code == 0, again.err
    assert len(list(outputs.glob("analyse_queries/by-content-*"))) == 1
    wider = run(capfd, "+experiment=maskomaly", *SMALL, *FEW, "task.min_iou=0", "name=wider")
    assert wider.code == 0, wider.err
    analyses = sorted(outputs.glob("analyse_queries/by-content-*/mined_queries.json"))
    assert {json.loads(p.read_text())["thresholds"]["min_iou"] for p in analyses} == {0, 0.25}
    key = "synth_obstacle/maskomaly/ap"
    assert metrics_of(only_run(outputs, "again"))["metrics"][key] == saved["metrics"][key]

    folder = outputs / "mined"
    typed = ("task=analyse_queries", f"checkpoint={model}", *SMALL[1:], "tracking=none",
             "benchmark@mining=synth_obstacle", "mining.synth_obstacle.length=6",
             f"hydra.run.dir={folder}")  # fmt: skip
    analysed = run(capfd, *typed)
    assert analysed.code == 0, analysed.err
    assert str(folder / "queries.html") in analysed.out
    measured = ("task=evaluate", f"checkpoint={model}", *SMALL, *FEW, "scorer=[maskomaly]",
                "score=maskomaly", f"scorer.maskomaly.mined={folder}")  # fmt: skip
    refused = run(capfd, *measured)
    assert refused.code == 2
    assert re.search(r"6 images of synth_obstacle were seen before: .*\(mining, as", refused.err)
    assert "evaluator.allow_seen_images=true" in refused.err
    forced = run(capfd, *measured, "evaluator.allow_seen_images=true")
    assert forced.code == 0, forced.err
    run_folder = only_run(outputs, "evaluate")
    (warning,) = metrics_of(run_folder)["manifest"]["warnings"]
    assert "(mining, as" in warning
    assert "(mining, as" in (run_folder / "report.html").read_text()
    fitted = metrics_of(run_folder)["manifest"]["models"]["semantic-0"]["fitted"]
    assert fitted["maskomaly"]["num_queries"] == 6

    facts = json.loads((folder / "mined_queries.json").read_text())
    (folder / "mined_queries.json").write_text(json.dumps(facts | {"weights_sha256": "other"}))
    other = run(capfd, *measured)
    assert other.code == 2
    assert "type scorer.maskomaly.mined=auto" in other.err
    training = run(capfd, "+experiment=semantic", *SMALL, *FEW, "scorer=[maskomaly]",
                   "score=maskomaly", f"scorer.maskomaly.mined={folder}", "seed=1")  # fmt: skip
    assert training.code == 2
    assert "train without it, then type task=evaluate" in training.err


def test_an_analysis_wants_a_model_and_says_so(outputs: Path, capfd) -> None:
    outcome = run(capfd, "task=analyse_queries", *SMALL)
    assert outcome.code == 2
    assert "needs a trained model: add checkpoint=" in outcome.err
