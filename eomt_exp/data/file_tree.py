"""Files below a folder or inside a zip archive, by the same names: some data sets come as zips."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from eomt_exp.contracts import DataError
from eomt_exp.data.image_files import IMAGE_SUFFIXES, natural_key


class FileTree:
    """Read-only; names are relative, with / between folders. Safe in worker processes."""

    def __init__(self, root: Path) -> None:
        """A folder, or a file ending in .zip; DataError for anything else."""
        self.root = root
        self.is_zip = root.is_file() and root.suffix.lower() == ".zip"
        if not self.is_zip and not root.is_dir():
            raise DataError(f"{root} is neither a folder nor a zip archive.")
        # A zip is read by one thread of one process at a time: its handle has one position.
        self._lock, self._owner = threading.Lock(), 0
        self._open: zipfile.ZipFile | None = None

    def files(
        self, under: str = "", suffixes: Collection[str] = IMAGE_SUFFIXES, deep: bool = True
    ) -> list[str]:
        """Names below `under` with one of these endings, numbers in them counted as numbers.

        Hidden files and what macOS adds to archives are left out; `deep=False` looks only at the
        folder itself. Empty where there is no such folder.
        """
        prefix = f"{under.strip('/')}/" if under.strip("/") else ""
        found = [
            name
            for name in self._names
            if name.startswith(prefix)
            and os.path.splitext(name)[1].lower() in suffixes
            and (deep or "/" not in name[len(prefix) :])
        ]
        return sorted(found, key=natural_key)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name, or a folder with a file in it."""
        name = name.strip("/")
        if not self.is_zip:
            return (self.root / name).exists()
        return name in self._name_set or any(n.startswith(f"{name}/") for n in self._names)

    def read(self, name: str) -> bytes:
        """The content; DataError naming the file when there is none or it is damaged."""
        try:
            if not self.is_zip:
                return (self.root / name).read_bytes()
            with self._lock:
                return self._archive().read(name)
        except (OSError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
            raise DataError(f"{self.place(name)} cannot be read: {error}.") from error

    def place(self, name: str) -> str:
        """Where the file is, for messages: "/data/x.zip!left/a.png" inside an archive."""
        return f"{self.root}!{name}" if self.is_zip else str(self.root / name)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]

    @cached_property
    def _names(self) -> list[str]:
        if self.is_zip:
            with self._lock:
                names = [name for name in self._archive().namelist() if not name.endswith("/")]
        else:
            names = [
                f"{os.path.relpath(folder, self.root)}/{file}".replace(os.sep, "/")
                for folder, _, files in os.walk(self.root, followlinks=True)
                for file in files
            ]
            names = [name.removeprefix("./") for name in names]
        return [n for n in names if not any(p.startswith((".", "__MACOSX")) for p in n.split("/"))]

    @cached_property
    def _name_set(self) -> frozenset[str]:
        return frozenset(self._names)

    def _archive(self) -> zipfile.ZipFile:
        """This process's own handle: a forked one would share its position with the parent."""
        if self._open is None or self._owner != os.getpid():
            try:
                self._open = zipfile.ZipFile(self.root)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.root} cannot be read as a zip archive: {error}.") from error
            self._owner = os.getpid()
        return self._open
