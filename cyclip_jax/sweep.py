"""`python -m cyclip_jax.sweep --sweep=configs/sweeps/objectives.py`: runs to compare, in turn."""

import importlib.util
import pathlib
import sys

from absl import app, flags, logging

from cyclip_jax.errors import UserError
from cyclip_jax.runtime.started import prepare_command

_SWEEP = flags.DEFINE_string("sweep", None, "file with get_runs(), which gives {name: config}")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the runs' directories")
_ONLY = flags.DEFINE_string("only", "*", "which runs, as a pattern of their names: *_seed0")
_TOTAL_STEPS = flags.DEFINE_integer("total_steps", None, "length of each run, to try a sweep out")


def sweep(runs, workdir):
    """Trains each run in `<workdir>/<name>`, or continues it, and reports on all of them together.

    Args:
      runs: {name: config}.
      workdir: local or remote.

    Returns:
      The path of the report, `<workdir>/report.html`; None where a signal ended a run.

    Raises:
      UserError: after the other runs, where some failed.
    """
    from cyclip_jax.files import absolute
    from cyclip_jax.report.write import write_report
    from cyclip_jax.train import train

    workdir, finished, failures = absolute(workdir), [], []
    for number, (name, config) in enumerate(runs.items(), start=1):
        print(f"run {number} of {len(runs)}: {name}", flush=True)
        try:
            if train(config.lock(), workdir / name) is None:
                return None
            finished.append(workdir / name)
        except UserError as error:  # one that has diverged must not keep the others
            print(f"{name} failed: {error}", flush=True)
            failures.append(name)
    page = write_report(finished, output=workdir / "report.html") if finished else None
    if failures:
        raise UserError(f"{', '.join(failures)} failed; the others are in {page}")
    return page


def read_runs(path, *, only="*", total_steps=None):
    """{name: config} of a sweep's file.

    Raises:
      UserError: no such file, no get_runs() in it, or no run of this name.
    """
    path = pathlib.Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or not path.exists():
        raise UserError(f"--sweep={path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_runs"):
        raise UserError(f"{path} has no function get_runs(), which gives {{name: config}}")
    runs = module.get_runs()
    chosen = {name: run for name, run in runs.items() if pathlib.PurePath(name).match(only)}
    if not chosen:
        raise UserError(f"--only={only} matches none of {', '.join(runs)}")
    for config in chosen.values():
        if total_steps is not None:
            config.total_steps, config.num_epochs = total_steps, None
    return chosen


def main(_):
    """Runs the sweep."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        runs = read_runs(_SWEEP.value, only=_ONLY.value, total_steps=_TOTAL_STEPS.value)
        path = sweep(runs, _WORKDIR.value or pathlib.Path("runs") / pathlib.Path(_SWEEP.value).stem)
    except UserError as error:
        sys.exit(f"error: {error}")
    if path is not None:
        print(f"the comparison is in {path}")


if __name__ == "__main__":
    prepare_command()
    flags.mark_flag_as_required("sweep")
    app.run(main)
