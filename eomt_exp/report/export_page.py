"""Writes what a reader of exported files needs: a page, and a script that runs a graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eomt_exp.files import write_text
from eomt_exp.report.html_report import template

COLUMNS = ("ap", "fpr95", "auroc")


def write_page(facts: Mapping[str, Any], metrics: Mapping[str, Any], folder: Path) -> None:
    """Write README.md from facts about the model and the metrics of its run."""
    numbers = {
        benchmark: [metrics[f"{benchmark}/{facts['score']}/{name}"] for name in COLUMNS]
        for benchmark in sorted({key.split("/")[0] for key in metrics})
        if all(metrics.get(f"{benchmark}/{facts['score']}/{n}") is not None for n in COLUMNS)
    }
    text = template("export.md").render(**facts, numbers=numbers, columns=COLUMNS)
    write_text(folder / "README.md", re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def write_script(facts: Mapping[str, Any], folder: Path) -> None:
    """Write infer.py, which runs an ONNX graph on a picture."""
    write_text(folder / "infer.py", template("infer.py.txt").render(**facts) + "\n")
