"""Images are known again by their content, and what a model has seen follows it about."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from eomt_exp.contracts import LabelledImage
from eomt_exp.engine import seen_images
from eomt_exp.engine.seen_images import SeenImages, contents_of, digest, read_digests
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
