"""Finds a data set in what the user pointed at: its folder, one above or its zip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eomt_exp.contracts import DataError
from eomt_exp.data.files.decode import existing_folder, path_advice
from eomt_exp.data.files.layouts import Found, Layout, filled
from eomt_exp.data.files.tree import FileTree

_LISTED = 8  # folders in a message, or they bury it


class SearchPaths(NamedTuple):
    """Says where a data set is searched for."""

    root: str | Path | None
    images_root: str | Path | None  # holds images only: some label maps come without them
    folders: Sequence[str]  # what the set's own folder may be called; "" for the root itself
    key: str  # of paths
    option: str  # "benchmark.x" or "data", for messages


def find_layout(
    layouts: Mapping[str, Layout], paths: SearchPaths, options: Mapping[str, str]
) -> Found:
    """Return the first layout that fits the folder or archive, else one that fits archives in it.

    DataError says which layouts there are and what was found instead. Archives that cannot be read
    may be other people's: they are named only then.
    """
    group = paths.option.partition(".")[0]
    root = existing_folder(paths.root, f"{group}={paths.key}", path_advice(paths.key), zips=True)
    folders = [filled(folder, options) for folder in paths.folders]
    lower = [folder.lower() for folder in folders]
    trees = [FileTree(root)]
    faults: list[str] = []
    for images_in, labels_in in _trees_to_search(trees, paths, lower, faults):
        for layout in layouts.values():
            found = layout.find(images_in, labels_in, lower, options, faults)
            if found is not None:
                return found
    raise DataError(_not_found(layouts, paths._replace(folders=folders), trees, options, faults))


def _not_found(
    layouts: Mapping[str, Layout],
    paths: SearchPaths,
    trees: Sequence[FileTree],
    options: Mapping[str, str],
    faults: Sequence[str],
) -> str:
    known = "; ".join(f"{name}: {layout.describe(options)}" for name, layout in layouts.items())
    root, named = trees[0].root, [folder for folder in paths.folders if folder]
    below = f"a folder or zip in {root} called {' or '.join(named)}" if named else ""
    where = " or ".join(filter(None, [f"{root} itself" if "" in paths.folders else "", below]))
    chosen = ", ".join(f"{key}={value}" for key, value in options.items())
    what = f"{paths.option} ({chosen})" if chosen else paths.option
    elsewhere = f" (images also in {paths.images_root})" if _is_given(paths.images_root) else ""
    sentences = [
        f"{what} is not found.",
        *dict.fromkeys(faults),
        f"Looked for, in {where}{elsewhere}: {known}.",
        f"Found: {_image_folders(trees)}.",
        path_advice(paths.key),
    ]
    return " ".join(sentences)


def _image_folders(trees: Sequence[FileTree]) -> str:
    folders: dict[str, list[str]] = {}
    for tree in trees:
        for file in tree.pictures:
            folder, _, name = file.rpartition("/")
            where = tree.location(folder) if folder else str(tree.root)
            folders.setdefault(where, []).append(name)
    if not folders:
        return "no images"
    listed = [f"{folder} ({len(names)} such as {names[0]})" for folder, names in folders.items()]
    more = f" and {len(listed) - _LISTED} more folders" if len(listed) > _LISTED else ""
    return f"images in {', '.join(listed[:_LISTED])}{more}"


def _trees_to_search(
    trees: list[FileTree], paths: SearchPaths, folders: Sequence[str], faults: list[str]
) -> Iterator[tuple[list[FileTree], list[FileTree]]]:
    """Yield trees for images and for label maps, nearest first; the needless is never opened.

    Adds to `trees` and to `faults` what it finds on the way.
    """
    yield trees, trees
    trees += _archives(trees[0].root, folders, faults)
    yield trees, trees
    if _is_given(paths.images_root):
        option = f"{paths.option}.images_root"
        advice = f"Type {option}=/path/to/images, or correct the paths.… it is taken from."
        second = existing_folder(paths.images_root, option, advice, zips=True)
        yield [*trees, FileTree(second), *_archives(second, folders, faults)], trees


def _archives(root: Path, folders: Sequence[str], faults: list[str]) -> list[FileTree]:
    """Open those in a folder, or in one of `folders` in it, that can be read.

    What is wrong with the others becomes a fault.
    """
    inside = sorted(root.iterdir()) if root.is_dir() else []
    for folder in [path for path in inside if path.name.lower() in folders and path.is_dir()]:
        inside += sorted(folder.glob("*.zip"))
    readable = []
    for path in inside:
        if path.suffix.lower() == ".zip" and path.is_file() and not path.name.startswith("."):
            archive = FileTree(path, path.stem)
            try:
                _ = archive.pictures
            except DataError as error:
                faults.append(str(error))
            else:
                readable.append(archive)
    return readable


def _is_given(root: str | Path | None) -> bool:
    return root is not None and bool(str(root).strip())
