"""Names the files that belong to one image, and the label maps that belong to none."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple


class Pair(NamedTuple):
    """Names the two files of one image of a set."""

    image: str  # its file in the tree of images, which may be missing
    labels: str | None  # its file in the tree of labels; None: its truth is not published
    name: str  # unique in the set; tables, figures and exports call it so


def lone_labels(labels: Collection[str], images: Collection[str]) -> list[str]:
    """Return the names of label maps without an image.

    1_color beside 1 is no label map: it shows that of 1 in colours.
    """
    known = {*labels, *images}

    def is_coloured_copy(name: str) -> bool:
        endings = [match.start() for match in re.finditer(r"[_.-](?=[^0-9]+$)", name)]
        return any(name[:start] in known for start in endings)

    return [name for name in labels if name not in images and not is_coloured_copy(name)]
