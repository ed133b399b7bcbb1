"""Builds the report's page: one file with its style and script inside, that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from eomt_exp.report.html.tags import Html, joined, tag

# The browser itself refuses whatever would leave this file.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


class Section(NamedTuple):
    """Makes a chapter, with a line in the table of contents."""

    anchor: str
    title: str
    body: Html


def page(
    title: str,
    lead: str,
    notes: Sequence[str],
    warnings: Sequence[str],
    sections: Sequence[Section],
) -> str:
    """Write a document; what makes its numbers untrustworthy comes before all of them."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", _inline("page.css")),
    )
    main = tag(
        "main",
        tag(
            "header",
            tag("h1", title),
            tag("p", lead, class_="lead"),
            *(tag("p", note, class_="note") for note in notes),
            _warnings(warnings),
        ),
        *(tag("section", tag("h2", s.title), s.body, id=s.anchor) for s in sections),
    )
    layout = tag("div", tag("div", _contents(sections), class_="side"), main, class_="layout")
    body = tag("body", layout, tag("script", _inline("page.js")))
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def _inline(name: str) -> Html:
    return Html(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _warnings(warnings: Sequence[str]) -> Html | None:
    if not warnings:
        return None
    items = [tag("li", warning) for warning in warnings]
    lead = tag("strong", "These numbers are not to be trusted as they stand:")
    return tag("div", lead, tag("ul", *items), class_="warnings", role="alert")


def _contents(sections: Sequence[Section]) -> Html:
    links = [tag("li", tag("a", s.title, href=f"#{s.anchor}")) for s in sections]
    return tag("nav", tag("ol", *links), aria_label="contents")


def details(summary: str, *inside: object) -> Html:
    """Fold what few readers need; it opens on a click."""
    return tag("details", tag("summary", summary), *inside)


def part(title: str, *inside: Html | None) -> Html | None:
    """Put a heading over what there is; None where there is nothing."""
    there = [item for item in inside if item is not None]
    return joined([tag("h3", title), *there]) if there else None
