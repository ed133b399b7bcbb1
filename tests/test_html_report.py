"""The report is one file that loads nothing, says everything, and survives odd leaderboards."""

from __future__ import annotations

import copy
import math
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from leaderboard_example import BENCHMARKS, MODELS, SCORERS, STAMP, leaderboard

from eomt_exp.contracts import VOID
from eomt_exp.evaluator.ranking import PixelCurves
from eomt_exp.report.html.charts import MAX_POINTS, Line, histogram_chart, unit_chart
from eomt_exp.report.html.document import write_report
from eomt_exp.report.html.images import example_figures
from eomt_exp.report.html.tags import Html, tag
from eomt_exp.report.leaderboard import Histogram, ImageRow, Leaderboard

VOID_TAGS = {"img", "meta"}
INJECTED = '<script>alert("x")</script>'


class Reader(HTMLParser):
    """Text, tags and what the page would load; raises where tags do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def measured() -> Leaderboard:
    return leaderboard(num_images=4, height=64)


@pytest.fixture
def board(measured: Leaderboard) -> Leaderboard:
    """A copy that a test may change."""
    return copy.deepcopy(measured)


def test_everything_of_a_leaderboard_is_there(board, tmp_path):
    path = write_report(board, tmp_path / "new" / "report.html")
    page = read(path)
    assert page.text.count("undefined") > 1  # the metric, and what the word means
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    names = [f"{model} {scorer}" for model in MODELS for scorer in SCORERS]
    for expected in (*names, *BENCHMARKS, board.title, "README of RbA", "sha256", "0f0f", "mIoU"):
        assert expected in page.text
    for heading in ("Over seeds", "Comparisons", "Size of the anomaly", "Published numbers"):
        assert heading in page.text
    for result in board.results:
        assert f"{result.metrics['ap']:.3f}" in page.text
        low, high = result.intervals["ap"]
        assert f"[{low:.3f}, {high:.3f}]" in page.text
    for row in board.results[0].images:
        assert row.name in page.text
    for row in board.results[0].tnr:
        assert f"{row.threshold:.4g}" in page.text
    assert "+0.113" in page.text
    assert "< 0.001" in page.text
    for expected in ("Protocol: default.", "category mIoU", "IoU of each category", "vehicle"):
        assert expected in page.text
    for known in board.known_classes.values():
        assert f"{known['category_miou']:.3f}" in page.text
        assert f"{known['category_iou_flat']:.3f}" in page.text


def test_notes_are_quiet_lines_of_their_own(board, tmp_path):
    board.notes = ["one & all", "two"]
    page = write_report(board, tmp_path / "report.html").read_text(encoding="utf-8")
    texts = ("default.", "one &amp; all", "two")
    lead, first, second = (page.index(f"{text}</p>") for text in texts)
    assert lead < first < second < page.index(STAMP)
    assert page.count('<p class="note">two</p>') == 1


def test_single_images_say_so_when_their_fpr95_is_another_one(board, tmp_path):
    of_images = "Image by image(.*?)<h3>"
    for chosen, name in (("first", "FPR95 ↓"), ("interpolated", "FPR95 first ↓")):
        board.manifest["protocol"]["fpr95"] = chosen
        page = write_report(board, tmp_path / "report.html").read_text(encoding="utf-8")
        tables = re.search(of_images, page, re.DOTALL)[1]
        assert set(re.findall(r">(FPR95[^<]*)<", tables)) == {name}


def test_pointing_at_a_method_finds_its_bars_as_well_as_its_lines(board, tmp_path):
    page = read(write_report(board, tmp_path / "report.html"))
    bars = [bar["data-s"] for bar in page.named("rect") if "bar" in bar["class"]]
    assert bars
    styles = {item["data-s"] for item in page.named("li") if "data-s" in item}
    lines = {line["data-s"] for line in page.named("polyline") if "data-s" in line}
    assert set(bars) == lines == styles


def test_stamps_come_before_the_first_table(board, tmp_path):
    page = write_report(board, tmp_path / "report.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    assert 0 < body.index(STAMP) < body.index("<table")


def test_the_page_loads_nothing_and_its_links_lead_somewhere(board, tmp_path):
    page = read(write_report(board, tmp_path / "report.html"))
    sources = [a["src"] for _, a in page.tags if a.get("src")]
    assert len(sources) == 3 * sum(len(found) for found in board.examples.values())
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not {name for name, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}
    links = [a["href"] for _, a in page.tags if "href" in a]
    anchors = {f"#{a['id']}" for _, a in page.tags if "id" in a}
    assert len(links) > 4
    assert set(links) <= anchors
    policy = [a for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy[0]["content"]
    style = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@import" not in style
    assert "url(" not in style
    assert "eval(" not in style


def test_names_are_text_wherever_they_stand(board, tmp_path):
    for result in board.results:
        result.scorer = INJECTED
        result.benchmark = f"b{INJECTED}" if result.benchmark == BENCHMARKS[0] else "other"
        result.images = [row._replace(name=f'"><img src=x>{INJECTED}') for row in result.images]
    board.title, board.stamps = f"</title>{INJECTED}", [INJECTED]
    board.manifest = {INJECTED: {"k": [INJECTED]}}
    board.examples = {
        (model, f"b{INJECTED}"): [e._replace(name=f'" onload="x{INJECTED}') for e in found]
        for (model, name), found in board.examples.items()
    }
    page = read(write_report(board, tmp_path / "report.html"))
    assert len(page.named("script")) == 1
    assert all(image["src"].startswith("data:") for image in page.named("img"))
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert INJECTED in page.text


def test_only_markup_of_ours_is_not_escaped():
    assert tag("p", "<b>", Html("<i></i>")) == "<p>&lt;b&gt;<i></i></p>"
    assert (
        tag("a", None, href='"&', title=None, class_="c") == '<a href="&quot;&amp;" class="c"></a>'
    )


def test_the_best_is_bold_and_a_lower_false_positive_rate_is_better(board, tmp_path):
    page = write_report(board, tmp_path / "report.html").read_text(encoding="utf-8")
    table = page[page.index("<table") : page.index("</table>")]
    here = [r for r in board.results if r.benchmark == BENCHMARKS[0]]
    for key, choose in (("ap", max), ("fpr95", min)):
        values = [result.metrics[key] for result in here]
        assert f"<strong>{choose(values):.3f}</strong>" in table
        others = {f"{v:.3f}" for v in values} - {f"{choose(values):.3f}"}
        assert others
        assert not any(f"<strong>{other}</strong>" in table for other in others)


def without_anomalies(board: Leaderboard) -> None:
    empty = PixelCurves(*(np.empty(0) for _ in PixelCurves._fields))
    for result in board.results:
        result.curves = empty
        result.metrics = dict.fromkeys(result.metrics, math.nan)
        result.intervals = {"ap": (math.nan, math.nan)}
        result.histogram = result.histogram._replace(anomaly=np.zeros(100))
        result.images = [row._replace(ap=math.nan, fpr95=math.nan) for row in result.images]
        result.sizes = [row._replace(components=0, found=math.nan) for row in result.sizes]
    board.examples = {}


def with_infinities(board: Leaderboard) -> None:
    edges = np.concatenate(([-np.inf], np.linspace(0, 1, 4), [np.inf]))
    for result in board.results:
        result.histogram = Histogram(edges, np.full(5, 0.2), np.full(5, 0.2))
        result.metrics["f1_threshold"] = -math.inf
    for key, found in board.examples.items():
        odd = found[0].score.copy()
        odd[0, :3] = (np.inf, -np.inf, np.nan)
        board.examples[key] = [found[0]._replace(score=odd)]
    board.manifest["threshold"] = math.inf


def bare(board: Leaderboard) -> None:
    result = board.results[0]
    result.sizes, result.images, result.intervals = [], [ImageRow("only", 0.5, 0.1, 0.9, 0.2)], {}
    result.histogram = Histogram(np.zeros(3), np.zeros(2), np.zeros(2))
    board.results, board.examples, board.known_classes = [result], {}, {}
    board.comparisons, board.over_seeds, board.anchors = [], [], []
    board.manifest, board.stamps = {}, []


def of_nothing(board: Leaderboard) -> None:
    bare(board)
    board.results = []


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
    path = write_report(board, tmp_path / "report.html")
    assert not re.search(r"\bnan\b", re.sub('base64,[^"]*', "", path.read_text()), re.IGNORECASE)
    page = read(path)
    assert board.title in page.text
    assert ("undefined" in page.text) or spoil is of_nothing


def test_curves_are_thinned_to_both_ends():
    x = np.linspace(0, 1, 5000)
    chart = unit_chart([Line("rba", x, x**2, 0)], "t", ("x", "y"))
    points = re.search(r'<polyline points="([^"]*)"', chart)[1].split()
    assert len(points) == MAX_POINTS
    wide = unit_chart([Line("rba", x[[0, -1]], x[[0, -1]], 0)], "t", ("x", "y"))
    ends = re.search(r'<polyline points="([^"]*)"', wide)[1].split()
    assert [points[0], points[-1]] == ends


def test_neighbouring_lines_differ_in_dash_and_none_is_drawn_twice():
    x = np.array([0.0, 1.0])
    chart = unit_chart([Line(str(i), x, x, i) for i in range(14)], "t", ("x", "y"))
    drawn = re.findall(r"<polyline ([^>]*)>", chart)
    looks = [
        (*re.findall(r" c\d", line), *re.findall(r'dasharray="[^"]*"', line)) for line in drawn
    ]
    assert len(set(looks)) == 14
    assert all(a[1:] != b[1:] for a, b in pairwise(looks))


def test_a_histogram_stands_where_its_pixels_are():
    histogram = Histogram(np.linspace(0, 1, 5), np.array([1, 0, 0, 0]), np.array([0, 0, 0, 1]))
    areas = re.findall(r'<polygon points="([^"]*)"', histogram_chart(histogram, "t"))
    middles = []
    for area in areas:
        points = np.array([[float(n) for n in pair.split(",")] for pair in area.split()])
        high = points[points[:, 1] < points[:, 1].max() - 1]
        middles.append(high[:, 0].mean())
    assert middles[0] < 100 < 200 < middles[1]


def test_the_truth_is_outlined_where_it_is(board):
    import base64
    import io

    from PIL import Image

    grey, truth = np.full((60, 120, 3), 90, np.uint8), np.zeros((60, 120), np.uint8)
    truth[20:40, 10:50] = 1
    example = next(iter(board.examples.values()))[0]
    example = example._replace(image=grey, anomaly=truth, score=(truth == 1).astype(np.float32))
    data = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', example_figures([example]))
    photo, outlined, heat = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(part))), dtype=float) for part in data
    )
    assert np.abs(photo - 90).max() < 8
    red = outlined[..., 0] - outlined[..., 1]
    assert red[16:44, 6:54].max() > 80
    assert np.abs(red[:10]).max() < 30
    assert np.abs(red[:, 70:]).max() < 30
    assert heat[25:35, 15:45].mean() > heat[:, 70:].mean() + 80


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_sorts_it_and_scrolls_nothing_sideways(board, tmp_path, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser_path = next(filter(None, map(shutil.which, names)), None)
    if browser_path is None:
        pytest.skip(f"needs one of {', '.join(names)}: apt-get install chromium")
    path = write_report(board, tmp_path / "report.html")
    complaints: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1360, "height": 900})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: complaints.append(request.url) if request.url[:4] == "http" else None,
        )
        page.goto(path.as_uri())
        names = "#results tbody th"
        before = page.locator(names).all_inner_texts()
        page.locator("#results thead th", has_text="FPR95").first.click()
        page.locator("#results thead th", has_text="FPR95").first.click()
        first = [r for r in board.results if r.benchmark == BENCHMARKS[0]]
        worst_first = [r.method for r in sorted(first, key=lambda r: -r.metrics["fpr95"])]
        assert page.locator(names).all_inner_texts() == worst_first != before
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(n) for n in re.findall(r"\d+", paper)[:3]) > 380) == (scheme == "light")
        for width in (1360, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            picture = tmp_path / f"{scheme}_{width}.png"
            page.screenshot(path=picture, full_page=True)
            assert picture.stat().st_size > 50_000
        browser.close()
    assert complaints == []
