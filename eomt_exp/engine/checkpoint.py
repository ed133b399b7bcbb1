"""Saves and loads training states; they appear on disk as a whole and are never unpickled.

A training state is Accelerate's own folder (weights, optimiser, random states; it reads them with
`weights_only=True`) and our progress as JSON, since objects registered with Accelerate would be
unpickled. Finished weights are in weight_files.py.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from eomt_exp.contracts import CheckpointError

PROGRESS = "progress.json"


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
        (temporary / PROGRESS).write_text(json.dumps(progress))
        shutil.rmtree(state, ignore_errors=True)
        os.replace(temporary, state)
        for old in states(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


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
    return dict(json.loads((state / PROGRESS).read_text()))


def states(folder: Path) -> list[Path]:
    """Return the complete training states, oldest first."""
    return sorted(folder.glob("step-*"))
