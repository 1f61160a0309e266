"""A page of sections, as one file."""

import pathlib
import re
import string
from collections.abc import Mapping

from cyclip_jax.page.markup import Html, element, join

_HERE = pathlib.Path(__file__).parent


def style_sheet() -> str:
    """The style that all pages share."""
    return (_HERE / "page.css").read_text()


def document(title: str, sections: Mapping[str, Html | None]) -> str:
    """The HTML text of a page; it holds its style and its script, and loads nothing.

    Args:
      title: of the page.
      sections: {title: content}; a section without content is left out.
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
            *(
                element("section", element("h2", name), content, id=_anchor(name))
                for name, content in shown.items()
            ),
        ),
    )
    return string.Template((_HERE / "page.html").read_text()).substitute(
        title=element("title", title)[len("<title>") : -len("</title>")],
        style=style_sheet(),
        body=body,
        script=(_HERE / "page.js").read_text(),
    )


def _anchor(title):
    return re.sub(r"\W+", "-", title.lower())
