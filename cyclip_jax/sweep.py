"""Train the runs of a sweep in turn, and compare them.

python -m cyclip_jax.sweep --sweep=configs/sweeps/objectives.py
"""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
from absl import flags
from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import expanded, how_written
from cyclip_jax.runtime import command
from cyclip_jax.runtime.config_file import configs_at_hand, errors_in, load_module
from cyclip_jax.runtime.sections import flat


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string(
        "sweep",
        None,
        "File with a function get_runs(), which returns {name: config}.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory of the runs' directories; by default runs/<name of the sweep>.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "only",
        "*",
        "Which runs to train, as a pattern of their names, such as *_seed0.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "total_steps",
        None,
        "Length of each run in steps, for trying a sweep out; warm-ups and cool-downs become a "
        "third of it at most.",
        flag_values=values,
    )
    command.define_allow_changes(values)


def sweep(
    runs: Mapping[str, ml_collections.ConfigDict],
    workdir: str | os.PathLike[str],
    *,
    allow_changes: Collection[str] = (),
) -> epath.Path | None:
    """Trains each run in `<workdir>/<name>`, or continues it, and reports on all of them together.

    Args:
      runs: {name: config}.
      workdir: directory of the runs' directories, local or remote.
      allow_changes: names of settings that may differ from those with which a run began.

    Returns:
      The path of the report, `<workdir>/report.html`; None where a signal ended a run.

    Raises:
      UserError: some of the runs failed. It is raised after the other runs.
    """
    from cyclip_jax.files import absolute, check_literal
    from cyclip_jax.report.write import write_report
    from cyclip_jax.train import train

    workdir, finished, failures = absolute(workdir, "--workdir"), [], []
    for name in runs:
        check_literal(workdir / name, "the workdir of a run")
    for number, (name, config) in enumerate(runs.items(), start=1):
        print(f"run {number} of {len(runs)}: {name}", flush=True)
        try:
            if train(config.lock(), workdir / name, allow_changes=allow_changes) is None:
                return None
            finished.append(workdir / name)
        except UserError as error:  # one that has diverged must not keep the others
            print(f"{name} failed: {error}", flush=True)
            failures.append(name)
    page = write_report(finished, output=workdir / "report.html") if finished else None
    if failures:
        others = f"; the others are in {page}" if finished else ", and there are no others"
        raise UserError(f"{', '.join(failures)} failed{others}")
    return page


def read_runs(
    path: str | os.PathLike[str], *, only: str = "*", total_steps: int | None = None
) -> dict[str, ml_collections.ConfigDict]:
    """Reads the runs of a sweep's file.

    Args:
      path: the file, which has a function get_runs().
      only: which runs to read, as a pattern of their names.
      total_steps: length of each run in steps, of which each warm-up and cool-down has a third at
        most; None leaves the lengths as they are.

    Returns:
      {name: config}.

    Raises:
      UserError: there is no such file, it has no get_runs(), or no run has such a name.
    """
    path = pathlib.Path(expanded(path))
    if not path.is_file():
        raise UserError(f"--sweep={path} is not a Python file{how_written(path)}")
    with configs_at_hand():
        module = load_module(path, path.stem)
        if not hasattr(module, "get_runs"):
            raise UserError(f"{path} has no function get_runs(), which returns {{name: config}}")
        with errors_in(path):
            runs = module.get_runs()
    chosen = {name: run for name, run in runs.items() if pathlib.PurePath(name).match(only)}
    if not chosen:
        raise UserError(f"--only={only} matches none of {', '.join(runs)}")
    for config in chosen.values():
        if total_steps is not None:
            config.total_steps, config.num_epochs = total_steps, None
            _shorten_parts(config, total_steps // 3)
    return chosen


def _shorten_parts(config, most):
    """Cuts the warm-ups and cool-downs of a config, which a short run has no room for."""
    for name, steps in flat(config.to_dict()).items():
        # Deeper ones count what a kind of clipping remembers, which may be more than the run has.
        is_of_section = name.count(".") == 1 and name.endswith(("warmup_steps", "cooldown_steps"))
        if is_of_section and steps and steps > most:
            config.update_from_flattened_dict({name: most})


def starting(values: Any) -> str:
    """What is begun, in words."""
    return f"the runs of {values.sweep} in {_workdir(values)}"


def _workdir(values):
    return values.workdir or pathlib.Path("runs") / pathlib.Path(values.sweep).stem


def main(values: Any) -> None:
    """Runs the sweep."""
    runs = read_runs(values.sweep, only=values.only, total_steps=values.total_steps)
    workdir = _workdir(values)
    path = sweep(runs, workdir, allow_changes=values.allow_changes)
    if path is not None:
        print(f"the comparison is in {path}")


if __name__ == "__main__":
    command.run(main, define_flags, doc=__doc__, starting=starting, is_run=True, continues=True)
