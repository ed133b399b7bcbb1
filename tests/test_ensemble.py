"""Ensembles: what is fused outranks what is not, in each space, and as a user types it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from eomt_exp.contracts import LabelledImage, UserError
from eomt_exp.engine.detector import AnyDetector, Detection
from eomt_exp.engine.ensemble import (
    EnsembleDetector,
    NormalScores,
    fitted_weights,
    normalised,
    ranks,
    raw,
)
from eomt_exp.engine.evaluation import Settings, measure_benchmark, measure_known_classes
from eomt_exp.evaluator.pixel import PixelCounts
from eomt_exp.paths import asset_dir
from eomt_exp.schema import FusionConfig, ScoreSpace
from eomt_exp.tasks.fusion import check_known_classes, keep_fused_scores
from eomt_exp.tasks.image_sets import build_image_sets
from tests.bright_anomalies import BrightAnomalies, BrightnessNet
from tests.command_line import SMALL, metrics_of, run, run_aside
from tests.test_engine import detector
from tests.test_mask2former import FAST, TINY

RNG = np.random.default_rng(0)
SHAPE = (40, 60)


class Recorded(AnyDetector):
    """Knows its score maps, and counts the images it is asked for."""

    score = "s"
    image_size = SHAPE
    batch_size = 1

    def __init__(self, maps: list[np.ndarray]) -> None:
        self.recorded, self.asked = maps, 0
        self.scorers = {"s": None}

    def stream(self, images, only=None, known=True) -> Iterator[Detection]:
        for _, one in zip(images, self.recorded, strict=True):
            self.asked += 1
            yield Detection({"s": one}, None)


def noise(count: int = 3) -> np.ndarray:
    return RNG.normal(size=(count, *SHAPE)).astype(np.float32)


def anomalies(count: int = 3) -> np.ndarray:
    """Two anomalies an image, one on the left and one on the right."""
    found = np.zeros((count, *SHAPE), np.uint8)
    found[:, 10:20, 5:15] = found[:, 20:30, 40:50] = 1
    return found


def normal_scores(scores: np.ndarray) -> NormalScores:
    counts = PixelCounts(20)
    counts.update(scores, np.zeros(scores.shape, np.uint8))
    return NormalScores.of(counts)


def ap(scores: np.ndarray, truth: np.ndarray) -> float:
    return float(average_precision_score(truth.ravel(), scores.ravel()))


def test_ranks_are_scipys_and_ties_share_one() -> None:
    for scores in (noise(1)[0], RNG.integers(0, 9, SHAPE).astype(np.float32), np.zeros(SHAPE)):
        np.testing.assert_allclose(
            ranks(scores), rankdata(scores).reshape(SHAPE) / scores.size, rtol=1e-12
        )


def test_the_fitted_space_is_the_share_of_normal_scores_below() -> None:
    normal = np.concatenate([RNG.normal(size=50_000), RNG.gamma(1, 9, 50_000)]).astype(np.float32)
    scores = RNG.uniform(-4, 60, 1000).astype(np.float32)
    below = (normal < scores[:, None]).mean(axis=1)
    np.testing.assert_allclose(normal_scores(normal).share_below(scores) + 1, below, atol=2e-3)


def test_the_fitted_space_keeps_the_order_of_scores_beyond_all_that_were_fitted() -> None:
    space = normal_scores(RNG.normal(size=1000).astype(np.float32))
    rising = np.array([-np.inf, -1e9, -50, -1, 0, 1, 5, 5.1, 50, 1e9, np.inf], np.float32)
    found = space.share_below(rising).astype(np.float32)
    assert (np.diff(found) > 0).all()
    assert (found[0], found[-1]) == (-1, 0)


def test_a_single_member_has_the_ap_of_its_scores_in_every_space() -> None:
    truth = anomalies(1)[0]
    scores = noise(1)[0] + 3 * truth  # many of them beyond the normal scores of validation
    for space in (raw, ranks, normal_scores(noise()).share_below):
        ensemble = EnsembleDetector([Recorded([scores])], [space])
        assert ap(ensemble(scores), truth) == pytest.approx(ap(scores, truth), abs=1e-6)


def two_views(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two members that see all anomalies, each through its own noise, and the truth."""
    truth = anomalies()
    return noise() + 2 * truth, (noise() + 2 * truth) * np.float32(scale), truth


