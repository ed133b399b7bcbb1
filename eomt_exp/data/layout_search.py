"""Finding a benchmark in what the user pointed at: its folder, one above or its zip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from eomt_exp.contracts import DataError
from eomt_exp.data.anomaly_layouts import Found, Layout, Place, filled
from eomt_exp.data.files.decode import existing_folder
from eomt_exp.data.files.tree import FileTree

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

    DataError says which layouts there are and what was found instead. Archives that cannot be read
    may be other people's: they are named only then.
    """
    root = existing_folder(home.root, f"benchmark={home.key}", key=home.key, zips=True)
    folders = [filled(folder, options) for folder in home.folders]
    lower = [folder.lower() for folder in folders]
    here = [Place(FileTree(root))]
    faults: list[str] = []
    for images_in, labels_in in _rounds(here, home, faults):
        for layout in layouts.values():
            found = layout.find(images_in, labels_in, lower, options)
            if found is not None and found.pairs:
                return found
            if found is not None:
                faults.append(found.lack)
    raise DataError(_not_found(layouts, home._replace(folders=folders), here, options, faults))


def _not_found(
    layouts: Mapping[str, Layout],
    home: Home,
    places: Sequence[Place],
    options: Mapping[str, str],
    faults: Sequence[str],
) -> str:
    known = "; ".join(f"{name}: {layout.describe(options)}" for name, layout in layouts.items())
    root, named = places[0].tree.root, [folder for folder in home.folders if folder]
    below = f"a folder or zip in {root} called {' or '.join(named)}" if named else ""
    where = " or ".join(filter(None, [f"{root} itself" if "" in home.folders else "", below]))
    chosen = ", ".join(f"{key}={value}" for key, value in options.items())
    what = f"{home.option} ({chosen})" if chosen else home.option
    elsewhere = f" (images also in {home.images_root})" if _is_given(home.images_root) else ""
    sentences = [
        f"{what} is not found.",
        *dict.fromkeys(faults),
        f"Looked for, in {where}{elsewhere}: {known}.",
        f"Found: {_content(places)}. Type paths.{home.key}=/path/to/{home.key}.",
    ]
    return " ".join(sentences)


def _content(places: Sequence[Place]) -> str:
    """What images are there, by folder."""
    folders: dict[str, list[str]] = {}
    for place in places:
        for file in place.files:
            folder, _, name = file.rpartition("/")
            where = place.tree.place(folder) if folder else str(place.tree.root)
            folders.setdefault(where, []).append(name)
    if not folders:
        return "no images"
    listed = [
        f"{folder} ({len(names)} such as {names[0]})"
        for folder, names in list(folders.items())[:_LISTED]
    ]
    more = f" and {len(folders) - _LISTED} more folders" if len(folders) > _LISTED else ""
    return f"images in {', '.join(listed)}{more}"


def _rounds(
    here: list[Place], home: Home, faults: list[str]
) -> Iterator[tuple[list[Place], list[Place]]]:
    """Places for images and for label maps, nearest first: what is not needed is not opened.

    Adds to `here` and to `faults` what it finds on the way.
    """
    yield here, here
    here += _archives(here[0].tree.root, faults)
    yield here, here
    if _is_given(home.images_root):
        second = _second_root(home)
        yield [*here, Place(FileTree(second)), *_archives(second, faults)], here


def _archives(root: Path, faults: list[str]) -> list[Place]:
    """Those in a folder that can be read; what is wrong with the others becomes a fault."""
    inside = sorted(root.iterdir()) if root.is_dir() else []
    places = []
    for path in inside:
        if path.suffix.lower() == ".zip" and path.is_file() and not path.name.startswith("."):
            place = Place(FileTree(path), path.stem)
            try:
                _ = place.files
            except DataError as error:
                faults.append(str(error))
            else:
                places.append(place)
    return places


def _is_given(root: str | Path | None) -> bool:
    return root is not None and bool(str(root).strip())


def _second_root(home: Home) -> Path:
    root = Path(str(home.images_root)).expanduser()
    if root.is_dir() or (root.is_file() and root.suffix.lower() == ".zip"):
        return root
    raise DataError(
        f"{home.option}.images_root is {root}, which is neither a folder nor a zip archive. Type "
        f"{home.option}.images_root=/path/to/images, or mend the paths.… that it is taken from."
    )
