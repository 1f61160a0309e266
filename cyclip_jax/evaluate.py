"""Evaluate any trained model.

python -m cyclip_jax.evaluate --checkpoint=WORKDIR
"""

import os
from typing import Any

import ml_collections
from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command
from cyclip_jax.runtime.config_file import define_config
from cyclip_jax.runtime.distributed_flags import define_distributed_flags


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    command.define_checkpoint(values)
    command.define_weights(values)
    flags.DEFINE_string(
        "output",
        None,
        "Directory for the results; by default <checkpoint>/evals.",
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
        "File of the config whose evals are run on its data; by default the run's own config.",
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
) -> dict[str, float]:
    """Runs evaluators on a trained model and writes `<output>/step_<step>.json`.

    Args:
      checkpoint: workdir of a run, an export, a folder of open_clip or transformers, or a PyTorch
        or safetensors file.
      step: which checkpoint of a workdir; None is the newest.
      output: directory for the results; None is `<checkpoint>/evals`, or `<file>.evals`.
      config: the config whose `evals` are run. A run has a config of its own; everything else needs
        this one. It also gives the batch size, and whatever a checkpoint does not say of its model,
        such as quick_gelu in a bare file of weights.
      weights: "raw", or "average" for the average that a run kept of them. The evaluations then
        have the names that the run itself gives them, such as val_of_average, and so has the file.
      text_windows: whether texts too long for the model are read in windows. The evaluations then
        have names such as val_of_windows, and so has the file.

    Returns:
      {"step": …, "<evaluation>/<metric>": float}. Where no step is known, it has no "step", and the
      file is results.json.

    Raises:
      UserError: there is no such checkpoint, or an evaluation cannot run.
    """
    import jax

    from cyclip_jax import evals
    from cyclip_jax.evals.flat import flattened
    from cyclip_jax.files import write_json
    from cyclip_jax.interop.pretrained import open_checkpoint, workdir_and_step
    from cyclip_jax.runtime.sections import resolve_paths
    from cyclip_jax.training.opened_model import open_model
    from cyclip_jax.training.settings import with_absolute_paths
    from cyclip_jax.workdir.layout import OF_AVERAGE, OF_WINDOWS

    path, step = workdir_and_step(checkpoint, step)
    output = _results_folder(path, output)
    config = _checked_config(config, path)
    if config is None:
        # That there is no such model says more than that its data are missing.
        open_checkpoint(path, step=step, weights=weights)
        raise UserError(f"{path} is not the workdir of a run; name its data with --config")
    evaluated = resolve_paths(with_absolute_paths(config), path)
    ending = (OF_AVERAGE if weights == "average" else "") + (OF_WINDOWS if text_windows else "")
    evaluators = evals.create_evaluators(evaluated.evals)
    evaluators = {f"{name}{ending}": evaluation for name, evaluation in evaluators.items()}
    opened = open_model(
        path, step=step, weights=weights, config=evaluated, text_windows=text_windows
    )
    failed = None
    try:
        results = evals.evaluate(
            evaluators,
            opened.encoders,
            directory=output,
            model=opened.config.model.name,
            checkpoint=str(path),
        )
    except evals.EvaluationFailed as error:
        failed, results = error, error.results
    results, file = flattened(results), output / f"results{ending}.json"
    if opened.checkpoint.step is not None:
        results = {"step": opened.checkpoint.step, **results}
        file = output / f"step_{opened.checkpoint.step}{ending}.json"
    if jax.process_index() == 0:
        write_json(file, results)
    if failed is not None:
        raise UserError(f"{failed}; the other results are in {file}") from failed
    return results


def _checked_config(config, path):
    """The config whose evaluations are run, with good settings: a workdir has one of its own."""
    from cyclip_jax import evals
    from cyclip_jax.models.presets import with_preset_named
    from cyclip_jax.workdir.config_json import is_workdir, read_config

    if config is None and is_workdir(path):
        config = read_config(path)
    if config is not None:
        wanted: Any = config.evals  # ConfigDict's fields have no types
        evals.check_settings(wanted)
        config = with_preset_named(config)
    return config


def _results_folder(checkpoint, output):
    """Where the results of a checkpoint go."""
    from cyclip_jax.files import absolute
    from cyclip_jax.interop.pretrained import workdir_and_step

    path, _ = workdir_and_step(checkpoint, None)
    own = path / "evals" if path.is_dir() else path.parent / f"{path.name}.evals"
    folder = own if output is None else absolute(output, "--output")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output={folder} is a file; name a folder for the results")
    return folder


def main(values: Any) -> None:
    """Evaluates and prints the table."""
    import jax

    from cyclip_jax.evals.output import read_abouts
    from cyclip_jax.files import absolute
    from cyclip_jax.runtime import distributed
    from cyclip_jax.workdir.table import final_table

    # Nothing is to be saved first: SIGTERM simply ends it, however many processes there are.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        distributed.join_as_told(values)
        results = evaluate_checkpoint(
            values.checkpoint,
            step=values.step,
            output=values.output,
            config=values.config,
            weights=values.weights,
            text_windows=values.text_windows,
        )
    except UserError as error:
        distributed.end(f"error: {error}")
        return
    if jax.process_index() == 0:
        if "step" in results:
            print(f"step {results['step']}")
        abouts = read_abouts(_results_folder(values.checkpoint, values.output))
        print(final_table(results, abouts))
        shown = absolute(values.output or values.checkpoint)
        if shown.is_dir():
            print(f"with figures: python -m cyclip_jax.report {shown}")
    distributed.end(0)


if __name__ == "__main__":
    command.run(main, define_flags, doc=__doc__)