def two_halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two members of which each sees the anomalies of one side, and the truth."""
    truth = anomalies()
    left, right = truth.copy(), truth.copy()
    left[..., 30:], right[..., :30] = 0, 0
    return noise() + 4 * left, noise() + 4 * right, truth


def fused(a: np.ndarray, b: np.ndarray, spaces: list, weights=None) -> np.ndarray:
    ensemble = EnsembleDetector([Recorded([*a]), Recorded([*b])], spaces, weights, "both")
    images = iter([np.zeros((*SHAPE, 3), np.uint8)] * len(a))
    return np.stack([found.scores["both"] for found in ensemble.stream(images)])


def better_than_each(a: np.ndarray, b: np.ndarray, truth: np.ndarray, spaces: list) -> float:
    return ap(fused(a, b, spaces), truth) - max(ap(a, truth), ap(b, truth))


@pytest.mark.parametrize("space", ["raw", "rank", "cdf"])
def test_two_views_are_better_together(space: str) -> None:
    a, b, truth = two_views()
    kinds = {"raw": [raw, raw], "rank": [ranks, ranks]}
    spaces = kinds.get(space) or [normal_scores(noise()).share_below] * 2
    assert better_than_each(a, b, truth, spaces) > 0.05
    # The wrong way round, one takes from the other what it has.
    assert ap(fused(a, -b, spaces), truth) < ap(a, truth) - 0.2


def test_members_that_see_other_anomalies_complete_each_other() -> None:
    assert better_than_each(*two_halves(), [raw, raw]) > 0.1


def test_fitted_spaces_need_no_common_scale() -> None:
    a, b, truth = two_views(scale=1e-3)
    spaces = [normal_scores(noise() * np.float32(s)).share_below for s in (1, 1e-3)]
    assert better_than_each(a, b, truth, spaces) > 0.05
    assert ap(fused(a, b, [raw, raw]), truth) == pytest.approx(ap(a, truth), abs=0.01)


def test_weights_are_fitted_to_the_member_that_knows() -> None:
    a, b, truth = two_halves()
    maps = np.stack([one.ravel() for one in (noise(), a + b, noise())])
    weights, reached = fitted_weights(maps, truth.ravel(), bits=20)
    assert np.argmax(weights) == 1
    assert weights[1] >= 0.9
    assert reached >= ap(a + b, truth) - 1e-3
    pair, best = fitted_weights(np.stack([a.ravel(), b.ravel()]), truth.ravel(), bits=20)
    grid = [ap(w * a + (1 - w) * b, truth) for w in np.linspace(0, 1, 21)]
    assert best == pytest.approx(max(grid), abs=1e-4)  # the whole grid was looked at
    assert pair[0] == pytest.approx(np.linspace(0, 1, 21)[np.argmax(grid)])
    with pytest.raises(UserError, match="pasted_validation has both"):
        fitted_weights(maps, np.zeros(maps.shape[1], np.uint8))


def test_sampled_pixels_are_labelled_and_void_is_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eomt_exp.engine.ensemble.PIXELS", 100)
    images = BrightAnomalies()
    members = [detector(batch_size=3), detector(BrightnessNet(True), score="q")]
    items = map(images.__getitem__, range(8))
    of_images = zip(*EnsembleDetector(members, [raw, raw]).sampled(items), strict=True)
    maps, anomaly = (np.concatenate(parts, axis=-1) for parts in of_images)
    assert maps.shape == (2, len(anomaly))
    assert len(anomaly) == 8 * 90  # every fifth of 16 x 28
    assert set(anomaly) == {0, 1}
    assert ap(maps[0], anomaly) > 0.4 > 3 * anomaly.mean()  # pixels and labels belong together


def test_members_of_other_sizes_and_batches_meet_at_the_image_which_is_read_once() -> None:
    members = [
        detector(batch_size=5),
        detector(BrightnessNet(True), score="q", image_size=(24, 24), batch_size=1, windows=False),
    ]
    images = [RNG.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(16, 90), (40, 33), (16, 32)]]
    read = []

    def once() -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            read.append(number)
            yield image

    found = list(EnsembleDetector(members, [raw, raw], [3, 1]).stream(once()))
    assert read == [0, 1, 2]
    for image, one in zip(images, found, strict=True):
        wanted = 0.75 * members[0](image) + 0.25 * members[1](image)
        np.testing.assert_allclose(one.scores["ensemble"], wanted, atol=1e-6)


def test_a_member_without_weight_is_not_asked() -> None:
    a, b = noise(), np.full((3, *SHAPE), np.inf, np.float32)
    members = [Recorded([*a]), Recorded([*b])]
    found = EnsembleDetector(members, [raw, raw], [1, 0]).stream(iter(a))
    np.testing.assert_array_equal([one.scores["ensemble"] for one in found], a)
    assert [member.asked for member in members] == [3, 0]


def test_an_ensemble_is_measured_as_a_model_is_but_for_known_classes(tmp_path: Path) -> None:
    images = BrightAnomalies()
    one = detector()
    ensemble = EnsembleDetector([one, one], [raw, raw], score="s")

    def read(order) -> Iterator[LabelledImage]:
        return map(images.__getitem__, order)

    settings = Settings(scratch=tmp_path, bits=20, components=(4, 2), num_examples=1)
    alone, both = (measure_benchmark(d, read, 8, settings) for d in (one, ensemble))
    assert both.counts["s"].results() == alone.counts["s"].results()
    assert both.components["s"].results() == alone.components["s"].results()
    assert [e.name for e in both.examples] == [e.name for e in alone.examples]
    metrics, counts = measure_known_classes(ensemble, read(range(8)), 2, bits=20)
    assert metrics == {}
    assert counts["s"].results()["negatives"] > 0


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [1], [1, 1, 1]])
def test_what_cannot_be_weights_is_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="must be 2 numbers of at least 0"):
        normalised(weights, 2)


def test_weights_are_shares() -> None:
    assert normalised([3, 1], 2) == [0.75, 0.25]
    assert normalised(None, 4) == [0.25] * 4


def member(data: str = "synthetic_roads", **changes: Any) -> DictConfig:
    """What fusing asks of a configuration."""
    return OmegaConf.create({
        "checkpoint": "a_run", "score": "msp", "scorer": {"msp": {}, "rba": {}},
        "data": OmegaConf.load(asset_dir("conf") / "data" / f"{data}.yaml"),
        "evaluator": {"known_classes": True},
        "protocol": {"name": "polito_legacy", "resize": True, "image_size": None}, **changes,
    })  # fmt: skip


def test_each_member_keeps_the_score_that_is_fused() -> None:
    members = [member(), member(score="rba")]
    keep_fused_scores(FusionConfig(ScoreSpace.raw), members)
    assert [list(one.scorer) for one in members] == [["msp"], ["rba"]]
    for scores, kept in (("rba", ["rba", "rba"]), (["rba", "msp"], ["rba", "msp"])):
        members = [member(), member()]
        keep_fused_scores(FusionConfig(ScoreSpace.raw, scores=scores), members)
        assert [(one.score, *one.scorer) for one in members] == [(one, one) for one in kept]


@pytest.mark.parametrize(
    ("members", "fusion", "needle"),
    [
        ([{}], {}, "names one model"),
        ([{}, {"scorer": {"rba": {}}}], {}, "has no score msp; it has rba"),
        ([{}, {}], {"scores": "uno"}, "has no score uno; it has msp, rba"),
        ([{}, {}], {"scores": ["msp"]}, "one a member"),
        ([{}, {}], {"weights": [1, -1]}, "at least 0"),
        ([{}, {"data": "camvid"}], {}, "type protocol=default"),
    ],
)
def test_members_that_do_not_fit_are_refused(
    members: list[dict], fusion: dict, needle: str
) -> None:
    with pytest.raises(UserError, match=needle):
        keep_fused_scores(
            FusionConfig(ScoreSpace.raw, **fusion), [member(**one) for one in members]
        )


def test_normal_pixels_want_one_kind_of_known_classes() -> None:
    first, same, other = (member(data) for data in ("cityscapes", "bdd100k", "camvid"))
    check_known_classes(FusionConfig(ScoreSpace.cdf), [first, same])
    with pytest.raises(UserError, match="knows other classes"):
        check_known_classes(FusionConfig(ScoreSpace.rank), [first, other])
    first.evaluator.known_classes = False
    check_known_classes(FusionConfig(ScoreSpace.rank), [first, other])
    with pytest.raises(UserError, match=r"fusion\.space=rank"):
        check_known_classes(FusionConfig(ScoreSpace.cdf), [first, other])


@pytest.mark.parametrize(
    ("override", "needle"),
    [("fusion.weights=fit", "benchmark@tuning=pasted_validation"), ("data.val=null", "space=rank")],
)
def test_what_there_is_nothing_to_fit_on_is_said(
    override: str, needle: str, hydra_at_conf: None
) -> None:
    with pytest.raises(UserError, match=needle):
        build_image_sets(compose("config", ["hydra.run.dir=unused", "ensemble=[a,b]", override]))


# As it is typed.

QUICK = ("trainer.num_workers=0", "data.val.length=4", "evaluator.bits=17", "tracking=none",
         "evaluator.resamples=20", "evaluator.figures=1", "benchmark=[synth_anomaly]",
         "benchmark.synth_anomaly.length=6")  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two semantic EoMTs of different sizes and scores."""
    folder = tmp_path_factory.mktemp("trained")
    found = []
    for name, typed in {"a": ("score=max_logit",), "b": ("score=rba", "seed=1")}.items():
        found.append(folder / name)
        outcome = run_aside("+experiment=semantic", *SMALL, *typed, "tracking=none",
                            f"paths.outputs={folder}", f"hydra.run.dir={found[-1]}")  # fmt: skip
        assert outcome.code == 0, outcome.err
    return found


