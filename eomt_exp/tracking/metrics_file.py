"""Keeps the run's own metrics.jsonl: a line per logged step, readable without MLflow."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from eomt_exp.files import write_text

FILE_NAME = "metrics.jsonl"


class Journal:
    """Appends lines {"step": 10, "time": 1.7e9, "train/loss": 0.4}; each is on disk at once.

    NaN and infinity become null, since JSON has neither; `read_journal` gives them back as NaN.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one line; values are anything float() takes, scalar tensors too."""
        line: dict[str, object] = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in metrics.items():
            number = float(value)
            line[name] = number if math.isfinite(number) else None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened anew for each line: a rewind may have replaced the file, and a killed try may have
        # left half a line that must not swallow this one.
        with self.path.open("ab+") as file:
            file.seek(max(0, file.tell() - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write(("\n" * torn + json.dumps(line) + "\n").encode())

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, the checkpoint's.

        A resumed run repeats those steps, and each would stand in the curves twice.
        """
        lines = _parsed(self.path)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def read_journal(path: str | Path) -> list[dict[str, float]]:
    """Return the lines of a metrics.jsonl, null as NaN; [] where there is no file."""
    return [
        {name: float("nan") if value is None else value for name, value in line.items()}
        for line in _parsed(Path(path))
    ]


def _parsed(path: Path) -> list[dict]:
    """Return the lines that are whole; kill -9 may leave half of one, which is dropped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
