"""A page of sections, as one file."""

import pathlib
import re
import string
from collections.abc import Collection, Mapping

from cyclip_jax.page.markup import Html, element, join

_HERE = pathlib.Path(__file__).parent


def style_sheet() -> str:
    """The style that all pages share."""
    return (_HERE / "page.css").read_text()


def document(
    title: str,
    sections: Mapping[str, Html | None],
    *,
    lead: Html | None = None,
    folded: Collection[str] = (),
) -> str:
    """The HTML text of a page; it holds its style and its script, and loads nothing.

    Args:
      title: of the page.
      sections: {title: content}; a section without content is left out.
      lead: what stands before all sections.
      folded: titles of the sections that are opened by a click.
    """
    shown = {name: content for name, content in sections.items() if content is not None}
    links = [element("li", element("a", name, href=f"#{_anchor(name)}")) for name in shown]
    body = join(
        element(
            "header",
            element("h1", title),
            element("nav", element("ul", *links), aria_label="Sections"),
        ),
        element(
            "main",
            lead or "",
            *(_section(name, content, name in folded) for name, content in shown.items()),
        ),
    )
    return string.Template((_HERE / "page.html").read_text()).substitute(
        title=element("title", title)[len("<title>") : -len("</title>")],
        style=style_sheet(),
        body=body,
        script=(_HERE / "page.js").read_text(),
    )


def _section(name, content, is_folded):
    head = element("h2", name)
    if is_folded:
        content = element("details", element("summary", head), content)
        return element("section", content, id=_anchor(name), class_="folded")
    return element("section", head, content, id=_anchor(name))


def _anchor(title):
    return re.sub(r"\W+", "-", title.lower())