def evaluate(capfd, *typed: str):
    return run(capfd, "task=evaluate", *QUICK, *typed)


@pytest.mark.slow
def test_all_weight_on_one_member_gives_the_numbers_of_that_member(
    two: list[Path], outputs: Path, capfd
) -> None:
    a, b = two
    typed = (f"checkpoint=[{a},{b}]", f"ensemble=[{a},{b}]", "fusion.space=raw")
    outcome = evaluate(capfd, *typed, "fusion.weights=[1,0]", f"hydra.run.dir={outputs / 'x'}")
    assert outcome.code == 0, outcome.err
    saved = metrics_of(outputs / "x")
    start = "synth_anomaly/semantic-0.max_logit/"
    alone = {k.removeprefix(start): v for k, v in saved["metrics"].items() if k.startswith(start)}
    start = "synth_anomaly/semantic-0+semantic-1.ensemble_raw/"
    both = {k.removeprefix(start): v for k, v in saved["metrics"].items() if k.startswith(start)}
    assert both == alone
    assert "f1_star" in both
    assert "id_tpr" in both
    assert "semantic-0+semantic-1/val/miou" not in saved["metrics"]
    assert "1 x semantic-0 max_logit + 0 x semantic-1 rba" in outcome.out
    # Another weight is another cell, though the folder has one of that name.
    other = evaluate(capfd, *typed, "fusion.weights=[1,3]", f"hydra.run.dir={outputs / 'x'}")
    assert other.code == 0, other.err
    assert "semantic-0+semantic-1 on synth_anomaly" in other.out + other.err
    now = metrics_of(outputs / "x")["metrics"]
    assert now[f"{start}ap"] != saved["metrics"][f"{start}ap"]


