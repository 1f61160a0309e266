"""The templates and the style of a collection's pages."""

import pathlib

from cyclip_jax.page import document

PAGES = pathlib.Path(__file__).parent


def style_sheet() -> str:
    """The style that all pages share, and that of these ones' own parts."""
    return document.style_sheet() + (PAGES / "page.css").read_text()
