"""Pictures, archives and configurations for the tests of data sets."""

from __future__ import annotations

import struct
import zipfile
import zlib
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


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """Values (h, w) as a grey PNG of 1, 2 or 4 bits a pixel, as optimisers pack label maps."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    each = (values[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(each.reshape(len(values), -1), axis=1)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())  # each row begins with a filter
    size = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


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