@pytest.mark.slow
def test_fitted_weights_are_kept_and_said_and_what_they_saw_is_no_benchmark(
    two: list[Path], outputs: Path, capfd
) -> None:
    typed = (f"ensemble=[{two[0]},{two[1]}]", "fusion.weights=fit",
             "benchmark@tuning=pasted_validation", f"hydra.run.dir={outputs / 'x'}")  # fmt: skip
    outcome = evaluate(capfd, *typed)
    assert outcome.code == 0, outcome.err
    saved = metrics_of(outputs / "x")
    weights = saved["manifest"]["models"]["semantic-0+semantic-1"]["fused_with"]
    assert sum(weights) == pytest.approx(1)
    said = f"{weights[0]:.4g} x semantic-0 max_logit + {weights[1]:.4g} x semantic-1 rba; weights"
    assert said in outcome.out
    assert said in (outputs / "x" / "report.html").read_text()
    assert any(said in note for note in saved["manifest"]["notes"])

    (outputs / "x" / "metrics.json").unlink()
    again = evaluate(capfd, *typed)
    assert again.code == 0, again.err
    assert said in again.out
    assert "weights of the ensemble" in outcome.out + outcome.err
    assert "weights of the ensemble" not in again.out + again.err
    assert metrics_of(outputs / "x")["metrics"] == saved["metrics"]

    tested = ["benchmark=[pasted_validation]" if "benchmark=" in q else q for q in QUICK[:-1]]
    refused = run(capfd, "task=evaluate", *tested, *typed[:3])
    assert refused.code == 2
    assert "(tuning, as pasted/" in refused.err


