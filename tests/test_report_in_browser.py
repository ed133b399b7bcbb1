"""What a report shows in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from leaderboard_example import BENCHMARKS, leaderboard

from eomt_exp.report.html_report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file as a page, which must log nothing, not fail, and ask nothing of a network."""
    complaints: list[str] = []

    def opened(file: Path, height: int, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": 1360, "height": height}, **options)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url)
                if request.url[:4] == "http" else None)  # fmt: skip
        page.goto(file.as_uri())
        return page

    yield opened
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_sorted_by_a_click_and_scrolls_nothing_sideways(tmp_path, opened, scheme):
    board = leaderboard()
    page = opened(write_report(board, tmp_path / "report.html"), 900, color_scheme=scheme)
    names = page.locator("#results tbody th")
    before = names.all_inner_texts()
    for _ in range(2):
        page.locator("#results thead th", has_text="FPR95").first.click()
    first = [r for r in board.results if r.benchmark == BENCHMARKS[0]]
    worst_first = [r.method for r in sorted(first, key=lambda r: -r.metrics["fpr95"])]
    assert names.all_inner_texts() == worst_first != before
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(n) for n in re.findall(r"\d+", paper)[:3]) > 380) == (scheme == "light")
    for width in (1360, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert len(page.screenshot(full_page=True)) > 50_000
