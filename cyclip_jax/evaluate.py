"""Evaluate any trained model.

python -m cyclip_jax.evaluate --checkpoint=WORKDIR
python -m cyclip_jax.evaluate --checkpoint=MODEL --zeroshot=FOLDER --retrieval=pairs.csv
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags
from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, is_on_hub
from cyclip_jax.runtime import command
from cyclip_jax.runtime.config_file import define_config
from cyclip_jax.runtime.distributed_flags import define_distributed_flags

# What evaluations by flags alone are given; several have commas between them.
_DATA = {
    "zeroshot": "Labelled pictures for zero-shot classification: a folder that has a folder for "
    "each class or a file labels.csv, a data set of CLIP_benchmark, or the name of a known data "
    "set such as cifar10.",
    "retrieval": "Pictures and captions for retrieval: a file or shards like data.train, "
    "Karpathy's .json, or a data set of CLIP_benchmark.",
    "sts": "Sentences with scores of similarity: SentEval's folder data/downstream, or a table of "
    "two sentences and a score.",
}
_FORMATS = ("table", "json", "csv", "latex")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    command.define_checkpoint(values)
    command.define_weights(values)
    for name, meaning in _DATA.items():
        flags.DEFINE_multi_string(name, [], "", flag_values=values)
        values[name].help = f"{meaning} Several have commas between them."
    flags.DEFINE_string(
        "output",
        None,
        "Directory for the results; by default <checkpoint>/evals. A file with the ending .txt, "
        ".json, .csv or .tex takes the table in its format, besides.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "format",
        None,
        _FORMATS,
        "How the results are written to the file that --output names, or else are printed. By "
        "default the file's ending tells, and a table is printed.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "text_windows",
        False,
        "Reads texts that are too long for the model in windows, rather than cut.",
        flag_values=values,
    )
    define_config(
        values,
        "File of the config whose evals are run on its data; by default the run's own config, "
        "unless flags name evaluations. Those are run besides the file's.",
    )
    define_distributed_flags(values)


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    step: int | None = None,
    output: str | os.PathLike[str] | None = None,
    config: ml_collections.ConfigDict | None = None,
    weights: str = "raw",
    text_windows: bool = False,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    shows_progress: bool = False,
) -> dict[str, float]:
    """Runs evaluators on a trained model and writes `<output>/step_<step>.json`.

    Args:
      checkpoint: workdir of a run, an export, a folder of open_clip or transformers, a PyTorch or
        safetensors file, or hf-hub:user/name.
      step: which checkpoint of a workdir; None is the newest.
      output: directory for the results; None is `<checkpoint>/evals`, or `<file>.evals`, or of a
        model on the Hub `<name>.evals` in the folder that one is in.
      config: the config whose `evals` are run. A run has a config of its own; everything else needs
        this one, or `evaluations`. It also gives the batch size, and whatever a checkpoint does not
        say of its model, such as quick_gelu in a bare file of weights.
      weights: "raw", or "average" for the average that a run kept of them. The evaluations then
        have the names that the run itself gives them, such as val_of_average, and so has the file.
      text_windows: whether texts too long for the model are read in windows. The evaluations then
        have names such as val_of_windows, and so has the file.
      evaluations: {name: settings}, run besides those of `config`, and in place of a run's own.
      shows_progress: whether the error output says what there is to embed, and shows bars.

    Returns:
      {"step": …, "<evaluation>/<metric>": float}. Where no step is known, it has no "step", and the
      file is results.json.

    Raises:
      EvaluationFailed: an evaluation failed; it has the results of the others.
      UserError: there is no such checkpoint, or the evaluations cannot run.
    """
    from cyclip_jax import evals
    from cyclip_jax.evals.flat import flattened
    from cyclip_jax.interop.hub import pinned
    from cyclip_jax.interop.pretrained import open_checkpoint, workdir_and_step
    from cyclip_jax.runtime.sections import resolve_paths
    from cyclip_jax.training.opened_model import open_model
    from cyclip_jax.training.settings import with_absolute_paths
    from cyclip_jax.workdir.layout import OF_AVERAGE, OF_WINDOWS

    path, step = workdir_and_step(checkpoint, step)
    output = _results_folder(checkpoint, output)
    config = _checked_config(config, path, evaluations or {})
    if config is None:
        # That there is no such model says more than that its data are missing.
        open_checkpoint(path, step=step, weights=weights)
        raise UserError(
            f"{path} is not the workdir of a run; name its data with --zeroshot, --retrieval or "
            "--sts, or with --config"
        )
    evaluated = resolve_paths(with_absolute_paths(config), path)
    ending = (OF_AVERAGE if weights == "average" else "") + (OF_WINDOWS if text_windows else "")
    evaluators = evals.create_evaluators(evaluated.evals)
    evaluators = {f"{name}{ending}": evaluation for name, evaluation in evaluators.items()}
    opened = open_model(
        path, step=step, weights=weights, config=evaluated, text_windows=text_windows
    )
    run = functools.partial(
        evals.evaluate,
        evaluators,
        directory=output,
        model=opened.config.model.name,
        checkpoint=pinned(checkpoint) if is_on_hub(checkpoint) else str(path),
    )
    failed = None
    try:
        run = functools.partial(_told, run, evaluators) if shows_progress else run
        results = run(opened.encoders)
    except evals.EvaluationFailed as error:
        failed, results = error, error.results
    results, file = _write(flattened(results), output, opened.checkpoint.step, ending)
    if failed is not None:
        message = f"{failed}; the other results are in {file}"
        raise evals.EvaluationFailed(message, failed.results) from failed
    return results


def _write(results, folder, step, ending):
    """(the results with their step where it is known, the file that they are written to)."""
    import jax

    from cyclip_jax.files import write_json

    file = folder / f"results{ending}.json"
    if step is not None:
        results = {"step": step, **results}
        file = folder / f"step_{step}{ending}.json"
    if jax.process_index() == 0:
        write_json(file, results)
    return results, file


def _told(run, evaluators, encoders):
    """What `run` gives of encoders, while a person is told how far it is."""
    from cyclip_jax.evals.progress import Progress

    progress = Progress(
        {name: evaluation.run for name, evaluation in evaluators.items()},
        is_heard=encoders.process_index == 0,
    )
    progress.say_costs()
    encoders = dataclasses.replace(encoders, embedding=progress.embedding)
    return run(encoders, begin=progress.begin)


def _checked_config(config, path, evaluations):
    """The config whose evaluations are run, with good settings; `evaluations` come besides.

    A workdir has one of its own, whose evaluations are left out where there are others.
    """
    from cyclip_jax import defaults, evals
    from cyclip_jax.models.presets import with_preset_named
    from cyclip_jax.workdir.config_json import is_workdir, read_config

    wanted: Any = {}  # ConfigDict's fields have no types
    if config is not None:
        wanted = config.evals
    elif is_workdir(path):
        config = read_config(path)
        wanted = {} if evaluations else config.evals
    elif evaluations:
        config = defaults.get_config()
    if config is None:
        return None
    wanted = {**wanted, **evaluations}
    evals.check_settings(wanted)
    if evaluations:
        config = config.copy_and_resolve_references().unlock()
        config.evals = ml_collections.ConfigDict(wanted)
    return with_preset_named(config)


def _results_folder(checkpoint, output):
    """Where the results of a checkpoint go."""
    from cyclip_jax.evals.written import ENDINGS
    from cyclip_jax.interop.hub import parsed
    from cyclip_jax.interop.pretrained import workdir_and_step

    path, _ = workdir_and_step(checkpoint, None)
    own = path / "evals" if path.is_dir() else path.parent / f"{path.name}.evals"
    if is_on_hub(checkpoint):  # whose folder is the cache of other programs too
        own = absolute(f"{parsed(checkpoint)[0].partition('/')[2]}.evals")
    folder = own if output is None else absolute(output, "--output")
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"--output={folder} is a file; name a folder for the results, or a file that ends in "
            f"{', '.join(ENDINGS)}"
        )
    return folder


def _file_of(output: str | None) -> epath.Path | None:
    """The file that --output names by its ending; None where it names a folder or nothing."""
    from cyclip_jax.evals.written import ENDINGS

    if output is None:
        return None
    path = absolute(output, "--output")
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error}; name another file") from error
    return path


def starting(values: Any) -> str:
    """What is begun, in words."""
    return f"evaluation of {values.checkpoint}"


def main(values: Any) -> None:
    """Evaluates and prints the table."""
    import jax

    from cyclip_jax.evals import EvaluationFailed
    from cyclip_jax.evals.by_flags import evaluations_of, in_words_of_flags
    from cyclip_jax.evals.flat import flattened
    from cyclip_jax.runtime import distributed

    failure, evaluations = None, {}
    try:
        distributed.join_as_told(values, saves=False)
        file = _file_of(values.output)
        folder = values.output if file is None else None
        taken = () if values.config is None else values.config.evals
        evaluations = evaluations_of({name: values[name].value for name in _DATA}, taken=taken)
        try:
            results = evaluate_checkpoint(
                values.checkpoint,
                step=values.step,
                output=folder,
                config=values.config,
                weights=values.weights,
                text_windows=values.text_windows,
                evaluations=evaluations,
                shows_progress=True,
            )
        except EvaluationFailed as error:
            failure, results = str(error), flattened(error.results)
        if jax.process_index() == 0 and results:
            _show(results, _results_folder(values.checkpoint, folder), file, values.format)
    except UserError as error:
        failure = str(error)
    told = None if failure is None else in_words_of_flags(failure, evaluations)
    distributed.end(0 if told is None else f"error: {told}")


def _show(
    results: Mapping[str, float], folder: epath.Path, file: epath.Path | None, form: str | None
) -> None:
    """Prints the results, or in a `form` them alone; a file takes them in its own."""
    from cyclip_jax.evals.flat import by_evaluation
    from cyclip_jax.evals.output import read_abouts
    from cyclip_jax.evals.written import ENDINGS, FORMATS
    from cyclip_jax.files import write_atomically

    found = by_evaluation(results, read_abouts(folder))
    if file is not None:
        write = FORMATS[form or ENDINGS[file.suffix.lower()]]
        write_atomically(file, write(found) + "\n")
    elif form not in (None, "table"):
        print(FORMATS[form](found))
        return
    if "step" in results:
        print(f"step {results['step']}")
    print(FORMATS["table"](found))
    if file is not None:
        print(f"written to {file}")
    print(f"with figures: python -m cyclip_jax.report {_reported(folder)}")


def _reported(folder):
    """What the report reads: a workdir, or a folder of results."""
    from cyclip_jax.workdir.config_json import is_workdir

    return folder.parent if is_workdir(folder.parent) else folder


if __name__ == "__main__":
    command.run(main, define_flags, doc=__doc__, starting=starting)
