"""Matches files by one line for all of them: "frames/{id}[.labels]/labels_semantic.png"."""

from __future__ import annotations

import re

from eomt_exp.contracts import UserError
from eomt_exp.data.files.decode import IMAGE_SUFFIXES

# A data set is found in the folder given, or up to this many folders below.
_DEPTH = 2
_TOKENS = re.compile(r"(\{id\}|\{folder\}|\*|\[[^\]]*\])")
_ANY_IMAGE = "(?i:" + "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES)) + ")"


class FilePattern:
    """Matches whole names: {id} and {folder} are what an image and its label map share, * is
    anything between slashes, [a|b] is a, b or nothing. Without an ending, every kind of image fits.
    """

    def __init__(self, text: str) -> None:
        """Raise UserError unless {id} is in it exactly once."""
        if text.count("{id}") != 1 or text.count("{folder}") > 1:
            raise UserError(
                f"A layout names {{id}} once and {{folder}} at most once, got {text!r}."
            )
        self.text = text
        body = "".join(map(_regex, _TOKENS.split(text)))
        ending = "" if re.search(_ANY_IMAGE + "$", text) else _ANY_IMAGE
        self._regex = re.compile(f"(?P<base>(?:[^/]+/){{0,{_DEPTH}}}?){body}{ending}")

    def match(self, file: str) -> tuple[str, str] | None:
        """Return the file's base and key, or None where it does not fit.

        The base is the folder that the pattern starts from, "" or ending in /, and the key what
        image and label map have in common: id, or folder/id.
        """
        found = self._regex.fullmatch(file)
        if found is None:
            return None
        parts = found.groupdict()
        return parts["base"], "/".join(filter(None, (parts.get("folder"), parts["id"])))

    def file(self, key: str) -> str:
        """Return a file of that key, for the message that says it is missing: * stays *."""
        folder, _, stem = key.rpartition("/")
        text = re.sub(r"\[[^\]]*\]", "", self.text)
        return text.replace("{id}", stem).replace("{folder}", folder)


def _regex(token: str) -> str:
    if token in ("{id}", "{folder}"):
        return f"(?P<{token[1:-1]}>[^/]+?)"
    if token == "*":
        return "[^/]*?"
    if token.startswith("["):
        return "(?:" + "|".join(map(re.escape, token[1:-1].split("|"))) + ")?"
    return re.escape(token)
