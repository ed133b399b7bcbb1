"""Shows the images of another set in its own way."""

from __future__ import annotations

from eomt_exp.contracts import ImageSet, LabelledImage


class WrappedSet(ImageSet):
    """Says of itself what the set inside says."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self.num_classes, self.class_names = images.num_classes, images.class_names
        self.class_categories, self.reads_files = images.class_categories, images.reads_files
        self.expected_images, self.skipped = images.expected_images, images.skipped
        self.component_sizes = images.component_sizes
        self.labels_anomalies = images.labels_anomalies

    def __len__(self) -> int:
        return len(self._images)

    def locations(self, index: int) -> tuple[str, str | None]:
        """Say where an image and its label map lie, as the set inside does."""
        return self._images.locations(index)


class FirstImages(WrappedSet):
    """Holds the first `limit` images of another set, or all where there are fewer."""

    def __init__(self, images: ImageSet, limit: int) -> None:
        super().__init__(images)
        self._positions = range(len(images))[:limit]
        self.expected_images = None

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> LabelledImage:
        return self._images[self._positions[index]]
