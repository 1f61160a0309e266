"""Runs as their files tell of them, and which of them repeat one experiment."""

import dataclasses
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from scipy.special import stdtrit

from cyclip_jax.errors import UserError
from cyclip_jax.evals.flat import by_evaluation
from cyclip_jax.evals.metric import Metric
from cyclip_jax.evals.output import read_abouts
from cyclip_jax.files import absolute, entries, how_written, parse_json
from cyclip_jax.losses.terms import Reported
from cyclip_jax.runtime.sections import flat
from cyclip_jax.runtime.setting_types import check_type
from cyclip_jax.workdir.changes import history
from cyclip_jax.workdir.config_json import completed_config
from cyclip_jax.workdir.layout import CONFIG, EVALS, METRICS
from cyclip_jax.workdir.metrics import read_reports

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
_MOST_WORDS = 3  # settings that a name tells


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a directory tells of one model; a run is equal to itself alone.

    Attributes:
      path: of the directory.
      config: nested dict, or None.
      versions: {package: version} that it ran with.
      command: with which it was begun or continued last; None where that was not kept.
      machine: what computed it, as `workdir.config_json` writes it; empty where not kept.
      commit: of the code; None where that was not kept.
      changes: settings that were changed on the way (see `workdir.changes.history`).
      training: lines of metrics.jsonl that a training step wrote; None stands for a number that is
        not finite.
      reports: {name: Reported} of what the terms of its loss measured.
      evaluations: {evaluation: {name: Metric}}, each the newest.
      steps: {evaluation: its step, or None}.
      details: {evaluation: directory of its files}.
    """

    path: epath.Path
    config: dict[str, Any] | None
    versions: dict[str, str]
    command: str | None
    machine: dict[str, Any]
    commit: str | None
    changes: list[dict[str, Any]]
    training: list[dict[str, float | None]]
    reports: dict[str, Reported]
    evaluations: dict[str, dict[str, Metric]]
    steps: dict[str, int | None]
    details: dict[str, epath.Path]

    @property
    def name(self) -> str:
        """The directory's."""
        return self.path.name

    @property
    def seed(self) -> int | None:
        """The config's seed; None without a config."""
        return None if self.config is None else self.config["seed"]


def read_run(directory: str | os.PathLike[str]) -> Run:
    """Reads the workdir of a run, or the --output directory of `python -m cyclip_jax.evaluate`.

    Numbers of an evaluation may stand in metrics.jsonl and in several evals/*.json: those of the
    latest step count, of the same step those of the file that was written last.

    Raises:
      UserError: there is nothing to show, or a file is not what it should be.
    """
    path = absolute(directory)
    if not path.is_dir():
        raise UserError(f"{path} is no directory{how_written(path)}; name the workdir of a run")
    written = read_json(path / CONFIG) if (path / CONFIG).exists() else {}
    if not isinstance(written, dict) or "config" not in written:
        written = {}  # transformers, too, calls the settings of an export config.json
    lines = _lines(path / METRICS)
    is_workdir = bool(written or lines)
    evals = path / EVALS if is_workdir or (path / EVALS).is_dir() else path
    evaluations, steps = _newest_evaluations(lines, path / METRICS, evals)
    training = [line for line in lines if "loss" in line]
    if not training and not evaluations:
        raise UserError(
            f"{path} has nothing to report: neither {METRICS} nor {EVALS}/step_….json with numbers"
        )
    versions, machine = written.get("versions", {}), written.get("machine", {})
    check_type(f"{path / CONFIG}: versions", versions, Mapping)
    check_type(f"{path / CONFIG}: machine", machine, Mapping)
    return Run(
        path=path,
        config=completed_config(written["config"], path / CONFIG) if written else None,
        versions=versions,
        command=_text(written.get("command")),
        machine=machine,
        commit=_text(written.get("git_commit")),
        changes=history(path),
        training=training,
        reports=read_reports(path),
        evaluations=evaluations,
        steps=steps,
        details={name: evals / name for name in evaluations if (evals / name).is_dir()},
    )


def _text(value):
    return None if value is None else str(value)


def _newest_evaluations(lines, metrics_path, evals):
    """({evaluation: {name: Metric}}, {evaluation: step}) of all files that have numbers."""
    sources = []  # (step, time of writing, numbers); results.json is of no known step
    for line in lines:
        if "loss" not in line:  # a training line may have names with a slash too
            sources.append((line["step"], metrics_path.stat().mtime, line))
    if evals.is_dir():
        for file in entries(evals):
            if file.name == "results.json" or re.fullmatch(r"step_.*\.json", file.name):
                numbers = _numbers(read_json(file), file)
                sources.append((numbers.get("step"), file.stat().mtime, numbers))
    evaluations, steps, abouts = {}, {}, read_abouts(evals)
    for step, _, numbers in sorted(sources, key=lambda s: (-1 if s[0] is None else s[0], s[1])):
        for name, metrics in by_evaluation(numbers, abouts).items():
            evaluations[name], steps[name] = metrics, step
    return evaluations, steps


