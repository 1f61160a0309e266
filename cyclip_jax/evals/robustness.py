"""Effective robustness: accuracy under distribution shift beyond what accuracy alone promises."""

import csv
import dataclasses
import inspect
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_named, check_type, check_types
from cyclip_jax.evals.data.keys import are_wordnet_ids
from cyclip_jax.evals.data.labelled import (
    PRESET,
    LabelledImages,
    check_labelled,
    open_labelled,
    open_named,
)
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import SHARE, About, Metric, Unit, count
from cyclip_jax.evals.statistics.classification import Embedded, embed, prompts_of, ranks_of_label
from cyclip_jax.evals.statistics.intervals import RESAMPLES, floats, mean_with_interval
from cyclip_jax.files import FilePath, Located, check_scheme, how_written, located_from_anywhere


@dataclasses.dataclass(frozen=True)
class Line:
    """Accuracy on a shift as models of standard training have it.

    Attributes:
      slope, intercept: of the accuracies as fractions, or of their logits.
      scale: "linear" or "logit".
    """

    slope: float
    intercept: float
    scale: str

    def __call__(self, reference: Any) -> Any:
        """The accuracy on the shift at one on the reference set, a fraction or an array of them."""
        if self.scale == "linear":
            return np.clip(self.slope * reference + self.intercept, 0, 1)
        return 1 / (1 + np.exp(-(self.slope * _logit(reference) + self.intercept)))


# 1.2 · accuracy − 9 in percentage points, the line of Goel et al. 2022.
LINES = {"imagenetv2": Line(1.2, -0.09, "linear")}


def _zeroshot_from_anywhere(zeroshot: Any, settings: Mapping[str, Any]) -> Any:
    """Zero-shot settings with paths that mean the same from any folder."""
    del settings
    if not isinstance(zeroshot, Mapping):
        return zeroshot
    named = {"data": zeroshot.get("folder"), "classes": zeroshot.get("classes")}
    named = located_from_anywhere(open_labelled, named)
    found = {"folder": named["data"], "classes": named["classes"]}
    return {**zeroshot, **{name: value for name, value in found.items() if name in zeroshot}}


