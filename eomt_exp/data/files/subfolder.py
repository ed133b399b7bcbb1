"""Finds a folder of a data set below its root: on disk, or inside the archive it came in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eomt_exp.contracts import DataError
from eomt_exp.data.files.decode import existing_folder, path_advice
from eomt_exp.data.files.pairs import OnBroken, Pair, PairedFiles, lone_labels
from eomt_exp.data.files.tree import FileTree, first_few


class Subfolder(NamedTuple):
    """Names a folder of a data set, on disk or inside an archive."""

    tree: FileTree
    folder: str  # inside the tree; "" where the tree is the folder

    def files(self, ending: str) -> list[str]:
        """List the names in the tree that end so, however deep below the folder."""
        return [name for name in self.tree.files(self.folder) if name.endswith(ending)]

    def inside(self, name: str) -> str:
        """Turn a name below the folder into a name in the tree."""
        return f"{self.folder}/{name}" if self.folder else name

    def below(self, file: str) -> str:
        """Turn a name in the tree into one below the folder."""
        return file.removeprefix(f"{self.folder}/") if self.folder else file


def paired_files(
    images: Subfolder, ending: str, labels: Subfolder | None, label_ending: str, on_broken: OnBroken
) -> PairedFiles:
    """Pair `X<ending>` with `X<label_ending>` for every X that has either, named by its last part.

    `labels` is None for a split whose truth is not published.
    """
    scenes = [images.below(file).removesuffix(ending) for file in images.files(ending)]
    if labels is not None:
        truths = [labels.below(f).removesuffix(label_ending) for f in labels.files(label_ending)]
        scenes += lone_labels(truths, set(scenes))
    pairs = [
        Pair(
            images.inside(f"{scene}{ending}"),
            None if labels is None else labels.inside(f"{scene}{label_ending}"),
            scene.rpartition("/")[2],
        )
        for scene in scenes
    ]
    return PairedFiles(images.tree, (labels or images).tree, pairs, on_broken, option="data")


def find_subfolder(
    root: str | Path | None,
    key: str,
    folders: Sequence[str],
    archives: Sequence[str] | None = None,
    hint: str = "",
) -> Subfolder:
    """Return the first of `folders` that is below `root`, or in one of `archives` there.

    Without `archives` each folder may have one of its own name. `root` may be an archive itself.
    `key` is the option and the path's name ("cityscapes"), `hint` what else may help. DataError
    says what was looked for, what is there and what to type.
    """
    archives = [f"{folder}.zip" for folder in folders] if archives is None else archives
    path = existing_folder(root, option=f"data={key}", key=key, zips=True)
    if path.is_dir():
        for folder in folders:
            if (path / folder).is_dir():
                return Subfolder(FileTree(path / folder), "")
    found = [path] if path.is_file() else [path / name for name in archives]
    for archive in found:
        if archive.is_file():
            tree = FileTree(archive)
            for folder in folders:
                if tree.has(folder):
                    return Subfolder(tree, folder)
    raise DataError(_lacks_folders(path, key, folders, archives, hint))


def _lacks_folders(
    path: Path, key: str, folders: Sequence[str], archives: Sequence[str], hint: str
) -> str:
    wanted = " or ".join(f"{folder}/" for folder in folders)
    zipped = f", as a folder or in {' or '.join(archives)}" if path.is_dir() else ""
    if path.is_file():
        names = {name.split("/")[0] for name in FileTree(path).files()}
    else:
        names = {inside.name for inside in path.iterdir() if not inside.name.startswith(".")}
    content = f"it holds {first_few(sorted(names))}" if names else "it is empty"
    needs = f"data={key} needs {wanted}{zipped}, and {path} has none; {content}."
    return " ".join(filter(None, [needs, hint, path_advice(key)]))
