"""The flags of a command that may be one of several processes."""

import os

from absl import flags

HEARTBEAT_TIMEOUT, INITIALIZATION_TIMEOUT = 100, 300  # seconds, JAX's own defaults

# In these a cluster tells a process its number: SLURM, Open MPI, GKE, TPUs, slices of TPUs.
_NUMBERS = (
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
    "JOB_COMPLETION_INDEX",
    "TPU_WORKER_ID",
    "CLOUD_TPU_TASK_ID",
    "MEGASCALE_SLICE_ID",
)


def define_distributed_flags(values: flags.FlagValues) -> None:
    """Defines the flags by which a process joins the others."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join the other processes of a TPU pod, or of a job of SLURM, Open MPI or GKE.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "host:port of process 0. This and the next two are for processes that no cluster started; "
        "set all three, with --distributed.",
        flag_values=values,
    )
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", flag_values=values)
    flags.DEFINE_integer(
        "process_id", None, "Which of them this one is, from 0.", flag_values=values
    )
    flags.DEFINE_integer(
        "initialization_timeout",
        INITIALIZATION_TIMEOUT,
        "Seconds to wait for the others to start.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "heartbeat_timeout",
        HEARTBEAT_TIMEOUT,
        "Seconds of silence after which a process counts as lost.",
        flag_values=values,
    )


def is_first_process(values: flags.FlagValues) -> bool:
    """Whether this is process 0, as the flags or the cluster tell before the processes join.

    It is false where only joining would tell.
    """
    if "distributed" not in values or not values.distributed:
        return True
    if values.process_id is not None:
        return values.process_id == 0
    numbers = [os.environ[name] for name in _NUMBERS if name in os.environ]
    return bool(numbers) and all(number == "0" for number in numbers)
