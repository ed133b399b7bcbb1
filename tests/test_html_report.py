"""The report is one file that loads nothing, says everything, and survives odd leaderboards."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from leaderboard_example import BENCHMARKS, MODELS, SCORERS, WARNING, leaderboard

from eomt_exp.contracts import VOID
from eomt_exp.evaluator.ranking import PixelCurves
from eomt_exp.report.figures import histogram_chart
from eomt_exp.report.html_report import write_report
from eomt_exp.report.leaderboard import Histogram, ImageRow, Leaderboard

VOID_TAGS = {"img", "meta"}
INJECTED = '<script>alert("x")</script>'


class Reader(HTMLParser):
    """Text, tags and what the page would load; raises where tags do not close."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += f"{data} "

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def board() -> Leaderboard:
    return leaderboard()


def written(board: Leaderboard, folder: Path) -> str:
    return write_report(board, folder / "new" / "report.html").read_text(encoding="utf-8")


def test_everything_of_a_leaderboard_is_there(board, tmp_path):
    page = Reader(written(board, tmp_path))
    assert page.text.count("undefined") > 1  # the metric, and what the word means
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    names = [f"{model} {scorer}" for model in MODELS for scorer in SCORERS]
    known = board.known_classes.values()
    for expected in (
        *(*names, *BENCHMARKS, board.title, "README of RbA", "sha256", "0f0f", "mIoU"),
        *("Over seeds", "Comparisons", "Size of the anomaly", "Published numbers"),
        *("+0.113", "< 0.001", "Protocol: default.", "IoU of each category", "vehicle"),
        *(f"{result.metrics['ap']:.3f}" for result in board.results),
        *("[{:.3f}, {:.3f}]".format(*result.intervals["ap"]) for result in board.results),
        *(row.name for row in board.results[0].images),
        *(f"{row.threshold:.4g}" for row in board.results[0].tnr),
        *(f"{ious[key]:.3f}" for ious in known for key in ("category_miou", "category_iou_flat")),
    ):
        assert expected in page.text


def test_warnings_and_notes_come_before_the_first_table(board, tmp_path):
    board.notes = ["one & all", "two"]
    page = written(board, tmp_path)
    body = page[page.index("<body>") :]
    order = ("default.</p>", "one &amp; all</p>", "two</p>", WARNING, "<table")
    places = [body.index(text) for text in order]
    assert places == sorted(places)


def test_single_images_say_so_when_their_fpr95_is_another_one(board, tmp_path):
    for chosen, name in (("first", "FPR95 ↓"), ("interpolated", "FPR95 first ↓")):
        board.manifest["protocol"]["fpr95"] = chosen
        tables = re.search("Image by image(.*?)<h3>", written(board, tmp_path), re.DOTALL)[1]
        assert set(re.findall(r">(FPR95[^<]*)<", tables)) == {name}


