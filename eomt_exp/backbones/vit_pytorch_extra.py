"""The door to vit-pytorch, an optional extra: opened only when one of its backbones is built."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def vit_pytorch(module: str) -> Any:
    """A module of vit-pytorch by its short name, such as "simple_vit".

    Raises ValueError, with the command that helps, where vit-pytorch is not installed.
    """
    try:
        return import_module(f"vit_pytorch.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"backbone {module} is one of vit-pytorch's, and {error.name} is not installed: "
            'type pip install -e ".[vit-pytorch]", or take another, such as backbone=tiny.'
        ) from error
