"""Where a part of a data set lies below its root: a folder, or inside the archive it came in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eomt_exp.contracts import DataError
from eomt_exp.data.files.decode import existing_folder
from eomt_exp.data.files.pairs import Pair, lone_labels
from eomt_exp.data.files.tree import FileTree

_LISTED = 8  # names of what was found instead; more would bury the message


class Part(NamedTuple):
    """A folder of a data set, on disk or inside an archive."""

    tree: FileTree
    folder: str  # inside the tree; "" where the tree is the folder

    def files(self, ending: str) -> list[str]:
        """Names in the tree that end so, however deep below the folder."""
        return [name for name in self.tree.files(self.folder) if name.endswith(ending)]

    def inside(self, name: str) -> str:
        """A name below the folder as a name in the tree."""
        return f"{self.folder}/{name}" if self.folder else name

    def below(self, file: str) -> str:
        """The reverse: a name in the tree as one below the folder."""
        return file.removeprefix(f"{self.folder}/") if self.folder else file


def pairs_of(images: Part, ending: str, labels: Part | None, label_ending: str) -> list[Pair]:
    """`X<ending>` with `X<label_ending>` for every X that has either; the name is its last part."""
    scenes = [images.below(file).removesuffix(ending) for file in images.files(ending)]
    if labels is not None:
        truths = [labels.below(f).removesuffix(label_ending) for f in labels.files(label_ending)]
        scenes += lone_labels(truths, set(scenes))
    return [
        Pair(
            images.inside(f"{scene}{ending}"),
            None if labels is None else labels.inside(f"{scene}{label_ending}"),
            scene.rpartition("/")[2],
        )
        for scene in scenes
    ]


def find_part(
    root: str | Path | None,
    key: str,
    folders: Sequence[str],
    archives: Sequence[str],
    mend: str = "",
) -> Part:
    """The first of `folders` that is below `root`, or in one of `archives` there.

    `root` may be an archive itself. `key` is the option and the path's name ("cityscapes"), `mend`
    what else may help. DataError says what was looked for, what is there and what to type.
    """
    place = existing_folder(root, option=f"data={key}", key=key, zips=True)
    if place.is_dir():
        for folder in folders:
            if (place / folder).is_dir():
                return Part(FileTree(place / folder), "")
    found = [place] if place.is_file() else [place / name for name in archives]
    for archive in found:
        if archive.is_file():
            tree = FileTree(archive)
            for folder in folders:
                if tree.has(folder):
                    return Part(tree, folder)
    raise DataError(_not_found(place, key, folders, archives, mend))


def _not_found(
    place: Path, key: str, folders: Sequence[str], archives: Sequence[str], mend: str
) -> str:
    wanted = " or ".join(f"{folder}/" for folder in folders)
    zipped = f", as a folder or in {' or '.join(archives)}" if place.is_dir() else ""
    sentences = [
        f"data={key} needs {wanted}{zipped}, and {place} has none; {_content(place)}.",
        mend,
        f"Type paths.{key}=/path/to/{key} or set EOMT_{key.upper()} to the place that has it.",
    ]
    return " ".join(filter(None, sentences))


def _content(place: Path) -> str:
    if place.is_file():
        names = {name.split("/")[0] for name in FileTree(place).files()}
    else:
        names = {path.name for path in place.iterdir() if not path.name.startswith(".")}
    if not names:
        return "it is empty"
    listed = sorted(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return f"it holds {', '.join(listed[:_LISTED])}{more}"
