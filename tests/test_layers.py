"""Who may import whom (docs/architecture.md), read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "eomt_exp"
PARTS = ("backbones", "models", "heads", "losses", "scorers", "data")

# What each folder or module of the package may import of it, beside its own files. A dotted name
# allows that module only.
ALLOWED = {
    **{part: {"contracts", "ranges"} for part in PARTS},
    "contracts": set(),
    "files": set(),
    "paths": set(),
    "ranges": set(),
    "config_keys": set(),
    "signals": set(),
    "machine_faults": set(),
    "evaluator": set(),
    "schema": {"contracts", "ranges"},
    "jobs": {"files", "contracts"},
    "run_folders": {"files", "contracts", "config_keys"},
    "tracking": {"files", "contracts", "signals"},
    "weights": {"files", "contracts"},
    "engine": {"tracking", "evaluator", "files", "contracts", "schema", "signals"},
    "report": {
        *("engine.evaluation", "engine.query_statistics", "evaluator", "tracking", "files"),
        *("contracts", "schema"),
    },
    "build": {"contracts", "ranges"},
    "runs": {"build", "contracts", "engine", "weights", "files", "paths", "schema", "config_keys"},
    "studies": {
        *("engine", "tracking", "weights", "report", "files", "contracts", "schema"),
        *("build", "runs", "jobs", "signals", "config_keys", "evaluator", "paths"),
    },
    "tasks": {
        *PARTS,
        *("studies", "engine", "evaluator", "tracking", "weights", "report", "files"),
        *("contracts", "schema", "build", "runs", "run_folders", "config_keys", "trained_detector"),
        "paths",
    },
    "cli": {
        *("paths", "schema", "config_keys", "run_folders", "jobs", "signals", "files"),
        *("contracts", "machine_faults"),
    },
    "worker": {"cli", "jobs"},
    "_plugins": {"studies", "cli", "jobs", "schema", "contracts", "config_keys"},
    "__main__": {"cli"},
    "trained_detector": {"runs", "engine", "evaluator", "weights", "contracts", "data"},
    "__init__": {"trained_detector"},
}
# Where each library may be imported.
DOORS = {
    "hydra": {"cli", "build", "runs", "tasks", "studies", "_plugins", "schema", "jobs"},
    "omegaconf": {"cli", "build", "runs", "tasks", "studies", "_plugins", "schema"},
    "accelerate": {"engine", "cli"},  # cli: ranks must meet before Hydra starts
    "mlflow": {"tracking"},
    "timm": {"backbones", "models"},
    "vit_pytorch": {"backbones"},
    "huggingface_hub": {"weights"},
    "transformers": {"models"},
    "albumentations": {"data"},
    "pycocotools": {"data"},
    "scipy": {"losses"},
    "cv2": {"data", "evaluator"},
    "optuna": {"studies"},
    "plotly": {"studies"},
    "pandas": {"report"},
    "jinja2": {"report"},
    "matplotlib": {"report", "studies"},
    "sklearn": {"scorers"},
    "h5py": {"engine"},
    "av": {"data"},
    "onnx": {"engine"},
    "onnxruntime": {"engine"},
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(package: Path) -> list[str]:
    """`file imports name` for every import that the rules do not allow."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        folder = inside.parts[0].removesuffix(".py")
        for name in imports(path):
            library, *rest = name.split(".")
            if library in DOORS and folder not in DOORS[library]:
                found.append(f"{inside} imports {name}")
            if library != "eomt_exp" or not rest:
                continue
            if rest[0] != folder and not {rest[0], ".".join(rest[:2])} & ALLOWED[folder]:
                found.append(f"{inside} imports {name}")
    return found


def test_no_import_runs_up_or_sideways() -> None:
    assert faults(PACKAGE) == []


def test_every_folder_has_its_rule() -> None:
    folders = {
        p.name.removesuffix(".py")
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))
    }
    assert folders <= ALLOWED.keys()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("losses/x.py", "from eomt_exp.scorers.rba import RbA"),
        ("data/x.py", "def f():\n    import eomt_exp.engine.trainer"),
        ("contracts.py", "import eomt_exp.models.eomt"),
        ("engine/x.py", "import eomt_exp.report.leaderboard"),
        ("report/x.py", "from eomt_exp.engine.trainer import Trainer"),
        ("engine/x.py", "import omegaconf"),
        ("heads/x.py", "import mlflow"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(line)
    assert len(faults(tmp_path)) == 1
