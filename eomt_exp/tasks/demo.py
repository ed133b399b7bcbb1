"""`task=demo` serves a page to this machine's browser, on which one drops pictures to be scored."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image

from eomt_exp.contracts import DataError, UserError
from eomt_exp.data.files.decode import decode_image
from eomt_exp.report.figures import as_jpeg, heat_colours
from eomt_exp.report.html_report import template
from eomt_exp.schema import DemoConfig, typed
from eomt_exp.tasks.describe import leaving_no_folder
from eomt_exp.tasks.evaluate import as_trained, opened
from eomt_exp.trained_detector import TrainedDetector

HOST = "127.0.0.1"
_LEVELS = 255  # of the score map that the page gets


def run(cfg: DictConfig) -> None:
    """Serve the model at cfg.checkpoint until Ctrl-C."""
    options = typed(cfg.task, DemoConfig, "task")
    cfg = as_trained(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    with leaving_no_folder(cfg.paths.outputs), opened(cfg, folder) as (source, load):
        demo = Demo(TrainedDetector.of(load(cfg), source), str(source), options)
        with server_of(demo, options.port) as server:
            print(f"open http://{HOST}:{server.server_port} (Ctrl-C ends it)", flush=True)
            with suppress(KeyboardInterrupt):  # there is nothing to go on with
                server.serve_forever()


class Demo:
    """Answers the page: itself, and the scores of a picture."""

    def __init__(self, detector: TrainedDetector, title: str, options: DemoConfig) -> None:
        self.detector, self.options = detector, options
        self.page = template("demo.html").render(
            title=title,
            score=detector.score,
            threshold=detector.threshold,
            class_names=detector.class_names,
            heat=heat_colours(),
            max_mb=options.max_mb,
        )
        self._one_at_a_time = threading.Lock()  # side by side they would only be slower

    def score(self, data: bytes) -> dict[str, Any]:
        """Score the content of a picture's file. Raises DataError where it cannot be read."""
        image = self._smaller(decode_image(data, "the picture"))
        with self._one_at_a_time:
            (found,) = self.detector.stream([image], only=(self.detector.score,))
        assert found.known is not None
        score = np.nan_to_num(found.scores[self.detector.score])
        low, high = float(score.min()), float(score.max())
        levels = ((score - low) * (_LEVELS / ((high - low) or 1.0))).round().astype(np.uint8)
        return {
            "picture": as_jpeg(image),
            "levels": _as_png(levels),
            "classes": _as_png(found.known.astype(np.uint8)),
            "low": low,
            "high": high,
        }

    def _smaller(self, image: np.ndarray) -> np.ndarray:
        factor = self.options.max_side / max(image.shape[:2])
        if factor >= 1:
            return image
        size = tuple(max(1, math.floor(side * factor)) for side in image.shape[1::-1])
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def server_of(demo: Demo, port: int) -> ThreadingHTTPServer:
    """Bind a server to the loopback interface. Raises UserError where the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self._is_foreign():
                return
            if self.path != "/":
                self._answer(404, "text/plain", b"there is one page: /")
                return
            self._answer(200, "text/html; charset=utf-8", demo.page.encode())

        def do_POST(self) -> None:
            if self._is_foreign():
                return
            length = int(self.headers.get("Content-Length") or 0)
            if length > demo.options.max_mb * 1_000_000:
                self._error(413, f"a picture has at most {demo.options.max_mb} MB (task.max_mb).")
                return
            try:
                found = demo.score(self.rfile.read(length))
            except DataError as error:
                self._error(400, str(error))
                return
            self._answer(200, "application/json", json.dumps(found).encode())

        def _is_foreign(self) -> bool:
            """Refuse names of other sites that lead here, and requests of pages from elsewhere."""
            port = self.server.server_port  # type: ignore[attr-defined]
            ours = {f"{host}:{port}" for host in (HOST, "localhost")}
            origin = self.headers.get("Origin", "").removeprefix("http://")
            if self.headers.get("Host") in ours and (not origin or origin in ours):
                return False
            self.close_connection = True
            self._error(403, "only pages of this machine are answered.")
            return True

        def _error(self, code: int, message: str) -> None:
            self._answer(code, "application/json", json.dumps({"error": message}).encode())

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a line a request tells nobody anything."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            f"task.port={port} cannot be used: {error.strerror}; 0 finds one."
        ) from error


def _as_png(values: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
