"""metrics.jsonl and TensorBoard's files."""

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import UInt8

from cyclip_jax.errors import UserError
from cyclip_jax.evals.known_metrics import KNOWN_REPORTS
from cyclip_jax.files import Appender, file_errors, parse_json, write_atomically, write_json
from cyclip_jax.losses.terms import Reported
from cyclip_jax.workdir.layout import MEANINGS, METRICS, OF_AVERAGE, TENSORBOARD
from cyclip_jax.workdir.tensorboard import Summaries

_TRAINING, _SYSTEM = "train", "system"  # groups of curves


class Mirror(Protocol):
    """What is told everything that TensorBoard is."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Takes the numbers of a step by the names of their curves."""
        ...

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Takes a picture of a step."""
        ...


class MetricWriter:
    """Appends to metrics.jsonl and to TensorBoard's files; does nothing unless `enabled`.

    What a full disk does not take waits in memory for the next write, so that a run survives that.

    Args:
      workdir: the run's directory.
      first_step: lines of later steps, which a resumed run writes again, are cut off.
      enabled: true on process 0 alone.
      mirror: what is told everything too; or None.
      settings: the run's settings by their full names, which TensorBoard shows in a table.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        first_step: int,
        enabled: bool,
        mirror: Mirror | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._enabled, self._mirror, self._settings = enabled, mirror, settings
        if not enabled:
            return
        self._path = epath.Path(workdir) / METRICS
        kept = [line for line in read_metrics(workdir) if line["step"] <= first_step]
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = Appender(self._path)
        self._tensorboard = str(epath.Path(workdir) / TENSORBOARD)
        self._summary, self._unshown, self._has_failed = None, [], False

    def write(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        system: Mapping[str, Any] = MappingProxyType({}),
        curves: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes one line, at once: a number that is not finite becomes null.

        The line has the names as they are. Curves stand in groups: `train/` for what training
        measures, `system/` for the machine, and the evaluation's name for its numbers.

        Args:
          step: that the numbers are of.
          metrics: {name: number}, also of NumPy or JAX. A name with a slash has its group already.
          system: what is measured of the machine: its speed, and where its time goes.
          curves: what there is a curve of in place of `metrics`; None is all of them.
        """
        if not self._enabled:
            return
        numbers = {name: float(value) for name, value in {**metrics, **system}.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": int(step), **finite}) + "\n")
        shown = _grouped(_TRAINING, metrics if curves is None else curves)
        shown |= _grouped(_SYSTEM, system)
        self._unshown.append((step, shown))
        self._show()
        if self._mirror is not None:
            self._mirror.write(step, shown)

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows a picture of a step beside the curves; one that finds no room is left out."""
        if not self._enabled:
            return
        self._show((step, name, pixels))
        if self._mirror is not None:
            self._mirror.write_image(step, name, pixels)

    def describe(self, reports: Mapping[str, Reported]) -> None:
        """Writes metrics.json: what the terms of the loss say of their metrics."""
        if self._enabled:
            told = {name: dataclasses.asdict(reported) for name, reported in reports.items()}
            write_json(self._path.with_name(MEANINGS), told)

    def flush(self) -> Exception | None:
        """Tries once more to write what could not be; returns the error that keeps it, or None.

        TensorBoard's files say nothing that metrics.jsonl does not: they count for nothing here.
        """
        if not self._enabled:
            return None
        self._file.flush()
        return self._file.failure

    def close(self) -> None:
        """Closes the files."""
        if self._enabled:
            self._file.close()
            self._end_summary()

    def _show(self, *images):
        try:
            if self._summary is None:
                self._summary = Summaries(self._tensorboard, self._settings)
            for step, numbers in self._unshown:
                self._summary.write_scalars(step, numbers)
            for step, name, pixels in images:
                self._summary.write_image(step, name, pixels)
            self._summary.flush()
            self._unshown.clear()
            self._has_failed = False
        except file_errors() as error:
            if not self._has_failed:
                reason = getattr(error, "message", error)
                logging.error("TensorBoard's files wait until they can be written: %s", reason)
            self._has_failed = True
            self._end_summary()  # what follows half an event in a file is never read

    def _end_summary(self):
        summary, self._summary = self._summary, None
        with contextlib.suppress(*file_errors()):
            if summary is not None:
                summary.close()


def _grouped(group, numbers):
    """{the name of its curve: number}; what has a group of its own keeps it."""
    return {
        name if "/" in name else f"{group}/{name}": float(number)
        for name, number in numbers.items()
    }


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl; a last one that a kill cut off is left out.

    Raises:
      UserError: a line is not an object of numbers with a step.
    """
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    lines = []
    for number, line in enumerate(whole, start=1):
        try:
            content = parse_json(line) if line else None
            if content is not None:
                int(content["step"])
                lines.append(content)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"line {number} of {path} is damaged ({error!r}); remove it") from error
    return lines


def read_reports(workdir: str | os.PathLike[str]) -> dict[str, Reported]:
    """What the metrics of a workdir's training are, in the order in which they are shown.

    Of a workdir that does not say it, which is older, they are those that every run measures.

    Raises:
      UserError: metrics.json is not what it should be.
    """
    path = epath.Path(workdir) / MEANINGS
    if not path.exists():
        return KNOWN_REPORTS
    try:
        return {name: Reported(**told) for name, told in parse_json(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not say what the metrics of training mean ({error!r}); remove it: those "
            "that every run measures are known"
        ) from error


def metrics_at(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """Everything that was written of one step of a workdir's run, as one dict."""
    return {
        name: value
        for line in read_metrics(workdir)
        if line["step"] == step
        for name, value in line.items()
        if value is not None
    }


def of_raw(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a step without those of the average of its weights."""
    return {name: value for name, value in metrics.items() if not _scores_average(name)}


def of_average(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a step whose evaluations are those of the average, by the evaluations' names."""
    return {
        name.replace(f"{OF_AVERAGE}/", "/", 1): value
        for name, value in metrics.items()
        if "/" not in name or _scores_average(name)
    }


def _scores_average(name):
    return name.partition("/")[0].endswith(OF_AVERAGE)


def evaluated_at(workdir: str | os.PathLike[str], step: int) -> set[str]:
    """The names of the evaluations of which there are numbers of a step."""
    return {name.partition("/")[0] for name in metrics_at(workdir, step) if "/" in name}
