"""One look for all figures, and how a figure is written: PNG, SVG, and SVG within the page.

A figure is drawn once, in the light colours. The page takes the same SVG with each of these
colours as a CSS variable, whose value page.css gives for light and for dark.
"""

import contextlib
import dataclasses
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.figure import Figure

WIDTH = 4.5  # inches; 324 px on the page, so that text keeps its size on a phone
INK, FAINT, PAPER = "#1f2328", "#767d86", "#fefefe"
# Okabe and Ito (2008): told apart without colour vision; the most different first.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "X")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (9, 2)))
HATCHES = ("", "///", "\\\\\\", "xx", "---", "|||")  # no dots: hundreds of circles in the SVG
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


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure as files hold it: `svg`, text; `png`, bytes."""

    svg: str
    png: bytes


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Everything is drawn within this; a sign that the font lacks is a box in the PNG alone."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def blank(height: float, width: float = WIDTH) -> Figure:
    """An empty Figure of a width and height in inches, without pyplot's global state."""
    return Figure(figsize=(width, height), layout="constrained")


def drawn(figure: Figure) -> Drawing:
    """A Figure as a Drawing; its layout is computed once for both."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    svg, png = io.StringIO(), io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(svg, format="svg", metadata=nothing, dpi=150)
    figure.savefig(png, format="png", dpi=160, pil_kwargs={"compress_level": 4})
    return Drawing(svg.getvalue(), png.getvalue())


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