def _shifts_from_anywhere(shifts: Any, settings: Mapping[str, Any]) -> Any:
    return {name: _zeroshot_from_anywhere(shift, settings) for name, shift in shifts.items()}


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Zero-shot accuracy on distribution shifts, beside that on the set they have shifted from.

    Effective robustness is the accuracy on a shift less what models of standard training have at
    the same accuracy on the reference set (Taori et al. 2020). Where a shift has a part of the
    reference set's classes, as ImageNet-A and -R, the accuracy on the reference set is that on the
    images of these classes, scored among them alone; `models` is to have it so too. Classes are the
    same by their WordNet ids or their names.

    Attributes:
      name: of the evaluation, for messages.
      reference: settings of `zeroshot`, as {"preset": "imagenet"}; a `type` may be among them.
      shifts: {name: settings of `zeroshot`}; one that is None, or whose folder is, is left out. A
        shift named imagenetv2 has a line without `models`, see LINES.
      models: CSV of reference models with the columns model, reference and one for each shift that
        it is to give a line; a column <shift>_reference counts before reference. Percent, or
        fractions where no number is above 1; a cell may be empty.
      scale: "logit", as Taori et al. 2020, or "linear": in what the line of `models` is fitted.
      head: whether the head of a fine-tuned model scores the classes, in place of their texts.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    reference: Annotated[Mapping[str, Any], Located(_zeroshot_from_anywhere, Mapping)]
    shifts: Annotated[
        Mapping[str, Mapping[str, Any] | None], Located(_shifts_from_anywhere, Mapping)
    ]
    models: FilePath | None = None
    scale: str = "logit"
    head: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        key = f"config.evals.{self.name}"
        _zeroshot_data(self.reference, f"{key}.reference")
        if not self._shift_sets():
            raise UserError(f"{key}.shifts is empty; name zero-shot settings there")
        if self.scale not in ("logit", "linear"):
            raise UserError(f"{key}.scale is {self.scale!r}; choose 'logit' or 'linear'")
        check_named(self, "models")

    def _shift_sets(self):
        """{name: what `_zeroshot_data` makes of a shift that is not left out}."""
        chosen = {}
        for shift, settings in dict(self.shifts).items():
            where = f"config.evals.{self.name}.shifts.{shift}"
            check_type(where, settings, Mapping[str, Any] | None)
            if settings is not None and settings.get("folder", "") is not None:
                chosen[shift] = _zeroshot_data(settings, where)
        return chosen

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives `reference_top1`, `<shift>_top1`, and for
          each shift with a line `<shift>_effective`, in fractions and with intervals;
          `<shift>_reference`, the accuracy that the line is taken at; and `<shift>_images`,
          `images`, how many were scored. Details: `robustness.json`. Outcomes: each image of
          `reference` and of every `<shift>` has its `label` and its `…_top1`; where a shift has a
          line, each of `<shift>_reference`, the reference set's images of its classes, has its
          `<shift>_reference`.

        Raises:
          UserError: what is wrong with the data or with `models`.
        """
        where = f"config.evals.{self.name}.reference"
        reference_set = open_named(**_zeroshot_data(self.reference, where))
        shift_sets = {shift: open_named(**data) for shift, data in self._shift_sets().items()}
        common = {
            shift: common_classes(reference_set, shift_set)
            for shift, shift_set in shift_sets.items()
        }
        known = (
            [] if self.models is None else read_models(epath.Path(self.models), list(shift_sets))
        )
        lines = LINES | _fit_lines(known, list(shift_sets), self.scale, self.models)

        def evaluate(encoders, output):
            embedded = embed(encoders, reference_set, by_head=self.head)
            hits, own = hits_among(embedded, reference_set, np.arange(len(reference_set.classes)))
            metrics = {"reference_top1": mean_with_interval(hits), "images": count(len(hits))}
            outcomes = {"reference": _outcomes(embedded, own, "reference_top1", hits)}
            table = []
            for shift, shift_set in shift_sets.items():
                shifted = embed(encoders, shift_set, by_head=self.head)
                every_class = np.arange(len(shift_set.classes))
                shift_hits, own = hits_among(shifted, shift_set, every_class)
                outcomes[shift] = _outcomes(shifted, own, f"{shift}_top1", shift_hits)
                hits, own = hits_among(embedded, reference_set, common[shift])
                line = lines.get(shift)
                if line is not None:
                    name = f"{shift}_reference"
                    outcomes[name] = _outcomes(embedded, own, name, hits)
                row, further = _score(shift, shift_hits, hits, line)
                table.append(row)
                metrics |= further
            content = {
                "reference": _bounded(metrics["reference_top1"]),
                "shifts": table,
                "models": known,
            }
            output.json("robustness", content)
            output.outcomes(outcomes)
            return metrics

        sets = [reference_set, *shift_sets.values()]

        def needs():
            prompts = [prompts_of(one.classes, one.templates) for one in sets]
            return Needs(sets, [] if self.head else prompts)

        return Opened(evaluate, needs)


def _zeroshot_data(settings, config_key):
    """The keyword arguments of `open_named` for the data that zero-shot settings name."""
    check_type(config_key, settings, Mapping[str, Any])
    settings = dict(settings)
    kind = settings.pop("type", "zeroshot")
    if kind != "zeroshot":
        raise UserError(f"{config_key}.type is {kind!r}; leave it out, or set it to 'zeroshot'")
    if "folder" not in settings and settings.get("preset"):
        settings["folder"] = f"{PRESET}{settings['preset']}"
    folder = settings.pop("folder", None)
    try:
        inspect.signature(open_labelled).bind(folder, config_key=config_key, **settings)
    except TypeError as error:
        raise UserError(f"{config_key}: {error}") from error
    if folder is None:
        raise UserError(f"{config_key}.folder is empty; set it to labelled pictures")
    for key, value in settings.items():
        check_type(f"{config_key}.{key}", value, str | None)
    check_type(f"{config_key}.folder", folder, str)
    for key, path in (("folder", folder), ("classes", settings.get("classes"))):
        check_scheme(str(path), f"{config_key}.{key}")
    place = {"config_key": f"{config_key}.folder", "data": folder}
    check_labelled(**place, split=settings.get("split"), preset=settings.get("preset"))
    return place | settings


def _outcomes(embedded, own, name, hits):
    """The outcomes of some images: those that are `own`, bool [M]."""
    return {"index": embedded.index[own], "label": embedded.labels[own], name: hits}


def _score(shift, hits, reference_hits, line):
    """(a shift's row for the report, its metrics)."""
    accuracy = mean_with_interval(hits)
    metrics = {f"{shift}_top1": accuracy, f"{shift}_images": count(len(hits))}
    reference = float(reference_hits.mean())
    row = {"name": shift, **_bounded(accuracy), "reference": reference}
    if line is None:
        return row | {"line": None, "effective": None}, metrics
    effective = effective_robustness(hits, reference_hits, line)
    metrics[f"{shift}_reference"] = About(Unit.SHARE).metric(reference)
    metrics[f"{shift}_effective"] = effective
    return row | {"line": dataclasses.asdict(line), "effective": effective.value}, metrics


def _bounded(accuracy):
    """{"accuracy", "low", "high"} of a Metric."""
    low, high = accuracy.interval
    return {"accuracy": accuracy.value, "low": low, "high": high}


def effective_robustness(
    hits: Bool[np.ndarray, "n"], reference_hits: Bool[np.ndarray, "m"], line: Line, *, seed: int = 0
) -> Metric:
    """Accuracy on a shift less the line's at the accuracy on the reference set.

    The hits are bool [N] and [M]; the seed is of the interval's draws from both sets.
    """
    rng = np.random.default_rng(seed)
    # How many hits a draw with replacement has is binomial.
    accuracies, references = (
        rng.binomial(len(own), own.mean(), RESAMPLES) / len(own) for own in (hits, reference_hits)
    )
    low, high = np.percentile(accuracies - line(references), [2.5, 97.5])
    value = float(hits.mean() - line(reference_hits.mean()))
    return SHARE.metric(value, floats((low, high)))


def hits_among(
    embedded: Embedded, dataset: LabelledImages, rows: Int[np.ndarray, "c"]
) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "m"]]:
    """Which images of some classes are nearest to their own one of these classes.

    Args:
      embedded: the M images and the classes.
      dataset: LabelledImages, for the classes' names.
      rows: numbers of the classes, rising.

    Returns:
      (hits of the n images of these classes, bool [n]; which images these are, bool [M]).

    Raises:
      UserError: there are none.
    """
    own = np.isin(embedded.labels, rows)
    if not own.any():
        raise UserError(f"of the images of {dataset.path} in a shift's classes none can be read")
    labels = np.searchsorted(rows, embedded.labels[own])
    names = [dataset.classes[row] for row in rows]
    ranks = ranks_of_label(embedded.images[own], embedded.classes[rows], labels, names=names)
    return ranks < 1, own


