"""Saves and loads training states; they appear on disk as a whole and are never unpickled.

A training state is Accelerate's own folder (weights, optimiser, random states; it reads them with
`weights_only=True`) and our progress as JSON, since objects registered with Accelerate would be
unpickled. The JSON has the SHA-256 of each other file, by which a damaged state is known. Finished
weights are in weight_files.py.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from eomt_exp.contracts import CheckpointError
from eomt_exp.files import sha256, write_text

PROGRESS = "progress.json"
_SHA256 = "sha256"  # its key with the digests by name of file; states of earlier versions have none
_log = logging.getLogger(__name__)


def save_state(
    accelerator: Accelerator, folder: Path, step: int, progress: dict[str, Any], keep: int
) -> None:
    """Save a resumable state under `folder`, and keep the newest `keep`."""
    state = folder / f"step-{step:08d}"
    temporary = folder / f".writing-step-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        digests = {str(path.relative_to(temporary)): sha256(path) for path in files}
        (temporary / PROGRESS).write_text(json.dumps(progress | {_SHA256: digests}))
        shutil.rmtree(state, ignore_errors=True)
        os.replace(temporary, state)
        for old in states(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def update_progress(folder: Path, progress: dict[str, Any]) -> None:
    """Change the progress of the newest state under `folder`."""
    path = states(folder)[-1] / PROGRESS
    write_text(path, json.dumps(json.loads(path.read_text()) | progress))


def load_state(accelerator: Accelerator, state: Path) -> dict[str, Any]:
    """Fill what the accelerator prepared from a state, and return its progress.

    Raises CheckpointError where a random state is missing (another number of processes wrote it)
    or a file asks to be unpickled.
    """
    # Refused before Accelerate looks: it would unpickle them.
    foreign = sorted(path.name for path in state.glob("custom_checkpoint_*"))
    random_state = state / f"random_states_{accelerator.process_index}.pkl"
    if foreign or not random_state.is_file() or not (state / PROGRESS).is_file():
        wrong = f"holds {foreign[0]}" if foreign else f"lacks {PROGRESS} or {random_state.name}"
        raise CheckpointError(f"{state} {wrong}: this program has not written it. Remove it.")
    accelerator.load_state(str(state))
    progress = dict(json.loads((state / PROGRESS).read_text()))
    progress.pop(_SHA256, None)
    return progress


def states(folder: Path) -> list[Path]:
    """Return the complete training states, oldest first."""
    return sorted(folder.glob("step-*"))


def newest_whole(folder: Path) -> Path | None:
    """Return the newest state whose files are as they were written, None where there is none.

    Newer ones are removed with a warning, or they would count as the newest for ever.
    """
    for state in reversed(states(folder)):
        damaged = _damaged(state)
        if damaged is None:
            return state
        _log.warning(
            "%s is damaged: it is not what was written there. Its training state is removed, and "
            "the training goes on from the one before, or begins anew where there is none.",
            state / damaged,
        )
        shutil.rmtree(state)
    return None


def _damaged(state: Path) -> str | None:
    """Return the first file of a state that is missing, cut or changed."""
    try:
        digests: dict[str, str] = json.loads((state / PROGRESS).read_text()).get(_SHA256, {})
    except (OSError, ValueError):
        return PROGRESS
    for name, digest in digests.items():
        if not (state / name).is_file() or sha256(state / name) != digest:
            return name
    return None
