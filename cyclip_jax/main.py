"""Train an experiment, or continue its run.

python -m cyclip_jax.main --config=configs/cc3m.py --config.data.train=train.csv
"""

import pathlib
from typing import Any

from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command
from cyclip_jax.runtime.config_file import config_name, define_config
from cyclip_jax.runtime.distributed_flags import define_distributed_flags
from cyclip_jax.runtime.memory import limit_arenas
from cyclip_jax.runtime.started import process_began


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_config(values, "The experiment's file, e.g. configs/cc3m.py.", required=True)
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory of the run, local or gs://…; by default runs/<name of the config>.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "stopped_exit_code",
        0,
        "Exit status of a run that a signal stopped before its end.",
        flag_values=values,
    )
    command.define_allow_changes(values)
    define_distributed_flags(values)


def starting(values: Any) -> str:
    """What is begun, in words; the config is not loaded yet."""
    name = pathlib.Path(values.config.partition(":")[0]).stem
    return f"{values.config} in {values.workdir or pathlib.Path('runs') / name}"


def main(values: Any) -> None:
    """Runs the configured experiment."""
    from cyclip_jax.runtime import distributed

    limit_arenas()
    try:
        from cyclip_jax.train import train

        distributed.join_as_told(values)  # after what takes some processes longer than others
        workdir = values.workdir or pathlib.Path("runs") / config_name(values)
        metrics = train(
            values.config,
            workdir,
            began=process_began(),
            allow_changes=values.allow_changes,
        )
        status = values.stopped_exit_code if metrics is None else 0
    except UserError as error:
        status = f"error: {error}"
    distributed.end(status)


if __name__ == "__main__":
    command.run(main, define_flags, doc=__doc__, starting=starting, is_run=True, continues=True)
