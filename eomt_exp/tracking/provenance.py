"""Notes where a run comes from: the commit of the code and the machine, as flat tags."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def git_facts(package: Path = PACKAGE) -> dict[str, str]:
    """Return {"git.commit", "git.branch", "git.dirty"} of the checkout; {} where there is none.

    Only tracked files make it dirty. A package installed inside somebody else's repository has
    no commit of its own, so {} then as well.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != package.parent:
        return {}
    facts = {
        "git.commit": _git(package, "rev-parse", "HEAD"),
        "git.branch": _git(package, "rev-parse", "--abbrev-ref", "HEAD"),
    }
    status = _git(package, "status", "--porcelain", "--untracked-files=no")
    if status is not None:
        facts["git.dirty"] = "true" if status else "false"
    return {name: value for name, value in facts.items() if value}


def without_passwords(text: str) -> str:
    """Replace the password of each address in a text by ***."""
    return re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1:***@", text)


def run_tags(run_dir: Path, parent_run_id: str | None = None) -> dict[str, str]:
    """Return every run's MLflow tags, under MLflow's own names where its pages show them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # containers run as ids that have no name
        user = "unknown"
    tags = {
        **git_facts(),
        "host": platform.node(),
        "pid": str(os.getpid()),
        "python": platform.python_version(),
        "mlflow.user": user,
        "mlflow.source.name": without_passwords(" ".join(sys.argv)),
        "eomt.kind": "run",
        "output_dir": str(run_dir.resolve()),
    }
    if "git.commit" in tags:
        tags["mlflow.source.git.commit"] = tags["git.commit"]
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None when it cannot answer for whatever reason."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        found = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.strip()
