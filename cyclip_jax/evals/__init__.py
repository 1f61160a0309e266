"""Evaluators by name.

An evaluator knows no model. `EVALUATORS[type](name, **settings)` checks its settings, and imports
and reads nothing for it. `.open()` of the result opens its data and returns a function
(encoders, output) -> {name: Metric}, where `encoders` is an Encoders and `output` an Output, for
what is more than numbers. So what is wrong with the settings shows at once, and what is wrong with
the data when a run starts, not when it ends. Files hold metrics as flat numbers, see flat.py.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.evals.binding import Binding
from cyclip_jax.evals.checks import check_type
from cyclip_jax.evals.clip_benchmark import FOLDER as CLIP_BENCHMARK
from cyclip_jax.evals.clip_benchmark import clip_benchmark_results
from cyclip_jax.evals.compositional import Compositional
from cyclip_jax.evals.consistency import Consistency
from cyclip_jax.evals.encoders import Encoders, Interrupted
from cyclip_jax.evals.evaluator import Evaluator, Settings
from cyclip_jax.evals.few_shot import FewShot
from cyclip_jax.evals.gda import Gda
from cyclip_jax.evals.geometry import Geometry
from cyclip_jax.evals.known_metrics import KNOWN
from cyclip_jax.evals.labclip import Labclip
from cyclip_jax.evals.linear_probe import LinearProbe
from cyclip_jax.evals.logistic_probe import LogisticProbe
from cyclip_jax.evals.metric import Metric
from cyclip_jax.evals.old_settings import in_todays_words
from cyclip_jax.evals.output import Output, Show
from cyclip_jax.evals.retrieval import Retrieval
from cyclip_jax.evals.robustness import Robustness
from cyclip_jax.evals.sts import Sts
from cyclip_jax.evals.zeroshot import Zeroshot
from cyclip_jax.files import located_from_anywhere, write_json

EVALUATORS: dict[str, Callable[..., Settings]] = {
    "binding": Binding,
    "compositional": Compositional,
    "consistency": Consistency,
    "few_shot": FewShot,
    "gda": Gda,
    "geometry": Geometry,
    "labclip": Labclip,
    "linear_probe": LinearProbe,
    "logistic_probe": LogisticProbe,
    "retrieval": Retrieval,
    "robustness": Robustness,
    "sts": Sts,
    "zeroshot": Zeroshot,
}

__all__ = [
    "EVALUATORS",
    "Encoders",
    "Evaluation",
    "EvaluationFailed",
    "Evaluator",
    "Interrupted",
    "Metric",
    "Output",
    "Results",
    "check_settings",
    "create_evaluators",
    "evaluate",
    "settings_from_anywhere",
]


Results = dict[str, dict[str, Metric]]  # {evaluation: {name: Metric}}


class EvaluationFailed(UserError):
    """Some evaluations could not be carried out.

    Attributes:
      results: of the others, as `evaluate` returns them.
    """

    def __init__(self, message: str, results: Results) -> None:
        super().__init__(message)
        self.results = results


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation whose data are open.

    Attributes:
      kind: its evaluator's name.
      run: function (encoders, output) -> {name: Metric}.
    """

    kind: str
    run: Evaluator


def create_evaluators(evals: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Evaluation]:
    """Opens the data of every evaluation.

    Args:
      evals: {name: {"type": …, **settings}}; one that is None, or of which a setting without a
        default is, its data, is left out. Settings from before an evaluator was divided go on
        working, see old_settings.py.

    Returns:
      {name: Evaluation}.

    Raises:
      UserError: there is no such evaluator or setting, or something is wrong with the settings or
        the data.
    """
    return {
        name: Evaluation(kind, settings.open())
        for name, (kind, settings) in check_settings(evals).items()
    }


def check_settings(
    evals: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, tuple[str, Settings]]:
    """What `create_evaluators` would open, without a look at any data.

    Args:
      evals: as there.

    Returns:
      {name: (evaluator's name, its settings, not opened yet)}.

    Raises:
      UserError: there is no such evaluator or setting, or the settings alone show that something is
        wrong.
    """
    chosen = {}
    for name, settings in evals.items():
        if settings is None:
            continue
        check_type(f"config.evals.{name}", settings, Mapping[str, Any])
        settings = in_todays_words(name, settings)
        kind = settings.pop("type", None)
        if kind not in EVALUATORS:
            raise UserError(
                f"config.evals.{name}.type is {kind!r}; choose one of {', '.join(EVALUATORS)}"
            )
        try:
            signature = inspect.signature(EVALUATORS[kind])
            signature.bind(name, **settings)
        except TypeError as error:
            raise UserError(f"config.evals.{name}: {error}") from error
        if not any(settings[key] is None for key in _required(signature) & settings.keys()):
            chosen[name] = kind, EVALUATORS[kind](name, **settings)
    return chosen


def settings_from_anywhere(evals: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with paths that mean the same from any folder; wrong ones stay wrong."""
    return {
        name: located_from_anywhere(EVALUATORS[settings["type"]], settings)
        if isinstance(settings, Mapping) and settings.get("type") in EVALUATORS
        else settings
        for name, settings in evals.items()
    }


def _required(signature):
    """The keywords without a default."""
    parameters = signature.parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY}


def _within(evaluation: str, show: Show) -> Show:
    return lambda name, pixels: show(f"{evaluation}/{name}", pixels)


def evaluate(
    evaluators: Mapping[str, Evaluation],
    encoders: Encoders,
    *,
    directory: epath.Path | None,
    model: str = "",
    checkpoint: Any = "",
    begin: Callable[[str], None] = lambda name: None,
    show: Show | None = None,
) -> Results:
    """Runs evaluators.

    Args:
      evaluators: {name: Evaluation}.
      encoders: of the model.
      directory: where each evaluation's details go, `<directory>/<name>/`, and its numbers in
        CLIP_benchmark's layout, `<directory>/clip_benchmark/<name>.json`; None writes nothing.
      model, checkpoint: the architecture's name and where the weights are from, for that layout.
      begin: is told each evaluation's name before it runs.
      show: takes the pictures that evaluations draw, by names such as `<evaluation>/gallery`.

    Returns:
      {evaluation: {name: Metric}}, among them `unreadable` where so many examples could not be
      read.

    Raises:
      EvaluationFailed: after all others, where something is wrong with the data of some, or what
        they write has no room.
      Interrupted: the encoders' `check_stop` did.
    """
    results, failures = {}, []
    is_first_process = encoders.process_index == 0
    for name, evaluation in evaluators.items():
        own_folder = None if directory is None else directory / name
        output = Output(own_folder, is_first_process, show and _within(name, show))
        encoders.unreadable.clear()
        begin(name)
        try:
            metrics = evaluation.run(encoders, output)
            if unreadable := sum(encoders.unreadable.values()):
                metrics["unreadable"] = KNOWN["unreadable"].metric(float(unreadable))
            results[name] = metrics
            output.about(metrics)
            theirs = clip_benchmark_results(
                name, evaluation.kind, metrics, model=model, checkpoint=str(checkpoint)
            )
            if theirs is not None and directory is not None and is_first_process:
                write_json(directory / CLIP_BENCHMARK / f"{name}.json", theirs)
        except (UserError, OSError) as error:  # a full disk ends no training
            failures.append(f"the evaluation {name} failed: {error}")
    if failures:
        raise EvaluationFailed("; ".join(failures), results)
    return results
