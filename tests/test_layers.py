"""house.md's rules on who may import whom, read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "eomt_exp"
ROOMS = ("backbones", "models", "heads", "losses", "scorers", "data")

# Of our own package, what each room may import beside its own files.
ALLOWED = {
    **{room: {"contracts"} for room in ROOMS},
    "contracts": set(),
    "schema": set(),
    "paths": set(),
    "processes": set(),
    "run_folders": {"processes"},
    "evaluator": set(),
    "engine": {"evaluator", "contracts", "schema", "processes"},
    "build": {"contracts"},
    "runs": {"build", "contracts", "engine", "schema"},
    "job_result": set(),
    "cli": {"paths", "schema", "run_folders", "job_result"},
    "worker": {"cli"},
    "tasks": {*ROOMS, "build", "runs", "cli", "engine", "contracts", "schema", "run_folders"},
    "studies": {"processes", "runs", "cli", "engine", "contracts", "schema", "paths", "build"},
    "_plugins": {
        *("studies", "cli", "build", "schema", "paths", "contracts", "engine"),
        *("job_result", "worker"),
    },
    "__main__": {"cli"},
    "__init__": {"runs"},
}
# One door a library.
DOORS = {
    "hydra": {"cli", "build", "runs", "tasks", "studies", "_plugins", "schema"},
    "omegaconf": {"cli", "build", "runs", "tasks", "studies", "_plugins"},
    "accelerate": {"engine", "cli"},  # cli: ranks must meet before Hydra starts
    "mlflow": {"engine"},
    "timm": {"backbones", "models"},
    "vit_pytorch": {"backbones"},
    "huggingface_hub": {"engine"},
    "transformers": set(),  # the tests' oracle only
    "albumentations": {"data"},
    "scipy": {"losses", "evaluator"},
    "optuna": {"studies", "engine", "_plugins"},  # _plugins: a pruned job's exception
    "plotly": {"studies"},
    "sklearn": {"scorers"},
    "matplotlib": {"engine", "studies"},
    "h5py": {"engine"},
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
    """`file imports name` for every arrow that the house has not got."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        room = inside.parts[0].removesuffix(".py")
        for name in imports(path):
            library, *rest = name.split(".")
            if library in DOORS and room not in DOORS[library]:
                found.append(f"{inside} imports {name}")
            if library != "eomt_exp" or not rest:
                continue
            if rest[0] != room and rest[0] not in ALLOWED[room]:
                found.append(f"{inside} imports {name}")
    return found


def test_no_arrow_runs_up_or_sideways() -> None:
    assert faults(PACKAGE) == []


def test_every_room_has_its_rule() -> None:
    rooms = {
        p.name.removesuffix(".py")
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))
    }
    assert rooms <= ALLOWED.keys()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("losses/x.py", "from eomt_exp.scorers.rba import RbA"),
        ("models/x.py", "from eomt_exp.backbones.timm_vit import TimmViT"),
        ("data/x.py", "def f():\n    import eomt_exp.engine.trainer"),
        ("contracts.py", "import eomt_exp.models.eomt"),
        ("evaluator/x.py", "from eomt_exp.contracts import VOID"),
        ("engine/x.py", "from eomt_exp import tasks"),
        ("engine/x.py", "import omegaconf"),
        ("heads/x.py", "import mlflow"),
    ],
)
def test_a_planted_arrow_is_found(tmp_path: Path, file: str, line: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(line)
    assert len(faults(tmp_path)) == 1


def test_files_stay_readable() -> None:
    long = [p for p in PACKAGE.rglob("*.py") if len(p.read_text().splitlines()) > 300]
    assert long == []
