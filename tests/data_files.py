"""Pictures, archives and configurations for the tests of data sets."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from eomt_exp import cli
from eomt_exp.build import build
from eomt_exp.paths import asset_dir

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@cache
def composed(*overrides: str) -> DictConfig:
    """The configuration of a command, with Hydra's own; composing one takes half a second."""
    cli.register()
    with initialize_config_dir(str(asset_dir("conf")), version_base="1.3"):
        given = ["hydra.run.dir=unused", *overrides]
        return compose("config", overrides=given, return_hydra_config=True)


def known_classes(name: str, root: Path | str | None, split: str = "train", **options: Any) -> Any:
    """As `data=NAME paths.NAME=ROOT data.train.split=SPLIT data.train.OPTION=…`."""
    node: Any = OmegaConf.to_container(composed(f"data={name}").data.train, resolve=True)
    return build(node | {"root": root, "split": split} | options, "data.train")


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8, another picture for each seed."""
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    """Write a picture, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def zipped(folder: Path, archive: Path, base: Path | None = None) -> Path:
    """The folder's content, named from `base`; without, from above it, as archives usually are."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(base or folder.parent)
            out.write(path, name)
            out.writestr(f"__MACOSX/{name}", b"as macOS adds them")
    return archive


def assert_same_images(some: Iterable[Any], others: Iterable[Any]) -> None:
    """Equal names and equal arrays, image after image."""
    for one, other in zip(some, others, strict=True):
        assert one.name == other.name
        for mine, theirs in zip(one[:3], other[:3], strict=True):
            assert np.array_equal(mine, theirs)