def common_classes(reference: LabelledImages, shift: LabelledImages) -> Int[np.ndarray, "c"]:
    """The reference set's classes that a shift has, int [c], rising.

    They are told by their WordNet ids, or else by their names: of one name all take part.

    Raises:
      UserError: the shift has classes that the reference set has not, or that has no image of
        those in common.
    """
    theirs, own = reference.classes, shift.classes
    if are_wordnet_ids(reference.keys) and are_wordnet_ids(shift.keys):
        theirs, own = reference.keys, shift.keys
    others = sorted(set(own) - set(theirs))
    if others:
        raise UserError(
            f"{len(others)} classes of {shift.path} are none of {reference.path}: "
            f"{', '.join(others[:5])}; give both the same names by their setting `classes`"
        )
    rows = np.flatnonzero(np.isin(theirs, own))
    if not np.isin(reference.labels, rows).any():
        raise UserError(f"{reference.path} has no image of the classes of {shift.path}")
    return rows


def read_models(path: epath.Path, shifts: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracies of reference models, see `Robustness`.

    Args:
      path: the CSV.
      shifts: their names.

    Returns:
      [{"model", "reference", <shift>: …, "<shift>_reference": …}] in fractions, None where a cell
      is empty; shifts that no column names are left out.

    Raises:
      UserError: the file cannot be read, or is no such table.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read{how_written(path)} ({error}); set `models` to a CSV"
        ) from error
    rows = list(csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True))
    header = list(rows[0]) if rows else []
    wanted = [column for shift in shifts for column in (shift, f"{shift}_reference")]
    columns = ["reference", *(column for column in wanted if column in header)]
    if not {"model", "reference"} <= set(header) or not set(shifts) & set(header):
        raise UserError(
            f"{path} needs rows with the columns model, reference and one of {', '.join(shifts)} "
            f"(columns: {', '.join(header) or 'none'})"
        )
    models: list[dict[str, Any]] = [
        {"model": row["model"]} | {column: _number(row, column, path) for column in columns}
        for row in rows
    ]
    numbers = [row[column] for row in models for column in columns if row[column] is not None]
    scale = 100 if max(numbers, default=0) > 1 else 1
    if min(numbers, default=0) < 0 or max(numbers, default=0) > 100:
        raise UserError(f"{path} has accuracies below 0 or above 100 %")
    for row in models:
        row |= {column: row[column] / scale for column in columns if row[column] is not None}
    return models


def _number(row, column, path):
    text = (row[column] or "").strip()
    try:
        return float(text) if text else None
    except ValueError as error:
        raise UserError(f"{path}: {column} of {row['model']} is no number: {text}") from error


def _fit_lines(models, shifts, scale, path):
    """{shift: Line} by least squares, of the shifts that models have."""
    lines = {}
    for shift in shifts:
        points = []
        for row in models:
            own = row.get(f"{shift}_reference")
            reference = row["reference"] if own is None else own
            if reference is not None and row.get(shift) is not None:
                points.append((reference, row[shift]))
        if points:
            accuracies, shifted = np.transpose(points)
            lines[shift] = fit_line(accuracies, shifted, scale, f"{path}: {shift}")
    return lines


def fit_line(
    reference: Float[np.ndarray, "n"], shifted: Float[np.ndarray, "n"], scale: str, where: str
) -> Line:
    """The Line of least squares through the accuracies of n models, fractions float [n].

    Raises:
      UserError: they make no line; it tells `where`.
    """
    if scale == "logit":
        if min(*reference, *shifted) <= 0 or max(*reference, *shifted) >= 1:
            raise UserError(f"{where}: 0 and 100 % have no logit; leave them out, or set scale")
        reference, shifted = _logit(reference), _logit(shifted)
    if len(set(reference)) < 2:
        raise UserError(f"{where}: a line wants two models of different accuracy")
    slope, intercept = np.polyfit(reference, shifted, 1)
    return Line(float(slope), float(intercept), scale)


def _logit(accuracy):
    """log(p/(1 − p)), of 0 and 1 that of the nearest fraction that is neither in float64."""
    accuracy = np.clip(accuracy, np.finfo(float).eps, 1 - np.finfo(float).eps)
    return np.log(accuracy) - np.log1p(-accuracy)
