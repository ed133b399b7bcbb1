"""Images are known again by their content, and what a model has seen follows it about."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eomt_exp.contracts import LabelledImage
from eomt_exp.data.files.file_set import AnomalySet
from eomt_exp.data.files.layouts import Found, Pair
from eomt_exp.data.loader import image_loader
from eomt_exp.engine import seen_images
from eomt_exp.engine.seen_images import SeenImages, contents_of, digest, read_digests
from eomt_exp.tasks.image_sets import ReadSets
from tests.bright_anomalies import BrightAnomalies


def contents(images) -> seen_images.Contents:
    return contents_of(read_digests(images, range(len(images))))


def renamed(count: int, seed: int = 0) -> list[LabelledImage]:
    """The same images under other names."""
    images = BrightAnomalies(count, seed)
    return [images[i]._replace(name=f"other {i}") for i in range(count)]


def test_one_pixel_or_another_shape_is_another_image() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    changed = image.copy()
    changed[3, 5, 2] = 1
    assert len({digest(image), digest(changed), digest(image.reshape(6, 4, 3))}) == 3
    assert digest(image[:, ::2]) == digest(image[:, ::2].copy())  # views are their content


class CountedFiles(AnomalySet):
    """Counts how often a file is decoded; image 2 of 4 is larger than the others."""

    def __init__(self) -> None:
        nowhere: Any = None  # no file is read
        pairs = [Pair(f"{i}.png", None, f"{i}") for i in range(4)]
        super().__init__(Found(nowhere, nowhere, pairs), {}, "keep", "counted")
        self.decoded = 0

    def __len__(self) -> int:
        return 4

    def locations(self, index: int) -> tuple[str, None]:
        return f"{index}.png", None

    def stored(self, index: int) -> tuple[np.ndarray, None]:
        self.decoded += 1
        return np.full((40 if index == 2 else 10, 10, 3), index, np.uint8), None


@pytest.mark.parametrize(("room", "decoded"), [(10**6, 4), (1600, 5), (0, 8)])
def test_a_file_is_decoded_once_while_there_is_room(
    room: int, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eomt_exp.tasks.image_sets.KEPT_BYTES", room)
    sets = ReadSets()
    images, found = sets.measured(CountedFiles(), "counted", {"root": "here"}, num_workers=0)
    assert found == contents(CountedFiles())
    assert [item.name for item in image_loader(images, num_workers=0)] == ["0", "1", "2", "3"]
    assert images.decoded == decoded
    again, _ = sets.measured(CountedFiles(), "counted", {"root": "here"}, num_workers=0)
    assert again is images  # a later stage of this process
    assert len(pickle.dumps(images)) < 1000  # workers get no pixels


def test_the_hash_of_a_set_knows_its_labels_and_not_its_order() -> None:
    images = renamed(8)
    whole = contents(BrightAnomalies()).sha256
    assert contents(images[::-1]).sha256 == whole
    assert contents(images[:7]).sha256 != whole
    shards = [read_digests(images, positions) for positions in ([1, 3, 5, 7], [0, 2, 4, 6])]
    assert contents_of(shards[0] + shards[1]).sha256 == whole
    images[2] = images[2]._replace(anomaly=np.zeros_like(images[2].anomaly))
    assert contents(images).sha256 != whole


@pytest.mark.parametrize("use", ["training", "validation"])
def test_what_was_seen_is_found_under_any_name(use: str) -> None:
    seen = SeenImages()
    seen.add(use, contents(BrightAnomalies(3)).images)
    overlap = seen.overlap(contents(renamed(8)))
    assert sorted((o.name, o.use) for o in overlap) == [(f"other {i}", use) for i in range(3)]
    assert seen.overlap(contents(renamed(8, seed=1))) == []
    assert seen.overlap(contents(renamed(8)), besides=(use,)) == []  # it may validate again
    text = rf"3 images of road_anomaly were seen before.*\({use}, as bright"
    assert re.search(text, seen_images.in_words(overlap, "road_anomaly"))


def test_a_model_has_seen_what_the_one_it_began_with_has(tmp_path: Path) -> None:
    first = SeenImages()
    first.add("training", {"a": "1.jpg"})
    first.unknown.append("eomt_large.bin")
    first.save(tmp_path)
    second = SeenImages()
    second.add("training", {"b": "2.jpg"})
    second.include(SeenImages.load(tmp_path))
    assert second.uses["training"] == {"a": "1.jpg", "b": "2.jpg"}
    assert second.unknown == ["eomt_large.bin"]
    without_a_record = SeenImages.load(tmp_path / "other")
    assert without_a_record.unknown == [str(tmp_path / "other")]
