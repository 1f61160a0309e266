"""`python -m cyclip_jax.evaluate --checkpoint=WORKDIR`: evaluates a trained model."""

import json
import sys

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

import cyclip_jax.quiet  # noqa: F401  (must come first)
from cyclip_jax.errors import UserError

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir of a run")
_STEP = flags.DEFINE_integer("step", None, "which checkpoint of it; default the newest")
_OUTPUT = flags.DEFINE_string("output", None, "directory for results; default <checkpoint>/evals")
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "its evals and data are used in place of the run's own", lock_config=True
)


def evaluate_workdir(workdir, *, step=None, output=None, config=None):
    """Runs evaluators on a checkpoint and writes `<output>/step_<step>.json`.

    Args:
      workdir: directory of a run.
      step: which checkpoint; None is the newest.
      output: directory for the results; None is `<workdir>/evals`.
      config: whose `evals` to run; None is the run's own.

    Returns:
      {"step": …, "<evaluation>/<metric>": float}.

    Raises:
      UserError: not a run, no such checkpoint, or evaluations that cannot run.
    """
    from cyclip_jax import evals, parallel
    from cyclip_jax.checkpoint import restore_model
    from cyclip_jax.data.configured import open_tokenizer
    from cyclip_jax.inference import Model
    from cyclip_jax.workdir import read_config, resolve_paths

    run_config = read_config(workdir)
    config = run_config if config is None else resolve_paths(config, workdir)
    evals.check_settings(config.evals)
    mesh = parallel.create_mesh()
    parallel.check_batch_size(run_config.batch_size, mesh)
    model = Model(run_config, mesh)
    step, restored = restore_model(workdir, model.abstract(), step=step)
    encoders = model.encoders(**restored, tokenize=open_tokenizer(run_config, workdir, model.sizes))
    output = epath.Path(workdir) / "evals" if output is None else epath.Path(output)
    results = {"step": step, **evals.evaluate(config.evals, encoders, figures=output)}
    if jax.process_index() == 0:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"step_{step}.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def main(_):
    """Evaluates and prints the table."""
    from cyclip_jax.report import final_table

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        results = evaluate_workdir(
            _CHECKPOINT.value, step=_STEP.value, output=_OUTPUT.value, config=_CONFIG.value
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"step {results['step']}")
    print(final_table(results))


if __name__ == "__main__":
    flags.mark_flag_as_required("checkpoint")
    app.run(main)
