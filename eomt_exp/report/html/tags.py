"""Builds HTML: what is not markup already is escaped, so that no name can be."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID_TAGS = ("img", "meta")


class Html(str):
    """Marks text as markup; `tag` writes it as it is and escapes everything else."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Write <name attributes>children</name>.

    class_ becomes class and data_v data-v; attributes that are None or False are left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID_TAGS:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(children)}</{name}>")


def joined(parts: Iterable[object]) -> Html:
    """Join the parts; None is nothing."""
    return Html(
        "".join(
            part if isinstance(part, Html) else escape(str(part))
            for part in parts
            if part is not None
        )
    )
