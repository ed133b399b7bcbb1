"""Reads training sets of image files by one class; conf/data/ says how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from eomt_exp.contracts import VOID, UserError
from eomt_exp.data.files.file_set import KnownClassSet, OnBroken, published_size
from eomt_exp.data.files.label_values import Values, value_table
from eomt_exp.data.files.layout_search import SearchPaths, find_layout
from eomt_exp.data.files.layouts import Layout


class KnownClassFolder(KnownClassSet):
    """Reads one split of a set with known classes, from a folder or the archives it comes in."""

    def __init__(
        self,
        root: str | Path | None,
        name: str,
        classes: Sequence[str],
        layouts: Mapping[str, Layout],
        split: str,
        folders: Sequence[str] = (),
        label_values: Mapping[str, Values] | None = None,
        void_values: Values = (VOID,),
        unmapped_values: Literal["void", "error"] = "void",
        class_categories: Sequence[str] | None = None,
        expected_images: int | Mapping[str, int] | None = None,
        on_broken: OnBroken = "error",
    ) -> None:
        """`name` is the set's own: its folder is set by paths.<name> or EOMT_<NAME>.

        The first of `layouts` that fits is taken, in `root` (a folder or zip) or in what is called
        one of `folders` there; `split` fills {split} in them. `label_values`: class -> its values
        in the files (7, "2-9" or a list of such); None: 0 is the first of `classes`, and so on.
        All values that have no class and are not among `void_values` are `unmapped_values`: void
        too, which task=doctor counts, or an error. `expected_images` may be given by split.
        UserError, DataError: what is wrong and what to type.
        """
        self.expected_images = published_size(expected_images, split)
        self.num_classes, self.class_names = len(classes), tuple(classes)
        self.class_categories = None if class_categories is None else tuple(class_categories)
        table = _class_table(self.class_names, label_values, void_values)
        if unmapped_values == "void":
            self.unmapped = frozenset(range(256)) - table.keys()
        paths = SearchPaths(root, None, ["", *folders], name, "data")
        super().__init__(
            find_layout(layouts, paths, {"split": split}),
            table | dict.fromkeys(self.unmapped, VOID),
            on_broken,
            "data",
            f"If these are the right files, data={name} must say what the values mean: in "
            "label_values, void_values, or by unmapped_values: void.",
        )


def _class_table(
    classes: Sequence[str], label_values: Mapping[str, Values] | None, void_values: Values
) -> dict[int, int]:
    """Map label values to classes and VOID; UserError for a class that is none of the set's."""
    values: Mapping[str, Values] = {name: index for index, name in enumerate(classes)}
    values = values if label_values is None else label_values
    if strange := [name for name in values if name not in classes]:
        raise UserError(
            f"label_values names {', '.join(map(str, strange))}, which is none of the classes: "
            f"{', '.join(classes)}."
        )
    meanings = {f"label_values.{n}": (classes.index(n), found) for n, found in values.items()}
    return value_table({**meanings, "void_values": (VOID, void_values)})
