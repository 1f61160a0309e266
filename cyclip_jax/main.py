"""`python -m cyclip_jax.main --config=configs/cc3m.py`: trains, or continues a run."""

import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

import cyclip_jax.quiet  # noqa: F401  (must come first)
from cyclip_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment's file, e.g. configs/cc3m.py", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory of the run, local or gs://…; default runs/<name of the config>"
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "join the other processes of a TPU pod, SLURM or Open MPI job"
)
# For processes that no cluster started: with --distributed, all three.
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes there are")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this one is, from 0")


def main(_):
    """Runs the configured experiment."""
    # Orbax tells of every file that it writes; --verbosity=0 shows that.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        if _DISTRIBUTED.value:
            jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        from cyclip_jax.train import train

        train(_CONFIG.value, _WORKDIR.value or default_workdir())
    except UserError as error:
        sys.exit(f"error: {error}")


def default_workdir():
    """runs/<name of the config file>."""
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    return str(pathlib.Path("runs") / pathlib.Path(path).stem)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