def _lines(path):
    """The lines of metrics.jsonl; a last one that a kill cut off is left out."""
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    lines = []
    for number, line in enumerate(whole, 1):
        try:
            content = parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}, is not JSON: {error}") from error
        lines.append(_numbers(content, f"{path}, line {number},"))
        if "step" not in content:
            raise UserError(f"{path}, line {number}, has no 'step'")
    return lines


def _numbers(content, path):
    """A flat {name: number or None}, with None for what is not finite."""
    is_flat = isinstance(content, dict) and all(
        value is None or isinstance(value, (int, float)) for value in content.values()
    )
    if not is_flat:
        raise UserError(f"{path} is not one object of names and numbers")
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in content.items()
    }


def read_json(path: epath.Path) -> Any:
    """The content of a JSON file; UserError names the file where it is none."""
    try:
        return parse_json(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def read_arrays(path: epath.Path, *names: str) -> list[np.ndarray]:
    """Arrays of the .npz file at `path` by name; UserError names the file where one is missing."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as arrays {', '.join(names)}: {error}") from error


def read_all_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """All arrays of the .npz file at `path`; UserError names a file that is none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as arrays: {error}") from error


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one experiment, which differ in their seed.

    Attributes:
      name: by the objective, and by what else sets it apart.
      runs: list of Run.
    """

    name: str
    runs: list[Run]

    def behind(self, evaluation: str) -> list[Run]:
        """Runs whose evaluation is of an earlier step than another's: no mean takes them in."""
        steps = {run.path: run.steps[evaluation] for run in self.runs if evaluation in run.steps}
        latest = max((step for step in steps.values() if step is not None), default=None)
        return [run for run in self.runs if run.path in steps and steps[run.path] != latest]

    def metric(self, evaluation: str, name: str) -> Metric | None:
        """The mean of a metric over the runs that are not behind; None where none has it.

        With two runs or more its interval is Student's over the runs, else that of the one run. It
        is not finite where one run's is not: a mean of the others would hide that.
        """
        found = list(self._by_seed(evaluation, name).values())
        if len(found) < 2:
            return found[0] if found else None
        values = [metric.value for metric in found]
        if found[0].is_count and set(values) == {found[0].value}:
            return found[0]
        chances = {metric.chance for metric in found}
        chance = chances.pop() if len(chances) == 1 else None
        return _mean(values, found[0].about, chance)

    def difference(self, baseline: "Group", evaluation: str, name: str) -> Metric | None:
        """The mean over the seeds of both groups of this group's metric less the baseline's.

        Runs of one seed see the same examples in the same order from the same initial weights, so
        that their difference varies less than they do. It is None with fewer than two common seeds,
        or where a number is not finite.
        """
        ours, theirs = (group._by_seed(evaluation, name) for group in (self, baseline))
        pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
        if len(pairs) < 2 or not all(metric.is_finite for pair in pairs for metric in pair):
            return None
        return _mean([mine.value - other.value for mine, other in pairs], pairs[0][0].about)

    def _by_seed(self, evaluation, name):
        """{seed: Metric} of the runs that were evaluated and are not behind."""
        behind = self.behind(evaluation)
        evaluated = {
            run.seed: run.evaluations[evaluation]
            for run in self.runs
            if evaluation in run.evaluations and run not in behind
        }
        known = next((metrics[name] for metrics in evaluated.values() if name in metrics), None)
        if known is None:
            return {}
        # What a run has not measured that another has could not be measured.
        missing = known.about.metric(math.nan)
        return {seed: metrics.get(name, missing) for seed, metrics in evaluated.items()}


def _mean(values, about, chance=None):
    """The mean of runs' values as a Metric with Student's interval."""
    if not all(map(math.isfinite, values)):
        return about.metric(math.nan, None, chance)
    return about.metric(float(np.mean(values)), student_interval(values), chance)


def student_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of a mean, mean ± t s/√n with n − 1 degrees; None of one value."""
    n = len(values)
    if n < 2:
        return None
    half = stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups runs whose configs are equal but for the seed and for folders of files.

    Data of the same name in other folders may be other data: runs that share a seed are repeats
    only where their folders are the same too.
    """
    groups = []
    for repeats in _grouped(runs, lambda run: _identity(run, folders=False)):
        seeds = [run.seed for run in repeats]
        if len(set(seeds)) == len(seeds):
            groups.append(repeats)
        else:
            groups += _grouped(repeats, lambda run: _identity(run, folders=True))
    return [Group(name, runs) for name, runs in zip(_names(groups), groups, strict=True)]


def _grouped(runs, key):
    groups = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _identity(run, *, folders):
    """A string that is equal for runs of the same experiment."""
    if run.config is None:
        return str(run.path)
    settings = {key: value for key, value in flat(run.config).items() if key != "seed"}
    if not folders:
        settings = {key: without_folder(value) for key, value in settings.items()}
    return json.dumps(settings, sort_keys=True)


def without_folder(value: Any) -> Any:
    """The last part of a path; other values as they are."""
    return value.rstrip("/").rsplit("/", 1)[-1] if isinstance(value, str) else value


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all of some flat configs."""
    names = dict.fromkeys(name for config in configs for name in config)
    missing = object()

    def written(config, name):
        return json.dumps(config[name]) if name in config else missing

    return [name for name in names if len({written(config, name) for config in configs}) > 1]


def objective(config: Mapping[str, Any]) -> str:
    """CLIP, CyCLIP, C-CyCLIP or I-CyCLIP, by the weights of its two consistency terms.

    By a head of classes neither is computed, and the name is "fine-tuned", with its margin. Behind
    it stands what the text tower is trained on besides, or was trained on before.
    """
    if is_of_head(config):
        margin = config["classes"]["margin"]
        return f"fine-tuned with a margin of {margin:g}" if margin else "fine-tuned"
    inmodal, crossmodal = config["loss"]["inmodal_weight"], config["loss"]["crossmodal_weight"]
    name = "I-CyCLIP" if inmodal else "C-CyCLIP" if crossmodal else "CLIP"
    name = "CyCLIP" if inmodal and crossmodal else name
    sentences = trained_sentences(config)
    if not sentences:
        return name
    only, until = sentences["only_steps"], sentences["until_step"]
    is_beside, is_before = until is None or until > only, only > 0
    when = " and ".join(["after"] * is_before + ["with"] * is_beside)
    return f"{name} {when} {without_folder(sentences['train'])}"


def is_of_head(config: Mapping[str, Any]) -> bool:
    """Whether a run trains by a head of classes, in place of pairs."""
    classes = config.get("classes", {})  # which older workdirs lack
    return classes.get("train") is not None and classes["loss"] == "head"


def trained_data(config: Mapping[str, Any]) -> list[str]:
    """Names of the data that a run is trained on: the parts of a mixture, else one or none."""
    data = config["data"]
    if data["source"] == "mixture":
        return list(data["mixture"])
    name = without_folder(config["classes"]["train"] or data["train"])
    return [name] if name else []


def trained_sentences(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of a config on sentences; empty where there is no such training."""
    sentences = config.get("sentences", {})  # which older workdirs lack
    return sentences if sentences.get("train") and sentences.get("weight") else {}


def _arm(runs):
    """What a sweep calls these runs by their folders, <arm>_seed<number>; None where none does."""
    arms = {re.sub(r"_seed\d+$", "", run.name) for run in runs}
    is_of_sweep = all(re.search(r"_seed\d+$", run.name) for run in runs)
    return arms.pop().replace("_", " ") if is_of_sweep and len(arms) == 1 else None


def _names(groups):
    """A name for each list of runs: the objective; where that is not enough, what differs.

    More than three settings are no name. There it is the sweep's own, which its folders have.
    """
    firsts = [runs[0] for runs in groups]
    names = [run.name if run.config is None else objective(run.config) for run in firsts]
    told = []
    for runs, run, name in zip(groups, firsts, names, strict=True):
        alike = [other for other, its in zip(firsts, names, strict=True) if its == name]
        if len(alike) > 1 and all(other.config is not None for other in alike):
            settings = [
                {key: without_folder(value) for key, value in flat(other.config).items()}
                for other in alike
            ]
            mine = settings[alike.index(run)]
            words = [
                f"{key.rsplit('.', 1)[-1]} {mine.get(key, 'unset')}"
                for key in differing(settings)
                if key != "seed"
            ]
            arm = _arm(runs)
            if len(words) <= _MOST_WORDS or arm is None:
                name = ", ".join([name, *words[:_MOST_WORDS]])
            elif arm.lower() != name.lower():
                name = f"{name}, {arm}"
        told.append(name)
    return [
        f"{name} ({run.name})" if told.count(name) > 1 and name != run.name else name
        for run, name in zip(firsts, told, strict=True)
    ]
