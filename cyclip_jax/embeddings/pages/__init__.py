"""The templates and the style of a collection's pages."""

import pathlib

PAGES = pathlib.Path(__file__).parent


def style_sheet() -> str:
    """The style of the report's pages, and of these ones' own parts."""
    report = PAGES.parents[1] / "report" / "page.css"
    return report.read_text() + (PAGES / "page.css").read_text()
