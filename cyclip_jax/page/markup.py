"""HTML whose text is escaped unless it was made here."""

import dataclasses
import html
from collections.abc import Iterable, Sequence
from typing import Any


class Html(str):
    """Text that is markup already; any other string is escaped when it becomes a part."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table that is sorted by a number, not by its text.

    Attributes:
      text: that is shown.
      number: with all its digits; None where there is none.
      bounds: the ends (low, high) of its interval, which a copy for programs has too.
    """

    text: str
    number: float | None
    bounds: tuple[float, float] | None = None


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """`<tag attribute="…">children</tag>`.

    Args:
      tag: its name.
      *children: Html, or text, which is escaped.
      **attributes: `class_` and `aria_label` stand for class and aria-label; True has no value, and
        None leaves the attribute out.
    """
    given = "".join(
        f" {name.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{given}>{join(*children)}</{tag}>")


def join(*parts: Any) -> Html:
    """Parts one after another; text is escaped."""
    return Html("".join(p if isinstance(p, Html) else html.escape(str(p)) for p in parts))


def image(jpeg: str, alt: str) -> Html:
    """A picture: its JPEG file in base64, and what it shows in words."""
    source = html.escape(f"data:image/jpeg;base64,{jpeg}")
    return Html(f'<img src="{source}" alt="{html.escape(alt)}">')


def table(caption: str, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table that scrolls in its own box and is sorted by the buttons of its head.

    Args:
      caption: what it shows.
      columns: names.
      rows: lists of text, numbers or Cell; the first of each is the row's head.
    """
    head = [
        element("th", element("button", column, type="button"), scope="col", aria_sort="none")
        for column in columns
    ]
    body = [
        element("tr", _cell(row[0], "th", scope="row"), *(_cell(cell, "td") for cell in row[1:]))
        for row in rows
    ]
    content = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", content, class_="box", tabindex="0", role="region", aria_label=caption)


def _cell(cell, tag, **attributes):
    if isinstance(cell, Cell):
        number = "" if cell.number is None else repr(float(cell.number))
        low, high = (None, None) if cell.bounds is None else map(repr, map(float, cell.bounds))
        known = {"class_": "number", "data_sort": number, "data_low": low, "data_high": high}
        return element(tag, cell.text, **known, **attributes)
    return element(tag, cell, **attributes)


def facts(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table of facts that are read and not sorted; what is the same in a row stands once.

    Args:
      caption: what it shows.
      columns: names of what the facts are about; with a single one no name is shown.
      rows: the name of a fact, and for each column what is true of it.
    """
    lines = []
    for name, *cells in rows:
        is_common = len(cells) > 1 and all(cell == cells[0] for cell in cells)
        shown = [element("td", cells[0], colspan=len(cells))] if is_common else None
        lines.append(
            element(
                "tr",
                element("th", name, scope="row"),
                *(shown or [element("td", cell) for cell in cells]),
            )
        )
    head = [element("th", name, scope="col") for name in ("", *columns)]
    content = element(
        "table",
        element("caption", element("span", caption)),
        *([element("thead", element("tr", *head))] if len(columns) > 1 else []),
        element("tbody", *lines),
    )
    return element("div", content, class_="facts", tabindex="0", role="region", aria_label=caption)


def told(text: str | Html, meaning: str) -> Html:
    """Text whose meaning is told where the pointer or the keyboard comes to it."""
    return element("span", text, class_="told", tabindex="0", data_tip=meaning)


def breakable(name: str) -> Html:
    """A name that may break behind its underscores."""
    return Html(html.escape(name).replace("_", "_<wbr>"))


def folded(summary: str, *content: Any) -> Html:
    """What is opened by a click on its summary."""
    return element("details", element("summary", summary), *content)
