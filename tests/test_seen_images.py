"""Images are known again by their content, and what a model has seen follows it about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eomt_exp.contracts import LabelledImage
from eomt_exp.engine.seen_images import (
    Contents,
    SeenImages,
    contents_of,
    digest,
    in_words,
    read_digests,
)
from tests.bright_anomalies import BrightAnomalies


def contents(images) -> Contents:
    return contents_of(read_digests(images, range(len(images))))


class Renamed(BrightAnomalies):
    """The same images under other names."""

    def __getitem__(self, index: int) -> LabelledImage:
        return super().__getitem__(index)._replace(name=f"other {index}")


def test_an_image_is_its_pixels_not_its_name() -> None:
    assert contents(BrightAnomalies()).images.keys() == contents(Renamed()).images.keys()
    assert (
        not contents(BrightAnomalies()).images.keys()
        & contents(BrightAnomalies(seed=1)).images.keys()
    )


def test_one_pixel_or_another_shape_is_another_image() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    changed = image.copy()
    changed[3, 5, 2] = 1
    assert len({digest(image), digest(changed), digest(image.reshape(6, 4, 3))}) == 3
    assert digest(image[:, ::2]) == digest(image[:, ::2].copy())  # views are their content


def test_the_hash_of_a_set_knows_its_labels_and_not_its_order() -> None:
    class Backwards(BrightAnomalies):
        def __getitem__(self, index: int) -> LabelledImage:
            return super().__getitem__(len(self) - 1 - index)

    class Relabelled(BrightAnomalies):
        def __getitem__(self, index: int) -> LabelledImage:
            item = super().__getitem__(index)
            return item._replace(anomaly=np.zeros_like(item.anomaly)) if index == 2 else item

    whole = contents(BrightAnomalies()).sha256
    assert contents(Backwards()).sha256 == whole
    assert contents(Relabelled()).sha256 != whole
    assert contents(BrightAnomalies(7)).sha256 != whole


def test_shards_read_together_are_the_set() -> None:
    images = BrightAnomalies()
    parts = [read_digests(images, positions) for positions in ([1, 3, 5, 7], [0, 2, 4, 6])]
    assert contents_of(parts[0] + parts[1]).sha256 == contents(images).sha256


def test_what_was_seen_is_found_under_any_name() -> None:
    seen = SeenImages()
    seen.add("training", contents(BrightAnomalies(3)).images)
    overlap = seen.overlap(contents(Renamed(8)))
    assert sorted(o.name for o in overlap) == ["other 0", "other 1", "other 2"]
    assert {o.use for o in overlap} == {"training"}
    assert seen.overlap(contents(BrightAnomalies(8, seed=1))) == []
    words = in_words(overlap, "road_anomaly")
    assert "3 images of road_anomaly were seen before" in words
    assert "(training, as bright" in words


def test_validation_images_validate_and_are_no_test() -> None:
    seen = SeenImages()
    seen.add("validation", contents(BrightAnomalies(3)).images)
    assert seen.overlap(contents(BrightAnomalies(3)), besides=("validation",)) == []
    assert len(seen.overlap(contents(BrightAnomalies(3)))) == 3


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


def test_a_folder_without_a_record_says_so(tmp_path: Path) -> None:
    assert SeenImages.load(tmp_path).unknown == [str(tmp_path)]


def test_an_unknown_use_is_named() -> None:
    with pytest.raises(ValueError, match="training, validation"):
        SeenImages().add("looking", {})
