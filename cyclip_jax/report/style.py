"""One look for all figures, and how a figure is written: PNG, SVG, and SVG within the page.

A figure is drawn once, in the light colours. The page takes the same SVG with each of these
colours as a CSS variable, whose value page.css gives for light and for dark. Beside the SVG it has
what page.js tells of the point under the pointer.
"""

import base64
import contextlib
import dataclasses
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

WIDTH = 4.5  # inches; 324 px on the page, so that text keeps its size on a phone
WIDE = 10.5  # of the whole page, on a screen that is not a phone's
_MOST_SPOTS = 1500  # of a figure: what is told of more is thinned out
_MOST_CELLS = 200 * 200
INK, FAINT, PAPER = "#1f2328", "#767d86", "#fefefe"
# Okabe and Ito (2008): told apart without colour vision; the most different first.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "X")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (9, 2)))
HATCHES = ("", "///", "\\\\\\", "xx", "---", "|||")  # no dots: hundreds of circles in the SVG
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.6g}%")
SEQUENTIAL, DIVERGING = "cividis", "PuOr"
_VARIABLES = {INK: "ink", FAINT: "faint", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "text.parse_math": False,  # names from data may hold a $
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlecolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.borderpad": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.35,
    "hatch.linewidth": 0.8,
    "image.interpolation": "none",
    "svg.fonttype": "none",  # text stays text, which is smaller and can be read out
    "svg.hashsalt": "cyclip_jax",  # the same figure gives the same file
}


class Chart(Figure):
    """A Figure that knows what to tell of its points.

    Attributes:
      spots: [(axes, x, y, text)], in the axes' own coordinates.
      grids: [(axes, values [rows, columns], names of rows, names of columns, how a value is
        written)], of matrices that fill their axes.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.spots: list[tuple[Axes, float, float, str]] = []
        self.grids: list[tuple[Axes, np.ndarray, list[str], list[str], str]] = []

    def tell(self, axes: Axes, x: float, y: float, text: str) -> None:
        """Adds what is told near a point."""
        if np.isfinite([x, y]).all():
            self.spots.append((axes, float(x), float(y), text))

    def tell_cells(
        self,
        axes: Axes,
        values: Float[np.ndarray, "rows columns"],
        rows: list[str],
        columns: list[str],
        form: str,
    ) -> None:
        """Adds what is told of the cells of a matrix; `form` has {row}, {column} and {value}."""
        if values.size <= _MOST_CELLS:
            self.grids.append((axes, values, rows, columns, form))


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure as files hold it, and what is told of its points.

    Attributes:
      svg: text of the file.
      png: bytes of the file.
      spots: [[x, y, text]], in thousandths of the figure's width and height from the upper left.
      grids: of each matrix its "box" [left, top, right, bottom] in the same, its "rows" and
        "columns" by name, "form", and "cells", bytes in base64 from "low" to "high".
    """

    svg: str
    png: bytes
    spots: list[list[Any]]
    grids: list[dict[str, Any]]


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Everything is drawn within this; a sign that the font lacks is a box in the PNG alone."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def blank(height: float, width: float = WIDTH) -> Chart:
    """An empty Chart of a width and height in inches, without pyplot's global state."""
    return Chart(figsize=(width, height), layout="constrained")


def drawn(figure: Chart) -> Drawing:
    """A Chart as a Drawing; its layout is computed once for both files."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    spots, grids = _spots(figure), [_grid(figure, *one) for one in figure.grids]
    svg, png = io.StringIO(), io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(svg, format="svg", metadata=nothing, dpi=150)
    figure.savefig(png, format="png", dpi=160, pil_kwargs={"compress_level": 4})
    return Drawing(svg.getvalue(), png.getvalue(), spots, grids)


def for_paper(figure: Figure, file_format: str) -> bytes:
    """The file of a figure as a publisher takes it: its text is text in an embedded font.

    Args:
      figure: not drawn before.
      file_format: "pdf", "svg" or "png".
    """
    file = io.BytesIO()
    nothing: dict[str, Any] = {
        "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
        "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    }
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # Type 3, the default, is refused by many
        figure.savefig(file, format=file_format, metadata=nothing.get(file_format), dpi=300)
    return file.getvalue()


def _spots(figure):
    every = -(-len(figure.spots) // _MOST_SPOTS) or 1
    found = []
    for axes, x, y, text in figure.spots[::every]:
        place = _thousandths(figure, axes.transData.transform((x, y)))
        found.append([*place, text])
    return found


def _thousandths(figure, pixels):
    x, y = figure.transFigure.inverted().transform(pixels)
    return round(1000 * float(x), 1), round(1000 * (1 - float(y)), 1)


def _grid(figure, axes, values, rows, columns, form):
    box = axes.get_window_extent()
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    steps = np.nan_to_num((values - low) / max(high - low, 1e-12)) * 255
    return {
        "box": [
            *_thousandths(figure, (box.x0, box.y1)),
            *_thousandths(figure, (box.x1, box.y0)),
        ],
        "rows": rows,
        "columns": columns,
        "form": form,
        "low": low,
        "high": high,
        "cells": base64.b64encode(np.rint(steps).astype(np.uint8).tobytes()).decode(),
    }


def inline(svg: str, prefix: str) -> str:
    """An SVG file's text for within an HTML page: colours as variables, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (xmlns(:xlink)?="[^"]*"|version="1\.1")', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)([^)"]+)', rf"\1{prefix}-\2", svg)
    svg = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--font)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def nth(choices: Sequence[Any], number: int) -> Any:
    """One of the choices, which begin anew where they end."""
    return choices[number % len(choices)]


def short(text: object, length: int) -> str:
    """Text of at most so many characters."""
    text = str(text)
    return text if len(text) <= length else text[: length - 1] + "…"
