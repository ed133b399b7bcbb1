"""What the process launcher's slots are given: their GPUs and CPU threads, as environments.

Underlined, or Hydra would import it twice, and its classes with it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hydra.errors import CompactHydraException

_KEY = "hydra.launcher"
_AUTO = "auto"


class LauncherError(CompactHydraException, ValueError):
    """The launcher cannot do what was asked for; Hydra prints the message without a traceback."""


@dataclass(frozen=True)
class Settings:
    """conf/hydra/launcher/process.yaml, where each key is explained."""

    slots: int | str = 1
    gpus: list[int | str] | str | None = None
    num_processes: int = 1
    threads: int | str = _AUTO
    grace_s: float = 20

    def __post_init__(self) -> None:
        """Types and ranges."""
        for name in ("slots", "num_processes", "threads"):
            value = getattr(self, name)
            if (name == "num_processes" or value != _AUTO) and not _is_count(value):
                or_auto = "" if name == "num_processes" else " or auto"
                raise LauncherError(
                    f"{_KEY}.{name} must be a number from 1{or_auto}, got {value!r}; "
                    f"type {_KEY}.{name}=1."
                )
        if not (self.gpus in (None, _AUTO) or isinstance(self.gpus, list)):
            raise LauncherError(
                f"{_KEY}.gpus must be null, auto or a list, got {self.gpus!r}; "
                f"type {_KEY}.gpus=[{self.gpus}]."
            )
        if isinstance(self.grace_s, str) or not self.grace_s >= 0:
            raise LauncherError(
                f"{_KEY}.grace_s is in seconds, got {self.grace_s!r}; type {_KEY}.grace_s=20."
            )


def read_settings(node: Mapping[str, Any]) -> Settings:
    """From the plain node `hydra.launcher`; LauncherError for a key or value there cannot be."""
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    allowed = [field.name for field in fields(Settings)]
    for key in given:
        if key not in allowed:
            raise LauncherError(
                f"{_KEY}.{key} is no setting of hydra/launcher=process; "
                f"it has {', '.join(allowed)}."
            )
    return Settings(**given)


def environments(settings: Settings) -> list[dict[str, str]]:
    """What each slot adds to the environment of its jobs, one entry a slot.

    Raises LauncherError where the GPUs cannot be divided evenly, or a job would lack some.
    """
    shares = _shares(settings)
    processes = len(shares) * settings.num_processes
    common: dict[str, str] = {}
    if settings.threads != _AUTO:
        common["OMP_NUM_THREADS"] = str(settings.threads)
    elif processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Each would take all cores, and all of them would wait for one another.
        common["OMP_NUM_THREADS"] = str(max(1, _cores() // processes))
    return [{**common, **share} for share in shares]


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: what it holds already, else all that the driver lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and not name.startswith("-")]  # -1: none
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(found))]


def _shares(settings: Settings) -> list[dict[str, str]]:
    slots, size = settings.slots, settings.num_processes
    if settings.gpus is None and not isinstance(slots, str):
        return [{}] * slots
    names = _chosen(settings.gpus)
    if isinstance(slots, str):
        slots = max(1, len(names) // size)
        names = names[: slots * size] if len(names) >= size else names
    if not names:
        return [{}] * slots
    share, left = divmod(len(names), slots)
    if left or share < size:
        _refuse(names, slots, size)
    groups = (names[index * share : (index + 1) * share] for index in range(slots))
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def _chosen(gpus: list[int | str] | str | None) -> list[str]:
    """A number counts among the visible GPUs, as it does in torch; anything else is a name."""
    if not isinstance(gpus, list):
        return visible_gpus()
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return [str(gpu) for gpu in gpus]
    visible = visible_gpus()
    wrong = [gpu for gpu in gpus if isinstance(gpu, int) and not 0 <= gpu < len(visible)]
    if wrong:
        raise LauncherError(
            f"{_KEY}.gpus={gpus}: there is no GPU {wrong[0]} among the {len(visible)} of "
            f"CUDA_VISIBLE_DEVICES={','.join(visible)}; type {_KEY}.gpus=auto to take those."
        )
    return [visible[gpu] if isinstance(gpu, int) else gpu for gpu in gpus]


def _refuse(names: list[str], slots: int, size: int) -> None:
    possible = [n for n in range(1, len(names) + 1) if len(names) % n == 0]
    possible = [n for n in possible if len(names) // n >= size]
    said = f"{len(names)} GPUs ({','.join(names)}) over {slots} slots"
    if not possible:
        raise LauncherError(
            f"{said}: a job of {size} processes wants {size} GPUs; "
            f"type {_KEY}.num_processes={len(names)}."
        )
    wanted = min(possible, key=lambda n: (abs(n - slots), n))
    why = f"each job wants {size}" if len(names) % slots == 0 else "they cannot be divided evenly"
    raise LauncherError(f"{said}: {why}; type {_KEY}.slots={wanted}.")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
