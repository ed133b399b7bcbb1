"""Finds conf/ and sweeps/, and reads paths as people type them."""

from __future__ import annotations

import os
import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_PACKAGED = _PACKAGE / "_assets"  # in an installed wheel


def asset_dir(name: str) -> Path:
    """Return the folder conf or sweeps: the copy in an installed wheel, else the checkout's."""
    return (_PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent) / name


def ui_steps(uri: str, page: str = "") -> str:
    """Return how to come to MLflow's `page`: what serves the file at `uri`, then the address.

    A server does so itself: of it, the address alone. Only a checkout has a Makefile.
    """
    installed = f"mlflow ui --backend-store-uri '{uri}' --host 127.0.0.1"
    command = installed if _PACKAGED.is_dir() else "make ui"
    return ", then ".join(filter(None, (command if uri.startswith("sqlite") else "", page)))


def at_home(text: str) -> str:
    """Return a path, or an address such as sqlite:///~/x.db, with the home directory for its ~."""
    scheme = re.match(r"\w[\w+]*:/{2,3}(?=~)|", text)[0]  # type: ignore[index]
    path = text[len(scheme) :]
    return scheme + os.path.expanduser(path) if re.match("~(/|$)", path) else text


def absolute(path: str) -> str:
    """Return the path from the root of the file system on."""
    return str(Path(at_home(path)).resolve())


def database_address(folder: str) -> str:
    """Return SQLAlchemy's address of the file mlflow.db in a folder of any name."""
    path = absolute(folder) + "/mlflow.db"
    if not {"%", "?"} & {*path}:
        return f"sqlite:///{path}"
    # How these are written differs between 2.0, which cannot write ?, and 2.1.
    from sqlalchemy import URL

    return URL.create("sqlite", database=path).render_as_string()
