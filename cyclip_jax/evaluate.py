"""`python -m cyclip_jax.evaluate --checkpoint=WORKDIR`: evaluates a trained model."""

import json
import math
import sys

import jax
from absl import app, flags, logging
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
    from cyclip_jax.files import absolute, write_atomically
    from cyclip_jax.inference import Model, set_matmul_precision
    from cyclip_jax.workdir import read_config, resolve_paths

    workdir = absolute(workdir)
    run_config = resolve_paths(read_config(workdir), workdir)
    config = run_config if config is None else resolve_paths(config, workdir)
    evaluators = evals.create_evaluators(config.evals)
    set_matmul_precision(run_config)
    # The run may have had other devices: take as many as its batch divides among.
    devices = jax.devices()
    mesh = parallel.create_mesh(devices[: math.gcd(run_config.batch_size, len(devices))])
    model = Model(run_config, mesh)
    step, restored = restore_model(workdir, model.abstract(), step=step)
    encoders = model.encoders(**restored, tokenize=open_tokenizer(run_config, workdir, model.sizes))
    output = workdir / "evals" if output is None else absolute(output)
    results = {"step": step, **evals.evaluate(evaluators, encoders, figures=output)}
    if jax.process_index() == 0:
        write_atomically(output / f"step_{step}.json", json.dumps(results, indent=1) + "\n")
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
