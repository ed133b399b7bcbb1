"""Shows a few images of a set, to try something out."""

from __future__ import annotations

from eomt_exp.contracts import ImageSet, LabelledImage
from eomt_exp.data.wrapped_set import WrappedSet


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