@pytest.mark.slow
def test_the_mission_s_ensemble_runs_with_stand_ins(two: list[Path], outputs: Path, capfd) -> None:
    """Members are evaluations, one of a run and one of a file of weights, whose model was typed."""
    pytest.importorskip("transformers")
    swin = outputs / "swin"
    trained = run(capfd, "+experiment=semantic", *TINY, *FAST, "seed=1", f"hydra.run.dir={swin}")
    assert trained.code == 0, trained.err
    weights = swin / "model.safetensors"
    mined = ("scorer=[maskomaly]", "score=maskomaly", "scorer.maskomaly.mined=auto")
    for name, typed in {
        "s": (f"checkpoint={two[0]}", *mined),
        "l": (f"checkpoint={weights}", *TINY, "data.image_size=[64,96]", *mined),
    }.items():
        outcome = evaluate(capfd, *typed, f"hydra.run.dir={outputs / name}")
        assert outcome.code == 0, outcome.err
    members = f"ensemble=[{outputs / 's'},{outputs / 'l'}]"
    outcome = run(capfd, "+experiment=maskomaly_ensemble", members, *QUICK,
                  f"hydra.run.dir={outputs / 'both'}")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "ensemble_raw = 0.5 x semantic-0 maskomaly + 0.5 x model maskomaly." in outcome.out
    saved = metrics_of(outputs / "both")
    assert 0 < saved["metrics"]["synth_anomaly/ensemble_raw/ap"] < 1
    facts = saved["manifest"]["models"]["semantic-0+model"]["members"]
    assert [one["image_size"] for one in facts] == [[32, 64], [64, 96]]
    assert [one["fitted"]["maskomaly"]["num_queries"] for one in facts] == [6, 7]

    refused = evaluate(capfd, f"checkpoint={outputs / 'both'}")
    assert refused.code == 2
    assert "more than one model" in refused.err
    refused = run(capfd, "+experiment=semantic", members, *SMALL)
    assert refused.code == 2
    assert "add task=evaluate" in refused.err
