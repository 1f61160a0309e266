"""`python -m cyclip_jax.main --config=configs/cc3m.py`: trains, or continues a run."""

import pathlib

from absl import app, flags, logging
from ml_collections import config_flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import distributed
from cyclip_jax.runtime.memory import limit_arenas
from cyclip_jax.runtime.started import prepare_command, process_began

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment's file, e.g. configs/cc3m.py", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory of the run, local or gs://…; default runs/<name of the config>"
)
_STOPPED_EXIT_CODE = flags.DEFINE_integer(
    "stopped_exit_code", 0, "exit status of a run that a signal stopped before its end"
)
_join = distributed.define_flags()


def main(_):
    """Runs the configured experiment."""
    limit_arenas()
    # Orbax tells of every file that it writes; --verbosity=0 shows that.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        from cyclip_jax.train import train

        _join()  # after what takes some processes longer than others
        metrics = train(_CONFIG.value, _WORKDIR.value or default_workdir(), began=process_began())
        status = _STOPPED_EXIT_CODE.value if metrics is None else 0
    except UserError as error:
        status = f"error: {error}"
    distributed.end(status)


def default_workdir():
    """runs/<name of the config file>."""
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    return str(pathlib.Path("runs") / pathlib.Path(path).stem)


if __name__ == "__main__":
    prepare_command()
    flags.mark_flag_as_required("config")
    app.run(main)