def test_the_page_loads_nothing_and_its_links_lead_somewhere(board, tmp_path):
    page = Reader(written(board, tmp_path))
    sources = [a["src"][:23] for _, a in page.tags if a.get("src")]
    count = 3 * sum(len(found) for found in board.examples.values())
    assert sources == ["data:image/jpeg;base64,"] * count
    assert not {name for name, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}
    links = {a["href"] for _, a in page.tags if "href" in a}
    assert len(links) > 4
    assert links <= {f"#{a['id']}" for _, a in page.tags if "id" in a}
    policy = [a for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy[0]["content"]
    assert not re.search(r"@import|url\((?!#)|eval\(|=.http", page.source)


def test_names_are_text_wherever_they_stand(board, tmp_path):
    for result in board.results:
        result.scorer = INJECTED
        result.benchmark = f"b{INJECTED}" if result.benchmark == BENCHMARKS[0] else "other"
        result.images = [row._replace(name=f'"><img src=x>{INJECTED}') for row in result.images]
    board.title, board.warnings = f"</title>{INJECTED}", [INJECTED]
    board.manifest = {INJECTED: {"k": [INJECTED]}}
    board.examples = {
        (model, f"b{INJECTED}"): [e._replace(name=f'" onload="x{INJECTED}') for e in found]
        for (model, name), found in board.examples.items()
    }
    page = Reader(written(board, tmp_path))
    assert len(page.named("script")) == 1
    assert all(image["src"].startswith("data:") for image in page.named("img"))
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert INJECTED in page.text


def test_the_best_is_bold_and_a_lower_false_positive_rate_is_better(board, tmp_path):
    page = written(board, tmp_path)
    table = page[page.index("<table") : page.index("</table>")]
    here = [r for r in board.results if r.benchmark == BENCHMARKS[0]]
    for key, choose in (("ap", max), ("fpr95", min)):
        values = [result.metrics[key] for result in here]
        shown = {f"{value:.3f}" for value in values}
        assert len(shown) > 1
        bold = {value for value in shown if f"<strong>{value}</strong>" in table}
        assert bold == {f"{choose(values):.3f}"}


def without_anomalies(board: Leaderboard) -> None:
    empty = PixelCurves(*(np.empty(0) for _ in PixelCurves._fields))
    for result in board.results:
        result.curves = empty
        result.metrics = dict.fromkeys(result.metrics, math.nan)
        result.intervals = {"ap": (math.nan, math.nan)}
        result.histogram = result.histogram._replace(anomaly=np.zeros(60))
        undefined = dict.fromkeys(result.images[0].metrics, math.nan)
        result.images = [row._replace(metrics=undefined) for row in result.images]
        result.sizes = [row._replace(components=0, found=math.nan) for row in result.sizes]
    board.examples = {}


def with_infinities(board: Leaderboard) -> None:
    for result in board.results:
        result.metrics["f1_threshold"] = -math.inf
    for key, found in board.examples.items():
        odd = found[0].score.copy()
        odd[0, :3] = (np.inf, -np.inf, np.nan)
        board.examples[key] = [found[0]._replace(score=odd)]
    board.manifest["threshold"] = math.inf


def bare(board: Leaderboard) -> None:
    result = board.results[0]
    result.sizes, result.images, result.intervals = [], [ImageRow("only", 0.2, {"ap": 0.5})], {}
    vars(board).update(vars(Leaderboard(board.title, [result], {}, {})))


def of_nothing(board: Leaderboard) -> None:
    vars(board).update(vars(Leaderboard(board.title, [], {}, {})))


def under_constant_scores(board: Leaderboard) -> None:
    for key, found in board.examples.items():
        flat = np.full_like(found[0].score, np.nan)
        void = np.full_like(found[0].anomaly, VOID)
        board.examples[key] = [found[0]._replace(score=flat, anomaly=void, ap=math.nan)]


@pytest.mark.parametrize(
    "spoil", [without_anomalies, with_infinities, bare, of_nothing, under_constant_scores]
)
def test_odd_leaderboards_are_reported_all_the_same(board, tmp_path, spoil):
    spoil(board)
    page = Reader(written(board, tmp_path))
    visible = re.sub('base64,[^"]*', "", page.source)
    assert not re.search(r"\bnan\b", visible, re.IGNORECASE)
    assert board.title in page.text
    assert "undefined" in page.text


def test_a_histogram_stands_where_its_pixels_are():
    histogram = Histogram(np.linspace(0, 1, 5), np.array([1, 0, 0, 0]), np.array([0, 0, 0, 1]))
    svg = histogram_chart(histogram, "t")
    middles = []
    for colour in ("s0", "s1"):
        area = re.search(rf'd="([^"]*)"[^>]*fill: var\(--{colour}\)', svg)[1]
        points = np.array(re.findall(r"([\d.]+) ([\d.]+)", area), dtype=float)
        high = points[points[:, 1] < points[:, 1].max() - 1]
        middles.append(high[:, 0].mean())
    assert middles[0] < 70 < 120 < middles[1]


def test_pictures_have_the_colours_of_the_page_and_of_no_other(board, tmp_path):
    page = written(board, tmp_path)
    charts = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == len(BENCHMARKS) * (2 + 1 + len(MODELS) * len(SCORERS))
    assert not re.search("#[0-9a-f]{6}", "".join(charts), re.IGNORECASE)
    assert {"0", "1", "2", "3"} <= set(re.findall('data-s="(\\d+)"', charts[0]))
