"""Finding a benchmark in what the user pointed at: its folder, one above or its zip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from eomt_exp.contracts import DataError
from eomt_exp.data.anomaly_layouts import Found, Layout, Place, filled
from eomt_exp.data.file_tree import FileTree
from eomt_exp.data.image_files import existing_folder

_LISTED = 8  # folders of what was found instead; more would bury the message


class Home(NamedTuple):
    """Where a benchmark is looked for."""

    root: str | Path | None
    images_root: str | Path | None  # a second place for images: some labels come without them
    folders: Sequence[str]  # what the benchmark's own folder may be called; "" for the root itself
    key: str  # of paths
    option: str  # "benchmark.x", for messages


def find_layout(layouts: Mapping[str, Layout], home: Home, options: Mapping[str, str]) -> Found:
    """The first layout that fits the folder or archive, else one that fits archives inside it.

    DataError says which layouts there are and what was found instead.
    """
    root = existing_folder(home.root, f"benchmark={home.key}", key=home.key, zips=True)
    folders = [filled(folder, options).lower() for folder in home.folders]
    for images_in, labels_in in _rounds(root, home.images_root):
        for layout in layouts.values():
            found = layout.find(images_in, labels_in, folders, options)
            if found is not None:
                return found
    raise DataError(_not_found(layouts, home, root, options))


def _not_found(
    layouts: Mapping[str, Layout], home: Home, root: Path, options: Mapping[str, str]
) -> str:
    known = "; ".join(f"{name}: {layout.describe(options)}" for name, layout in layouts.items())
    named = [folder for folder in home.folders if folder]
    below = f"a folder or zip in {root} called {' or '.join(named)}" if named else ""
    where = " or ".join(filter(None, [f"{root} itself" if "" in home.folders else "", below]))
    chosen = ", ".join(f"{key}={value}" for key, value in options.items())
    what = f"{home.option} ({chosen})" if chosen else home.option
    elsewhere = f" (images also in {home.images_root})" if home.images_root else ""
    return (
        f"{what} is not found. Looked for, in {where}{elsewhere}: {known}. "
        f"Found: {_content(root)}. Type paths.{home.key}=/path/to/{home.key}."
    )


def _content(root: Path) -> str:
    """What images are there, by folder."""
    folders: dict[str, list[str]] = {}
    for place in _places(root):
        for file in place.files:
            folders.setdefault(str(PurePosixPath(place.tree.place(file)).parent), []).append(file)
    if not folders:
        return "no images"
    listed = [
        f"{folder} ({len(files)} such as {PurePosixPath(files[0]).name})"
        for folder, files in list(folders.items())[:_LISTED]
    ]
    more = f" and {len(folders) - _LISTED} more folders" if len(folders) > _LISTED else ""
    return f"images in {', '.join(listed)}{more}"


def _rounds(
    root: Path, images_root: str | Path | None
) -> Iterator[tuple[list[Place], list[Place]]]:
    """Places for images and for label maps, nearest first: what is not needed is not opened."""
    here = [Place(FileTree(root))]
    yield here, here
    here = _places(root)
    yield here, here
    if images_root is not None:
        yield [*here, *_places(Path(images_root).expanduser())], here


def _places(root: Path) -> list[Place]:
    """The place itself and, where it is a folder, the archives in it."""
    inside = sorted(root.iterdir()) if root.is_dir() else []
    archives = [p for p in inside if p.suffix.lower() == ".zip" and not p.name.startswith(".")]
    return [Place(FileTree(root)), *(Place(FileTree(p), p.stem) for p in archives)]
