"""The page of one run or several: read, draw, write."""

import io
import os
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, write_atomically
from cyclip_jax.page.document import document
from cyclip_jax.report.numbers import alarms
from cyclip_jax.report.parts import Drawings
from cyclip_jax.report.runs import group_runs, read_run
from cyclip_jax.report.sections import DRAWN, FOLDED, SECTIONS
from cyclip_jax.report.style import style
from cyclip_jax.workdir.layout import FIGURES, REPORT, TENSORBOARD
from cyclip_jax.workdir.tensorboard import Summaries


def write_report(
    directories: Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str] | None = None,
    tensorboard_step: int | None = None,
) -> epath.Path:
    """Writes the report of runs: one HTML file that needs nothing else, and its figures.

    Figures are written as PNG and SVG into `figures/` of the run; with an output of its own or
    several runs, into `<output's name>_figures/` beside it.

    Args:
      directories: workdirs of runs or --output directories of `python -m cyclip_jax.evaluate`.
      output: the HTML file; None is `<directory>/report.html` of one, `./report.html` of several.
      tensorboard_step: where the main figures stand among the run's TensorBoard images; None writes
        none.

    Returns:
      The path of the HTML file.

    Raises:
      UserError: a directory or a file in it is not what it should be.
    """
    chosen = None if output is None else absolute(output, "--output")
    runs = _read_runs(directories)
    paths = [run.path for run in runs]
    if chosen is None:
        page = (paths[0] if len(paths) == 1 else absolute(".")) / REPORT
        folder = page.parent / (FIGURES if len(paths) == 1 else f"{page.stem}_figures")
    else:
        page = chosen
        folder = page.parent / f"{page.stem}_figures"
    groups = group_runs(runs)
    figures = Drawings()
    with style():
        contents = {title: section(groups, figures) for title, section in SECTIONS.items()}
    is_shown = any(contents[title] for title in SECTIONS if title not in (*FOLDED, "Card"))
    for name, drawing in figures.drawings.items():
        write_atomically(folder / f"{name}.png", drawing.png)
        write_atomically(folder / f"{name}.svg", drawing.svg)
    title = " · ".join(dict.fromkeys(group.name for group in groups))
    folded = FOLDED if is_shown else FOLDED[1:]  # the curves, where there is nothing else
    write_atomically(page, document(title, contents, lead=alarms(groups), folded=folded))
    if tensorboard_step is not None:
        _write_tensorboard(paths[0], figures, tensorboard_step)
    return page


def write_figure(
    directories: Sequence[str | os.PathLike[str]],
    name: str,
    file_format: str,
    *,
    output: str | os.PathLike[str] | None = None,
) -> epath.Path:
    """Writes one figure of the report of runs for a paper: vectors, and text in embedded fonts.

    Args:
      directories: as `write_report`.
      name: of the figure, as its files in `figures/` are called.
      file_format: "pdf", "svg" or "png".
      output: the file; None is `./<name>.<format>`.

    Returns:
      The path of the file.

    Raises:
      UserError: there is no such figure, or what `write_report` raises.
    """
    path = absolute(f"{name}.{file_format}" if output is None else output, "--output")
    if path.suffix != f".{file_format}":
        raise UserError(f"--output={path} does not end in .{file_format}, the --format of the file")
    groups = group_runs(_read_runs(directories))
    figures = Drawings(paper=(name, file_format))
    with style():
        for section in DRAWN:
            section(groups, figures)
    if figures.file is None:
        raise UserError(
            f"--figure={name} is no figure of this report; choose one of "
            f"{', '.join(figures.names) or 'none, as there are no figures'}"
        )
    write_atomically(path, figures.file)
    return path


def _read_runs(directories):
    if not directories:
        raise UserError("name the workdir of a run, or several")
    runs = [read_run(directory) for directory in directories]
    if len({run.path for run in runs}) < len(runs):
        raise UserError("a directory is named twice")
    return runs


def _write_tensorboard(workdir, figures, step):
    """Adds the main figures to the run's TensorBoard files."""
    summaries = Summaries(str(epath.Path(workdir) / TENSORBOARD))
    for name in figures.main:
        with Image.open(io.BytesIO(figures.drawings[name].png)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        summaries.write_image(step, f"report/{name}", pixels)
    summaries.close()
