"""Import vit-pytorch, an optional extra, only when one of its backbones is built."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from eomt_exp.contracts import UserError


def vit_pytorch(module: str) -> Any:
    """Return a module of vit-pytorch by its short name, such as "simple_vit".

    Raises UserError, with the command that helps, where vit-pytorch is not installed.
    """
    try:
        return import_module(f"vit_pytorch.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"backbone {module} is one of vit-pytorch's, and {error.name} is not installed: "
            'type pip install -e ".[vit-pytorch]", or take another, such as backbone=tiny.'
        ) from error
