"""task=demo in Chromium: a picture dropped, a threshold moved, and who is not answered."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eomt_exp.contracts import UserError
from eomt_exp.engine.detector import AnyDetector, Detection
from eomt_exp.schema import DemoConfig
from eomt_exp.tasks.demo import HOST, Demo, server_of
from eomt_exp.trained_detector import TrainedDetector
from tests.data_files import save


class RedDetector(AnyDetector):
    """Scores a pixel by its red channel; its class is 1 where it is green."""

    scorers, score, image_size, batch_size = {"red": None}, "red", (8, 8), 2

    def scores(self, image, only=None):
        return {"red": image[..., 0].astype(np.float32)}, (image[..., 1] > 100).astype(np.int64)

    def stream(self, images, only=None, known=True) -> Iterator[Detection]:
        for image in images:
            yield Detection(*self.scores(image))


@pytest.fixture
def port() -> Iterator[int]:
    options = DemoConfig(port=0, max_mb=0.1, max_side=120)
    demo = Demo(TrainedDetector(RedDetector(), 100.0, ["road", "tree"]), "a <run>", options)
    with server_of(demo, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def street(tmp_path: Path) -> Path:
    image = np.full((80, 240, 3), 20, np.uint8)
    image[20:40, 100:140, 0] = 220
    image[:, 200:, 1] = 200
    return save(tmp_path / "street.png", image) or tmp_path / "street.png"


def asked(port: int, method: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    connection.request(method, "/", body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_only_pages_of_this_machine_are_answered(port: int, street: Path) -> None:
    assert asked(port, "GET")[0] == 200
    own = f"{HOST}:{port}"
    assert asked(port, "GET", Host="evil.example:80")[0] == 403
    for method, code in (("http://evil.example", 403), (f"http://{own}", 200)):
        assert asked(port, "POST", street.read_bytes(), Origin=method)[0] == code
    status, body = asked(port, "POST", b"no picture", Host=own)
    assert status == 400
    assert "cannot be read" in json.loads(body)["error"]
    assert asked(port, "POST", b"x" * 200_000)[0] == 413
    options = DemoConfig(port=port, max_mb=1.0, max_side=9)
    with pytest.raises(UserError, match=rf"task\.port={port} cannot be used"):
        server_of(Demo(TrainedDetector(RedDetector(), None), "", options), port)


def test_a_dropped_picture_shows_its_regions_and_the_threshold_moves(
    port: int, street: Path, browser
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(f"http://{HOST}:{port}/")
    page.set_input_files("#file", street)
    page.wait_for_selector("#found:not([hidden])")
    cells = "[...document.querySelectorAll('#regions tr')].map(r => [...r.children].map(c => +c.textContent))"  # noqa: E501
    ((left, top, width, height, area, mean),) = page.evaluate(cells)
    assert (left, top, width, height) == pytest.approx((50, 10, 20, 10), abs=1)  # half as large
    assert area == pytest.approx(200, abs=25)
    assert mean == pytest.approx(220, abs=15)
    assert float(page.inner_text("#value")) == pytest.approx(100, abs=0.5)  # in steps of 1/255
    page.fill("#threshold", "255")
    page.dispatch_event("#threshold", "input")
    assert len(page.evaluate(cells)) <= 1
    page.fill("#threshold", "0")
    page.dispatch_event("#threshold", "input")
    assert page.evaluate(cells)[0][4] == 120 * 40
    page.select_option("#show", "classes")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.5 * box["height"])
    assert "likeliest known class tree" in page.inner_text("#hover")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not messages
