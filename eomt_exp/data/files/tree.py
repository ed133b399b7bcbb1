"""Reads files below a folder or inside a zip archive by the same names: many sets come as zips."""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from eomt_exp.contracts import DataError
from eomt_exp.data.files.decode import IMAGE_SUFFIXES, natural_key

_DEPTH = 10  # folders below each other that are looked into; the deepest data set has six
# How names begin of hidden files, of what macOS adds, and at the top of a disk of a folder that
# only root may read.
_HIDDEN = (".", "__MACOSX", "lost+found")
# A damaged member breaks off, unpacks to nonsense or claims a method of packing that is none.
_UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class FileTree:
    """Lists and reads files by relative names, with / between folders; safe in worker processes."""

    def __init__(self, root: Path, name: str = "") -> None:
        """Take a folder, or a file ending in .zip.

        `name` is that of an archive which counts as a folder of what the user pointed at.
        """
        self.root, self.name = root, name
        self.is_zip = root.is_file()
        # A zip is read by one thread of one process at a time: its handle has one position.
        self._lock, self._owner = threading.Lock(), 0
        self._open: zipfile.ZipFile | None = None

    @cached_property
    def pictures(self) -> list[str]:
        """Lists images and label maps by name; numbers sort as numbers.

        Hidden files and what macOS adds to archives are left out.
        """
        found = (n for n in self._names if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES)
        return sorted(found, key=natural_key)

    def has(self, name: str) -> bool:
        """Return whether there is such a file; all are listed once, so that many can be asked."""
        return name in self._names

    def read(self, name: str) -> bytes:
        """Return the content; DataError names the file when there is none or it is damaged."""
        try:
            if not self.is_zip:
                return (self.root / name).read_bytes()
            stored = self._names.get(name, name)
            with self._lock:
                return self._archive().read(stored)
        except _UNREADABLE as error:
            raise DataError(f"{self.location(name)} cannot be read: {error}.") from error

    def location(self, name: str) -> str:
        """Say where the file is, for messages: "/data/x.zip!left/a.png" inside an archive."""
        return f"{self.root}!{name}" if self.is_zip else str(self.root / name)

    def __reduce__(self) -> tuple[type[FileTree], tuple[Path, str]]:
        return FileTree, (self.root, self.name)  # without lock, handle and names

    @cached_property
    def _names(self) -> dict[str, str]:
        """Maps our name to the one stored, which in archives made on Windows has backslashes."""
        if self.is_zip:
            with self._lock:
                stored = self._archive().namelist()
            names = {name.replace("\\", "/").removeprefix("./"): name for name in stored}
        else:
            names = {name: name for name in _walk(self.root)}
        return {
            name: own
            for name, own in names.items()
            if not (name.endswith("/") or any(p.startswith(_HIDDEN) for p in name.split("/")))
        }

    def _archive(self) -> zipfile.ZipFile:
        """Return this process's own handle: a forked one shares its position with the parent."""
        if self._open is None or self._owner != os.getpid():
            try:
                self._open = zipfile.ZipFile(self.root)
            except (OSError, NotImplementedError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.root} cannot be read as a zip archive: {error}.") from error
            self._owner = os.getpid()
        return self._open


def _walk(root: Path) -> Iterator[str]:
    """Yield all files below a folder; DataError for a folder inside that cannot be read."""
    for folder, below, files in os.walk(root, followlinks=True, onerror=_refuse):
        here = Path(folder).relative_to(root)
        prefix = f"{here.as_posix()}/" if here.parts else ""
        yield from (prefix + file for file in files)
        is_deep = len(here.parts) >= _DEPTH
        below[:] = [] if is_deep else [name for name in below if _is_entered(Path(folder, name))]


def _is_entered(folder: Path) -> bool:
    """Leave out hidden folders and links back to a folder on the way to them: those never end."""
    if folder.name.startswith(_HIDDEN):
        return False
    return not (folder.is_symlink() and any(folder.samefile(above) for above in folder.parents))


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename} cannot be read, and what is in it would be missing: {error.strerror}."
    ) from error
