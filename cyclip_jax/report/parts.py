"""What several sections of the page need: which numbers there are, how they are written, drawn."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.evals.metric import Better, Metric
from cyclip_jax.evals.metric_words import in_words
from cyclip_jax.page.markup import Cell, Html, breakable, element, join, told
from cyclip_jax.report.runs import Group, Run, read_json
from cyclip_jax.report.style import Chart, Drawing, drawn, for_paper, inline

ARROWS = {"more": "↑", "less": "↓"}  # to the better values of a metric
ARROWS_MEAN = "of a metric with ↑ more is better, of one with ↓ less"
_HEADLINES = 14  # of an evaluation; all its numbers are in the folded table


class Drawings:
    """Collects what the sections draw.

    Args:
      paper: (name, file format) of a figure that is wanted alone, as a publisher takes it; then
        nothing else is drawn. None draws all for the page.

    Attributes:
      drawings: {name of the file: Drawing}.
      main: names of those that tell most.
      names: of all figures there are.
      file: the bytes of the one that was wanted alone.
    """

    def __init__(self, paper: tuple[str, str] | None = None) -> None:
        self.drawings: dict[str, Drawing] = {}
        self.main: list[str] = []
        self.names: list[str] = []
        self.file: bytes | None = None
        self._paper = paper

    def add(
        self,
        name: str,
        figure: Chart,
        caption: str,
        *,
        main: bool = False,
        wide: Chart | None = None,
    ) -> Html:
        """Draws a Chart; returns its place in the page.

        Args:
          name: for its files; what a file system may not like is left out.
          figure: the Chart.
          caption: how to read it.
          main: whether it goes to TensorBoard, too.
          wide: the same for the whole width of a page, where there is room.
        """
        name = re.sub(r"[^\w.@-]+", "_", name)
        while name in self.names:
            name += "_"
        label = f"figure-{len(self.names) + 1}-caption"
        if wide is None:
            content = [self._drawn(name, figure, label, "chart")]
        else:
            content = [
                self._drawn(f"{name}_wide", wide, label, "chart wide"),
                self._drawn(name, figure, label, "chart narrow"),
            ]
        if main:
            self.main.append(name)
        caption_ = element("figcaption", caption, id=label)
        return element("figure", *content, caption_, class_=None if wide is None else "full")

    def _drawn(self, name, chart, label, kind):
        self.names.append(name)
        if self._paper is not None:
            if name == self._paper[0]:
                self.file = for_paper(chart, self._paper[1])
            return Html()
        self.drawings[name] = drawing = drawn(chart)
        svg = inline(drawing.svg, f"f{len(self.names)}")
        svg = svg.replace("<svg", f'<svg role="img" aria-labelledby="{label}"', 1)
        known = {"data_spots": drawing.spots, "data_grids": drawing.grids}
        data = {name: json.dumps(told, ensure_ascii=False) for name, told in known.items() if told}
        return element("div", Html(svg), class_=kind, **data)


def evaluations_of(groups: Sequence[Group]) -> list[str]:
    """Names of the evaluations of any run of these groups."""
    return list(dict.fromkeys(e for g in groups for run in g.runs for e in run.evaluations))


def metric_names(groups: Sequence[Group], evaluation: str) -> list[str]:
    """Names of the metrics that any run of these groups has of an evaluation."""
    runs = [run for group in groups for run in group.runs if evaluation in run.evaluations]
    return list(dict.fromkeys(name for run in runs for name in run.evaluations[evaluation]))


def headlines_of(groups: Sequence[Group], evaluation: str) -> list[tuple[str, Metric]]:
    """The headlines of an evaluation with their names, shares first, at most _HEADLINES.

    Each is the metric of the first group that has it.
    """
    found = []
    for name in metric_names(groups, evaluation):
        known = (group.metric(evaluation, name) for group in groups)
        metric = next((metric for metric in known if metric is not None), None)
        if metric is not None and metric.is_headline:
            found.append((name, metric))
    return sorted(found, key=lambda named: not named[1].is_share)[:_HEADLINES]


def detailed(
    groups: Sequence[Group], file_name: str, *, every_run: bool = False
) -> list[tuple[Group, Run, str, epath.Path]]:
    """(group, run, evaluation, path) of the groups' files of details that are called so.

    Of a group's evaluation it is the file of the first run that has one; `every_run` is for all.
    """
    found = []
    for group in groups:
        seen = set()
        for run in group.runs:
            for evaluation, directory in run.details.items():
                path = directory / file_name
                if path.exists() and (every_run or evaluation not in seen):
                    seen.add(evaluation)
                    found.append((group, run, evaluation, path))
    return found


def read_rows(path: epath.Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a JSON list; UserError where one lacks one of these names."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a list")
    for row in rows:
        require(row, names, path)
    return rows


def require(content: Any, names: Sequence[str], path: epath.Path) -> None:
    """Raises UserError where the content of a file is no object with these names."""
    missing = [n for n in names if not isinstance(content, dict) or n not in content]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}; `python -m cyclip_jax.evaluate` writes it anew"
        )


def require_shapes(path: epath.Path, *arrays: np.ndarray, rows: int, columns: int) -> None:
    """Raises UserError where an array of a file is not [rows, columns]."""
    for array in arrays:
        if array.shape != (rows, columns):
            raise UserError(f"{path} has an array of {array.shape} for one of {(rows, columns)}")


def metric_cell(metric: Metric | None) -> Cell:
    """The cell of a metric: its value and interval; empty where there is none."""
    if metric is None:
        return Cell("", None)
    number = metric.value if metric.is_finite else None
    return Cell(metric.with_interval(), number, metric.bounds)


def named(metric: str, evaluation: str, better: Better = None) -> Html:
    """The name of a metric with that of its evaluation, and with an arrow to what is better.

    What it means is told beside it.
    """
    words = in_words(metric)
    arrow = "" if better is None else f" {ARROWS[better]}"
    name = breakable(metric)
    if words.meaning:
        name = told(name, f"{capital(words.title)}. {words.meaning}.")
    return join(name, arrow, " ", element("span", evaluation, class_="of"))


def named_in_words(metric: str, evaluation: str, better: Better = None) -> Html:
    """The same in words; its name as files have it is told beside it with what it means."""
    title, meaning = in_words(metric)
    arrow = "" if better is None else f" {ARROWS[better]}"
    ending = "" if better is None else f" {better.capitalize()} is better."
    text = f"{evaluation}/{metric}: {meaning}.{ending}" if meaning else f"{evaluation}/{metric}"
    return join(told(capital(title), text), arrow, " ", element("span", evaluation, class_="of"))


def capital(text: str) -> str:
    """Text that begins with a capital letter; its others stay as they are."""
    return text[:1].upper() + text[1:]


def run_names(groups: Sequence[Group], of: Sequence[Run] | None = None) -> list[str]:
    """A name for each run, its group's and its directory's, or for the runs `of` alone."""
    runs = [(group, run) for group in groups for run in group.runs if of is None or run in of]
    return [g.name if g.name == run.name else f"{g.name}: {run.name}" for g, run in runs]


def grid(content: Sequence[Html]) -> Html | None:
    """The figures of `content` beside one another; None without any."""
    return element("div", *content, class_="grid") if content else None
