"""Results as text: a table to look at, JSON and CSV for programs, LaTeX for a paper."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping

from cyclip_jax.evals.metric import Metric, Unit

Results = Mapping[str, Mapping[str, Metric]]  # {evaluation: {name: Metric}}

_ARROWS = {"more": "↑", "less": "↓", None: ""}
_LATEX_ARROWS = {"more": r"$\uparrow$", "less": r"$\downarrow$", None: ""}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # which may otherwise be an argument of the line's end before it
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_COLUMNS = ("evaluation", "metric", "value", "ci_low", "ci_high", "chance", "unit", "better")


def as_table(results: Results) -> str:
    """A line for each metric: its value, its 95 % interval, chance, and what is better."""
    rows = [("", "", "value", "95 % interval", "chance")]
    for evaluation, name, metric in _in_order(results):
        rows.append((evaluation, f"{name} {_ARROWS[metric.better]}".strip(), *_cells(metric)))
    told = {metric.better for metrics in results.values() for metric in metrics.values()}
    notes = [f"{_ARROWS[better]} {better} is better" for better in ("more", "less")]
    shown = [note for note in notes if note.split()[1] in told]
    return "\n".join([_aligned(rows), *([", ".join(shown)] if shown else [])])


def as_json(results: Results) -> str:
    """{evaluation: {metric: {"value", "interval", "chance", "unit", "better"}}}.

    What is not finite is null, and so are an interval and a chance that there are not.
    """
    content: dict[str, dict[str, object]] = {}
    for evaluation, name, metric in _in_order(results):
        content.setdefault(evaluation, {})[name] = {
            "value": _finite(metric.value),
            "interval": None if metric.bounds is None else list(metric.bounds),
            "chance": _finite(metric.chance),
            "unit": metric.unit.value,
            "better": metric.better,
        }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def as_csv(results: Results) -> str:
    """A row for each metric, with all digits; what is not there or not finite is empty."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for evaluation, name, metric in _in_order(results):
        numbers = (metric.value, *(metric.bounds or (None, None)), metric.chance)
        told = ["" if _finite(number) is None else number for number in numbers]
        rows.writerow([evaluation, name, *told, metric.unit.value, metric.better or ""])
    return file.getvalue().removesuffix("\n")


def as_latex(results: Results) -> str:
    r"""A table for a document that has \usepackage{booktabs}."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{llrrr}",
        r"\toprule",
        r" & & value & 95\,\% interval & chance \\",
    ]
    before = None
    for evaluation, name, metric in _in_order(results):
        if evaluation != before:
            lines.append(r"\midrule")
        told = "" if evaluation == before else in_latex(evaluation)
        arrow = _LATEX_ARROWS[metric.better]
        named = f"{in_latex(name)} {arrow}".strip()
        cells = [_minus(cell.replace("%", r"\%")) for cell in _cells(metric)]
        lines.append(" & ".join([told, named, *cells]) + r" \\")
        before = evaluation
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


FORMATS: dict[str, Callable[[Results], str]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
    "latex": as_latex,
}
ENDINGS = {".txt": "table", ".json": "json", ".csv": "csv", ".tex": "latex"}


def in_latex(text: str) -> str:
    """Text in which LaTeX reads no command; what breaks a line is a blank."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _minus(cell):
    """A cell whose minus signs are no hyphens."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", cell)


def _in_order(results):
    """(evaluation, name, Metric) in the order of the evaluations: shares, numbers, losses, counts.

    Within each of these the order is the evaluator's own.
    """
    ranks = {Unit.SHARE: 0, Unit.LOSS: 2, Unit.COUNT: 3}
    for evaluation, metrics in results.items():
        for name in sorted(metrics, key=lambda name: ranks.get(metrics[name].unit, 1)):
            yield evaluation, name, metrics[name]


def _cells(metric):
    """(value, interval, chance) as a person reads them; "" where there is none."""
    value, _, bounds = metric.with_interval().partition(" [")
    if not metric.is_finite:
        value, bounds = metric.number(), ""
    chance = "" if metric.chance is None else f"{metric.chance:.2%}"
    return value, f"[{bounds}" if bounds else "", chance


def _finite(number):
    return None if number is None or not math.isfinite(number) else float(number)


def _aligned(rows):
    """Lines of columns: names on the left, numbers on the right; a name stands once."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines, before = [], None
    for evaluation, name, *cells in rows:
        told = "" if evaluation == before else evaluation
        numbers = [f"{cell:>{width}}" for cell, width in zip(cells, widths[2:], strict=True)]
        line = [f"{told:{widths[0]}}", f"{name:{widths[1]}}", *numbers]
        lines.append("  ".join(line).rstrip())
        before = evaluation
    return "\n".join(lines)
